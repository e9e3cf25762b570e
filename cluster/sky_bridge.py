"""SkyPilot's side of the fleet. Runs in SkyPilot's own environment, never in Arriero's.

    .venv-sky/bin/python -P cluster/sky_bridge.py    a line of JSON in, a line of JSON out

Only SkyPilot and the standard library are to be had here. What takes long is left to SkyPilot's API
server, which goes on when this process dies: so every answer comes within seconds.
"""

import io
import json
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, TextIO

# By name: type checkers take the repository's folder sky/ for the package.
sky: Any = None
_LAUNCH = "sky.launch"
_DOWN = "sky.down"
_NODE = "ARRIERO_NODE"
"""What a task file asks for that wants to know the node's name."""
_LOG_LINES = 200
_MOST_ERRORS = 5
_STAMP = re.compile(r"^[A-Z] [\d-]+ [\d:.]+ PID=\d+ \S+\] ")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_TELLS_OF_ERROR = re.compile(r"\w(Error|Exception)\b.*:|error occurred|\bcode\b", re.IGNORECASE)
_OPEN = ("PENDING", "RUNNING", "WAITING")


class WrongTaskError(Exception):
    """The task file asks for what it does not get; the text says what is to be done."""


def main() -> int:
    """Answer until the other side is gone."""
    answers = _take_standard_output()
    try:
        _import_sky()
    except ImportError as error:
        traceback.print_exc()
        _say(answers, {"error": str(error), "kind": "NoSkyPilot"})
        return 1
    fleet = SkyFleet()
    for line in sys.stdin:
        question = json.loads(line)
        try:
            _say(answers, {"answer": getattr(fleet, question.pop("do"))(**question)})
        except Exception as error:
            traceback.print_exc()
            kind = type(error).__name__
            _say(answers, {"error": f"{kind}: {error}", "kind": kind})
    return 0


def _import_sky() -> None:
    global sky
    sky = import_module("sky")
    if not hasattr(sky, "launch"):  # a folder of that name can be imported, too
        raise ImportError("the package skypilot is not installed")


def _say(answers: TextIO, reply: Mapping[str, Any]) -> None:
    answers.write(json.dumps(reply) + "\n")
    answers.flush()


