"""Each process of the platform dies once under load, on a real Ray: what that costs.

    python -m tests.chaos.deaths            every one; prints the table of docs/operations.md
    python -m tests.chaos.deaths --only gcs,router

Clients ask all the time over HAProxy. A death costs its errors (answers that were not whole), the
longest pause that a whole answer had, and the time until there is again what there was before.
Nobody lends a hand, except for Ray's head: what restarts that is not Ray's, so it is done here.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.deployment_names import GATEWAY, LEDGER, engine_of, router_of
from serve_app.names import ModelName
from tests.support.echo_load import EchoLoad
from tests.support.ray_platform import SMALL, RayPlatform
from tests.support.settings import write_args, write_model
from tests.support.tiny_model import make_tiny_model

MODEL = ModelName("tiny")
N_ENGINES = 2
DRAIN_TIMEOUT_S = 12.0
_N_STREAMS = 4
_BACK_S = 120.0
_SETTLE_S = 4.0
"""Of load before and after a death."""


@dataclass(frozen=True)
class Cost:
    """What a death cost."""

    errors: tuple[str, ...]
    longest_pause_s: float
    back_s: float
    """Until as much ran as before, with other processes, and answers came."""
    n_answers: int
    """Whole answers from the death until then and some seconds more."""


class Deaths:
    """A platform on Ray under load, and ways for it to lose a process.

    Args:
        platform: With this module's model on it.
        load: Clients that ask.
    """

    def __init__(self, platform: RayPlatform, load: EchoLoad) -> None:
        self.platform = platform
        self._load = load
        self.kinds: dict[str, Callable[[], Callable[[], bool]]] = {
            "engine": lambda: self._kill_replica(engine_of(MODEL)),
            "router": lambda: self._kill_replica(router_of(MODEL)),
            "ledger": lambda: self._kill_replica(LEDGER),
            "gateway": lambda: self._kill_replica(GATEWAY),
            "controller": lambda: self._kill("ServeController"),
            "proxy": lambda: self._kill("haproxy -db"),
            "proxy_manager": lambda: self._kill("HAProxyManager"),
            "gcs": self._replace_gcs,
        }
        """What kills one, and returns whether all is back."""

    @property
    def errors(self) -> list[str]:
        """What came instead of whole answers, all the time."""
        return self._load.errors

    def suffer(self, kind: str) -> Cost:
        """Has one process die and waits until all is back."""
        time.sleep(_SETTLE_S)
        self._load.longest_pause_s = 0.0
        n_errors, n_answers = len(self._load.errors), self._load.n_answers
        is_back = self.kinds[kind]()
        back_s = self.platform.wait_until(
            lambda: is_back() and self._is_whole(), _BACK_S, f"back after the death of {kind}"
        )
        n_before = self._load.n_answers
        time.sleep(_SETTLE_S)
        self.platform.wait_until(lambda: self._load.n_answers > n_before, 30.0, "answering")
        errors = tuple(self._load.errors[n_errors:])
        n_answers = self._load.n_answers - n_answers
        return Cost(errors, self._load.longest_pause_s, back_s, n_answers)

    def _kill_replica(self, deployment: str) -> Callable[[], bool]:
        n_before = len(self.platform.pids(deployment))
        killed = self.platform.kill_replica(deployment)

        def is_back() -> bool:
            pids = self.platform.pids(deployment)
            return killed not in pids and len(pids) == n_before

        return is_back

    def _kill(self, mark: str) -> Callable[[], bool]:
        killed = self.platform.find(mark)
        assert killed, f"no process is a {mark}"
        for process in killed:
            process.kill()
        before = set(killed)
        return lambda: bool(set(self.platform.find(mark)) - before)

    def _replace_gcs(self) -> Callable[[], bool]:
        self.platform.replace_gcs()
        return lambda: bool(self.platform.find("gcs_server"))

    def _is_whole(self) -> bool:
        if not self.platform.is_ready():
            return False
        engines = self.platform.ready()["models"][MODEL]["engines"]
        return [engine["state"] for engine in engines].count("ready") >= N_ENGINES


def write_settings(model_folder: Path, **changes: Any) -> dict[str, Any]:
    """The platform's settings: an echo model with two engines, and a tenant with a limit."""
    model = write_model(
        MODEL,
        source={"kind": "local", "path": str(model_folder)},
        engine={"kind": "echo", "tokens_per_s": 50.0, "max_model_len": 1024},
        accelerator={"kind": "cpu", "cpus": 0.3},
        replicas={"min": N_ENGINES, "max": N_ENGINES},
        drain_timeout_s=DRAIN_TIMEOUT_S,
    )
    # A limit that is never reached makes every request need the ledger.
    tenants = [{"id": "anonymous", "limits": {"requests_per_min": 1_000_000}}]
    return write_args(model | changes, tenants=tenants, **SMALL)


@contextmanager
def deaths_under_load(folder: Path, seed: int = 0) -> Iterator[Deaths]:
    """A platform on Ray with load on it."""
    # Room for the two engines and no more: a third one goes to another node.
    with RayPlatform(keeps_state=True, cpus=1) as platform:
        platform.deploy_and_wait(write_settings(make_tiny_model(folder / "model")))
        load = EchoLoad(platform.url, MODEL, _N_STREAMS, random.Random(seed), (20, 150))
        load.start()
        yield Deaths(platform, load)
        load.stop()


def _shorten(error: str) -> str:
    """What it was, without what was asked."""
    return error.partition(" tokens: ")[2][:400]


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="kinds, with commas")
    options = parser.parse_args(argv)
    print("| killed | answers that broke | longest pause of a whole one | all back after |")
    print("|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder, deaths_under_load(Path(folder)) as deaths:
        for kind in options.only.split(",") if options.only else deaths.kinds:
            cost = deaths.suffer(kind)
            print(
                f"| {kind} | {len(cost.errors)} of {cost.n_answers + len(cost.errors)} "
                f"| {cost.longest_pause_s:.2f} s | {cost.back_s:.1f} s |",
                flush=True,
            )
            for error, n in Counter(map(_shorten, cost.errors)).items():
                print(f"  {n} times {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
