"""Nodes through SkyPilot: each is a SkyPilot cluster of one task file, in one zone.

SkyPilot asks for other versions than Ray Serve does. So its SDK runs in an environment and a
process of its own (`sky_bridge.py`), and is asked over a pipe. The work is done by SkyPilot's API
server, which outlives both.
"""

import json
import os
import queue
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from cluster.policy.fleet import Market, NodeId, Offer, ZoneId
from cluster.policy.reconcile import Machine
from cluster.policy.refusals import classify_refusal
from cluster.provisioner import FleetSetupError, ProvisionerAwayError

_BRIDGE = Path(__file__).with_name("sky_bridge.py")
_TIMEOUT_S = 120.0
_SETUP_ERRORS = (
    "NoCloudAccessError",
    "FileNotFoundError",
    "ValueError",
    "InvalidSkyPilotConfigError",
    "NoSkyPilot",
    "WrongTaskError",
)


class SkyBridge:
    """SkyPilot's process; started when it is first asked, and again after it has died.

    Args:
        python: Of SkyPilot's environment.
        environ: Of the process; None for ours.
        log: Where SkyPilot's own words go.
    """

    def __init__(self, python: Path, log: Path, environ: Mapping[str, str] | None = None) -> None:
        self._python = python
        self._log = log
        self._environ = dict(os.environ if environ is None else environ)
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()

    def ask(self, do: str, **question: Any) -> Any:
        """Return SkyPilot's answer.

        Raises:
            FleetSetupError: SkyPilot is missing, or refuses the question for good.
            ProvisionerAwayError: It does not answer.
        """
        process = self._start()
        assert process.stdin is not None
        with suppress(OSError):  # whoever listens no more may have said why
            process.stdin.write(json.dumps({"do": do, **question}) + "\n")
            process.stdin.flush()
        try:
            line = self._lines.get(timeout=_TIMEOUT_S)
        except queue.Empty:
            line = ""
        if not line:
            self.close()
            raise ProvisionerAwayError(f"SkyPilot does not answer; {self._log} has its words.")
        reply = json.loads(line)
        if "error" in reply:
            kind = FleetSetupError if reply["kind"] in _SETUP_ERRORS else ProvisionerAwayError
            raise kind(self._explain(reply["error"], reply["kind"]))
        return reply["answer"]

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(OSError):
                process.stdin.close()

    def command(self) -> str:
        """Return SkyPilot's own command, for people."""
        return str(self._python.with_name("sky"))

    def _explain(self, text: str, kind: str) -> str:
        match kind:
            case "NoCloudAccessError":
                return (
                    f"SkyPilot may use no cloud. `{self.command()} check` says for each cloud what "
                    "is missing and which command mends it."
                )
            case "NoSkyPilot":
                return (
                    f"{self._python} has no SkyPilot that can be imported: {text}. `make sky` "
                    "installs it into .venv-sky; fleet.provisioner.python names another place."
                )
            case "WrongTaskError":
                return text.partition(": ")[2]
        return f"SkyPilot: {text[:500]}"

    def _start(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        if not self._python.exists():
            raise FleetSetupError(
                f"SkyPilot is not installed: {self._python} is not there. `make sky` installs it "
                "into .venv-sky; or name another environment's Python in "
                "fleet.provisioner.python."
            )
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                # -P: this folder has modules named like others.
                [str(self._python), "-P", str(_BRIDGE)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environ,
                start_new_session=True,  # a Ctrl-C is for the controller alone
            )
        self._lines = queue.Queue()
        assert self._process.stdout is not None
        reader = threading.Thread(
            target=_pass_on, args=(self._process.stdout, self._lines), daemon=True
        )
        reader.start()
        return self._process


def _pass_on(stream: IO[str], lines: "queue.Queue[str]") -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put("")


class SkyProvisioner:
    """A fleet of SkyPilot clusters.

    Args:
        fleet: What every cluster's name begins with.
        file: The task file that each node is launched from.
        envs: Values for what the file asks for, secrets too; else the environment's.
        bridge: SkyPilot's process.
        accelerators: Kinds of the file to which nodes are bound; none for all.
    """

    def __init__(
        self,
        fleet: str,
        file: Path,
        envs: Mapping[str, str],
        bridge: SkyBridge,
        accelerators: Sequence[str] = (),
    ) -> None:
        self._fleet = fleet
        self._task = {"file": str(file), "envs": dict(envs), "accelerators": list(accelerators)}
        self._bridge = bridge
        self._remarks: list[str] = []
        self._kinds: dict[tuple[str, str], str] = {}

    def list_offers(self) -> Sequence[Offer]:
        """Return the prices of SkyPilot's catalogue for the clouds that it may use."""
        told = self._bridge.ask("offers", **self._task)
        offers, self._remarks = told["offers"], self._remark(told)
        if not offers:
            raise FleetSetupError(self._say_nothing_fits())
        for offer in offers:
            for market in ("spot", "on-demand"):
                self._kinds[offer["zone"], market] = offer.get(f"{market} kind", "")
        return [
            Offer(o["zone"], o["cloud"], o["region"], o.get("spot"), o.get("on-demand"))
            for o in offers
        ]

    def remarks(self) -> Sequence[str]:
        """Return what was left out when the offers were listed, and what a launch lacks."""
        return self._remarks

    def _remark(self, told: Mapping[str, Any]) -> list[str]:
        lines = []
        if told["left_out"]:
            check = f"{self._bridge.command()} check {' '.join(told['left_out'])}"
            clouds = ", ".join(told["left_out"])
            lines.append(f"left out, as SkyPilot may not use them: {clouds}; `{check}` says why")
        if told["unset"]:
            names = ", ".join(told["unset"])
            lines.append(f"nothing can be launched before these are exported: {names}")
        return lines

    def _say_nothing_fits(self) -> str:
        kinds = ", ".join(self._task["accelerators"])
        narrowed = f", of which fleet.provisioner.accelerators takes only {kinds}" if kinds else ""
        return "\n".join(
            [
                f"no cloud that SkyPilot may use sells what {self._task['file']} asks for under "
                f"`resources`{narrowed}. Ask for other machines there, or let it use more clouds: "
                f"`{self._bridge.command()} check`.",
                *self._remarks,
            ]
        )

    def describe_kind(self, zone: ZoneId, market: Market) -> str:
        """Return the cloud's name of the machine, and its GPUs."""
        return self._kinds.get((zone, market), "")

    def list_machines(self) -> Sequence[Machine]:
        """Return the fleet's clusters as SkyPilot's API server knows them."""
        return [_read_machine(each) for each in self._bridge.ask("machines", fleet=self._fleet)]

    def launch(self, node: NodeId, zone: ZoneId, market: Market) -> None:
        """Have the API server launch a cluster; names are unique there, so none is doubled."""
        self._bridge.ask("launch", name=node, zone=zone, market=market, **self._task)

    def end(self, node: NodeId) -> None:
        """Have the API server end a cluster."""
        self._bridge.ask("end", name=node)

    def close(self) -> None:
        """End SkyPilot's process; its API server stays."""
        self._bridge.close()


def _read_machine(told: Mapping[str, Any]) -> Machine:
    is_refused = told["state"] == "refused"
    return Machine(
        NodeId(told["id"]),
        ZoneId(told["zone"]),
        told["market"],
        told["state"],
        told["asked_s"],
        classify_refusal(told["text"]) if is_refused else None,
        told["text"],
        told["address"],
    )