def _take_standard_output() -> TextIO:
    """Return where answers go. SkyPilot prints to standard output, which is not for reading."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


class SkyFleet:
    """What the provisioner may ask. Each public method answers one `do`."""

    def __init__(self) -> None:
        self._refusals: dict[str, str] = {}
        """Texts of failed launches by request, as they do not change any more."""

    def offers(
        self, file: str, envs: Mapping[str, str], accelerators: Sequence[str]
    ) -> dict[str, Any]:
        """Return every zone's prices for what a task file asks for, and what a launch lacks."""
        best: dict[str, dict[str, Any]] = {}
        task, unset = _read_task(file, envs)
        for market, resources in self._launchables(task, accelerators).items():
            zone, use_spot = market
            offer = best.setdefault(
                zone, {"zone": zone, "cloud": zone.split("/")[0], "region": _region_of(zone)}
            )
            offer["spot" if use_spot else "on-demand"] = resources.get_cost(3600)
            offer["spot kind" if use_spot else "on-demand kind"] = _kind_of(resources)
        return {
            "offers": sorted(best.values(), key=lambda offer: str(offer["zone"])),
            "left_out": _clouds_left_out(task),
            "unset": unset,
        }

    def machines(self, fleet: str) -> list[dict[str, Any]]:
        """Return the fleet's clusters, and its launches that have none."""
        launches = self._last_launches(fleet)
        mode = sky.StatusRefreshMode.AUTO  # asks clouds about spot clusters, which may be taken
        records = {
            record["name"]: record
            for record in sky.get(sky.status(refresh=mode))
            if _is_of(record["name"], fleet)
        }
        found = [self._machine(name, record, launches) for name, record in records.items()]
        for name, launch in launches.items():
            if name not in records and launch.status != "SUCCEEDED":
                found.append(self._without_cluster(name, launch))
        return found

    def launch(
        self,
        name: str,
        zone: str,
        market: str,
        file: str,
        envs: Mapping[str, str],
        accelerators: Sequence[str],
    ) -> str | None:
        """Ask for a cluster in one zone; return the request, None where it was asked for before."""
        if self._last_launches(name, exactly=True):
            return None
        task, unset = _read_task(file, {**envs, _NODE: name})
        if unset:
            raise WrongTaskError(
                f"{file} asks for the secret {unset[0]}, which is not set. Export it where "
                "`arriero fleet up` runs."
            )
        resources = self._launchables(task, accelerators).get((zone, market == "spot"))
        if resources is None:
            raise WrongTaskError(f"{file} asks for nothing that {zone} has {market}.")
        task.set_resources(resources)
        request: str = sky.launch(task, cluster_name=name)
        return request

    def end(self, name: str) -> None:
        """End a cluster, and its launch where that goes on."""
        launch = self._last_launches(name, exactly=True).get(name)
        if launch is not None and launch.status in _OPEN:
            sky.get(sky.api_cancel([launch.request_id], silent=True))
        is_there = any(record["name"] == name for record in sky.get(sky.status([name])))
        if is_there and not self._is_ending(name):
            sky.down(name)

    def _is_ending(self, name: str) -> bool:
        """Say whether that goes on already: it takes minutes, and is asked for at each look."""
        requests = sky.api_status()
        return any(
            request.name == _DOWN and request.cluster_name == name and request.status in _OPEN
            for request in requests
        )

    def _last_launches(self, fleet: str, exactly: bool = False) -> dict[str, Any]:
        requests = sky.api_status(all_status=True)
        last: dict[str, Any] = {}
        for request in sorted(requests, key=lambda request: float(request.created_at)):
            name = request.cluster_name or ""
            is_ours = name == fleet if exactly else _is_of(name, fleet)
            if is_ours and request.name == _LAUNCH:
                last[name] = request
        return last

    def _machine(
        self, name: str, record: Mapping[str, Any], launches: Mapping[str, Any]
    ) -> dict[str, Any]:
        launched = getattr(record.get("handle"), "launched_resources", None)
        launch = launches.get(name)
        machine = {
            "id": name,
            "zone": _zone_of(launched) if launched is not None else "",
            "market": "spot" if getattr(launched, "use_spot", False) else "on-demand",
            "asked_s": float(launch.created_at if launch else record["launched_at"]),
            "address": getattr(record.get("handle"), "head_ip", None) or "",
            "state": "starting",
            "text": "",
        }
        is_open = launch is not None and launch.status in _OPEN
        if record["status"] == sky.ClusterStatus.UP:
            machine["state"] = "up"
        elif launch is not None and launch.status == "FAILED":
            machine |= {"state": "refused", "text": self._why(name, launch.request_id)}
        elif not is_open:
            machine |= {"state": "gone", "text": str(record.get("last_event") or "")}
        return machine

    def _without_cluster(self, name: str, launch: Any) -> dict[str, Any]:
        machine = {"id": name, "zone": "", "market": "spot", "asked_s": float(launch.created_at)}
        machine |= {"address": "", "text": "", "state": "starting"}
        if launch.status not in _OPEN:
            machine |= {"state": "refused", "text": self._why(name, launch.request_id)}
        return machine

    def _why(self, name: str, request_id: str) -> str:
        """Return what is told of a launch that failed: the cloud's words, then SkyPilot's."""
        if request_id not in self._refusals:
            said = [*_errors_of(name), *_words_of(request_id)]
            self._refusals[request_id] = _COLOURS.sub("", "\n".join(said))
        return self._refusals[request_id]

    def _launchables(self, task: Any, accelerators: Sequence[str]) -> dict[tuple[str, bool], Any]:
        """Return the cheapest of a task's resources, by zone and whether it is spot.

        Args:
            task: What is to be launched.
            accelerators: Such as `H100:8`, to which they are bound; none for any.
        """
        utils: Any = import_module("sky.utils.resources_utils")
        found: dict[tuple[str, bool], Any] = {}
        for wanted in _both_markets(task):
            for cloud in _clouds_of(wanted):
                feasible = cloud.get_feasible_launchable_resources(wanted, num_nodes=task.num_nodes)
                kinds = [k for k in feasible.resources_list if _is_among(k, accelerators)]
                for kind in kinds:
                    for one in utils.make_launchables_for_valid_region_zones(kind, True):
                        key = (_zone_of(one), one.use_spot)
                        if key not in found or one.get_cost(3600) < found[key].get_cost(3600):
                            found[key] = one
        return found


