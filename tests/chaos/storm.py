"""Things that go wrong, in an order drawn from a seed, and what must hold after each.

    python -m tests.chaos.storm --seconds 600 --seed 7

Streams run all the time, some of them read slowly, some are left. The promises: every stream whose
client stays ends with exactly its tokens; after each event the platform serves again with no hand
on it; what clients have left is run by nobody.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from serve_app.config import parse_settings
from serve_app.messages import EngineId
from serve_app.names import ModelName
from tests.support.clients import post
from tests.support.echo_load import EchoLoad, make_request
from tests.support.platform import LocalPlatform
from tests.support.settings import write_args, write_model
from tests.support.tiny_model import make_tiny_model

_MODEL = ModelName("tiny")
_N_ENGINES = 3
_N_STREAMS = 6
_SERVES_AGAIN_S = 30.0


class Storm:
    """A platform under load to which things happen.

    Args:
        platform: Echo engines and the router in processes of their own.
        rng: Draws what is asked for and whom it hits.
    """

    def __init__(self, platform: LocalPlatform, rng: random.Random) -> None:
        self._platform = platform
        self._rng = rng
        self._load = EchoLoad(platform.url, _MODEL, _N_STREAMS, rng)

    @property
    def n_answers(self) -> int:
        """Whole, right answers so far."""
        return self._load.n_answers

    # --- events -----------------------------------------------------------------------------

    def kill_engine(self) -> None:
        """SIGKILL to one engine; another one is started, as Serve does."""
        self._platform.kill_engine(self._draw_engine())
        self._platform.add_engine(_MODEL)

    def kill_all_engines(self) -> None:
        """SIGKILL to all of them at once; requests are refused until one is back."""
        self._load.may_be_refused = True
        for engine_id in list(self._platform.engine_processes):
            self._platform.kill_engine(engine_id)
        for _ in range(_N_ENGINES):
            self._platform.add_engine(_MODEL)

    def stop_engine_for_a_while(self) -> None:
        """SIGSTOP to one engine until everybody has noticed, then SIGCONT."""
        engine = self._platform.engine_processes[self._draw_engine()]
        engine.signal(signal.SIGSTOP)
        time.sleep(self._rng.uniform(0.5, 9.0))
        engine.signal(signal.SIGCONT)

    def hang_engine(self) -> None:
        """One engine's core makes no step any more; its process ends itself for that."""
        engine_id = self._draw_engine()
        engine = self._platform.engine_processes.pop(engine_id)
        engine.signal(signal.SIGUSR1)
        self._platform.wait_until(lambda: not engine.is_alive(), _SERVES_AGAIN_S, "ended")
        self._platform.add_engine(_MODEL)

    def drain_engine(self) -> None:
        """SIGTERM to one engine, which leaves within its `drain_timeout_s`."""
        engine_id = self._draw_engine()
        self._platform.engine_processes.pop(engine_id).signal(signal.SIGTERM)
        self._platform.add_engine(_MODEL)

    def kill_router(self) -> None:
        """SIGKILL to the router; another one is started at once."""
        self._platform.kill_router(_MODEL)
        self._platform.start_router(_MODEL)

    def leave_a_stream(self) -> None:
        """A client goes away in the middle of its stream."""
        request = make_request(_MODEL, "to be left ", 400)
        with httpx.stream(
            "POST", f"{self._platform.url}/v1/completions", json=request, timeout=60.0
        ) as answer:
            next(answer.iter_lines())

    def _draw_engine(self) -> EngineId:
        return self._rng.choice(sorted(self._platform.engine_processes))

    # --- promises ---------------------------------------------------------------------------

    def check(self) -> None:
        """Holds everything to what was promised.

        Raises:
            AssertionError: Something does not hold.
        """
        self._platform.wait_until(self._is_whole, _SERVES_AGAIN_S, "whole again")
        self._load.may_be_refused = False
        answer = post(
            self._platform.url, "/v1/completions", make_request(_MODEL, "x y", 2, stream=False)
        )
        assert answer.status_code == 200, answer.text
        assert not self._load.errors, "; ".join(self._load.errors)
        assert self._load.is_alive

    def _is_whole(self) -> bool:
        engines = self._platform.list_engines()
        ready = {engine["id"] for engine in engines if engine["state"] == "ready"}
        # The platform may not know yet that an engine is dead.
        return ready == self._platform.engine_processes.keys()

    def check_end(self) -> None:
        """Lets all streams end and sees that nothing is left."""
        self._load.stop()
        self._platform.wait_until(lambda: self._platform.count_running() == 0, 20.0, "idle")
        assert not self._load.errors, "; ".join(self._load.errors)
        assert self.n_answers > 0

    def start(self) -> None:
        """Begins to ask."""
        self._load.start()


@contextmanager
def storm_over(folder: Path, seed: int) -> Iterator[Storm]:
    """A platform of three echo engines under load."""
    model = write_model(
        _MODEL,
        source={"kind": "local", "path": str(make_tiny_model(folder / "model"))},
        engine={"kind": "echo", "tokens_per_s": 50.0, "max_model_len": 1024},
        drain_timeout_s=2.0,
        hang_timeout_s=3.0,
    )
    with LocalPlatform(
        parse_settings(write_args(model)),
        folder,
        engines_in_processes=True,
        routers_in_processes=True,
        n_engines=_N_ENGINES,
    ) as platform:
        storm = Storm(platform, random.Random(seed))
        platform.wait_until(storm._is_whole, 120.0, "whole")
        storm.start()
        yield storm
        storm.check_end()


def ride_out(storm: Storm, events: Sequence[Callable[[], None]], between_s: float) -> None:
    """Lets events happen one after the other, and checks the promises after each."""
    for event in events:
        time.sleep(between_s)
        print(f"{time.strftime('%X')} {event.__name__}", flush=True)
        event()
        storm.check()


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    rng = random.Random(options.seed)
    ends_s = time.monotonic() + options.seconds
    n_events = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        storm_over(Path(folder), options.seed) as storm,
    ):
        events = [
            storm.kill_engine,
            storm.kill_engine,
            storm.kill_all_engines,
            storm.stop_engine_for_a_while,
            storm.hang_engine,
            storm.drain_engine,
            storm.kill_router,
            storm.leave_a_stream,
        ]
        while time.monotonic() < ends_s:
            event = rng.choice(events)
            ride_out(storm, [event], rng.uniform(0.0, 3.0))
            n_events += 1
            print(f"{n_events}: {event.__name__}; {storm.n_answers} answers right", flush=True)
    print(f"Seed {options.seed}: {n_events} events, {storm.n_answers} answers, all as promised.")


if __name__ == "__main__":
    main(sys.argv[1:])