def _errors_of(name: str) -> list[str]:
    """Return the last lines on errors of a cluster's launch, the last first.

    What SkyPilot raises says that there was no machine, and not why; only its log has the code.
    """
    log = io.StringIO()
    try:
        client: Any = import_module("sky.client.sdk")
        client.tail_provision_logs(name, follow=False, tail=_LOG_LINES, output_stream=log)
    except Exception:
        traceback.print_exc()  # then SkyPilot's own words have to do
        return []
    lines = [_STAMP.sub("", line).strip() for line in log.getvalue().splitlines()]
    return [line for line in reversed(lines) if _TELLS_OF_ERROR.search(line)][:_MOST_ERRORS]


def _words_of(request_id: str) -> list[str]:
    try:
        sky.get(request_id)
    except Exception as error:  # the reason is what was asked for
        said = [error, *getattr(error, "failover_history", [])]
        return [f"{type(each).__name__}: {each}" for each in said]
    return ["it was cancelled"]


def _read_task(file: str, envs: Mapping[str, str]) -> tuple[Any, list[str]]:
    """Read a task file, with those values that it asks for; return secrets that lack one, too."""
    yaml_utils: Any = import_module("sky.utils.yaml_utils")
    config = yaml_utils.read_yaml(file)
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(file))))  # `workdir: .` of the file
    asked = {kind: config.get(kind) or {} for kind in ("envs", "secrets")}
    values = {**os.environ, **envs}
    given = {
        kind: [(name, values[name]) for name in names if values.get(name)]
        for kind, names in asked.items()
    }
    unset = {kind: _unset(asked[kind], given[kind]) for kind in given}
    for name in unset["envs"]:
        place = "ray_head" if name == "RAY_HEAD" else "envs"
        raise WrongTaskError(f"{file} asks for {name}; set fleet.provisioner.{place}.")
    return sky.Task.from_yaml_config(config, given["envs"], given["secrets"]), unset["secrets"]


def _unset(asked: Mapping[str, Any], given: Sequence[tuple[str, str]]) -> list[str]:
    """Return the names without a value. SkyPilot takes secrets without, and fails at the launch."""
    known = {name for name, _ in given}
    return [name for name, value in asked.items() if value is None and name not in known]


def _both_markets(task: Any) -> list[Any]:
    """Return a task's resources, and on demand also what it asks for on spot: the fallback."""
    spot = [wanted for wanted in task.resources if wanted.use_spot]
    return [*task.resources, *(wanted.copy(use_spot=False) for wanted in spot)]


def _clouds_of(wanted: Any) -> list[Any]:
    clouds = _enabled_clouds()
    return [cloud for cloud in clouds if wanted.cloud is None or cloud.is_same_cloud(wanted.cloud)]


def _enabled_clouds() -> list[Any]:
    check: Any = import_module("sky.check")
    compute = import_module("sky.clouds.cloud").CloudCapability.COMPUTE
    enabled: list[Any] = check.get_cached_enabled_clouds_or_refresh(
        compute, raise_if_no_cloud_access=True
    )
    return enabled


def _clouds_left_out(task: Any) -> list[str]:
    """Return the clouds that a task names and SkyPilot may not use."""
    named = {str(wanted.cloud).lower() for wanted in task.resources if wanted.cloud is not None}
    return sorted(named - {str(cloud).lower() for cloud in _enabled_clouds()})


def _zone_of(resources: Any) -> str:
    parts = [str(resources.cloud).lower(), resources.region, resources.zone]
    return "/".join(part for part in parts if part)


def _region_of(zone: str) -> str:
    return "/".join(zone.split("/")[:2])


def _kind_of(resources: Any) -> str:
    gpus = resources.accelerators or {}
    named = ", ".join(f"{name}:{count:g}" for name, count in gpus.items())
    return f"{resources.instance_type} ({named})" if named else str(resources.instance_type)


def _is_among(resources: Any, accelerators: Sequence[str]) -> bool:
    gpus = resources.accelerators or {}
    return not accelerators or any(f"{n}:{count:g}" in accelerators for n, count in gpus.items())


def _is_of(name: str, fleet: str) -> bool:
    rest = name.removeprefix(f"{fleet}-")
    return rest != name and rest.isdigit()


if __name__ == "__main__":
    sys.exit(main())
