"""The same comparison on the running platform: a step of demand, engines that come and go.

Gateway, router and engines are the real ones, in one process, with echo engines whose batch takes
what a real one's does. Serve's part, to start and to stop engines, is played by `LiveBoard`, so
that one run may follow Serve's policy, which cannot see our requests otherwise.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load import Ask
from bench.open_load import Shot, run_open
from bench.scale_policies import ServeRequests
from serve_app.config import parse_settings
from serve_app.embedded_model import prepare_embedded_model
from serve_app.messages import EngineId
from serve_app.names import ModelName
from serve_app.policy.scaling import Look, Wanted
from tests.support.platform import LocalPlatform
from tests.support.settings import write_args, write_model

MODEL = ModelName("echo")
_N_TOKENS, _STEP_S, _MAX_SEQS = 32, 0.08, 8
_EACH_RPS = _MAX_SEQS / (_N_TOKENS * _STEP_S)
_LEVELS = ((40.0, 0.6), (80.0, 2.6), (80.0, 0.6))
"""Seconds, and demand in engines' worth."""
_START_S, _TTFT_S, _MOST = 5.0, 1.0, 5
_UP_S, _DOWN_S, _LOOK_BACK_S = 3.0, 60.0, 3.0
"""Serve's defaults for a course that is shorter than a real one by ten."""


@dataclass(frozen=True)
class _ServeInside:
    """Serve's policy in the place of ours."""

    policy: ServeRequests
    least: int = 1

    def decide(self, look: Look) -> Wanted:
        """Returns what Serve would set."""
        return Wanted(self.policy.decide(look, self.policy.wanted), "as Serve does")


class LiveBoard:
    """Starts and stops engines as it is told, as Serve would, and counts what they cost."""

    def __init__(self) -> None:
        self.platform: LocalPlatform
        self.engine_s = 0.0
        self._since_s: dict[EngineId, float] = {}
        self._starting: list[tuple[float, Future[None]]] = []
        self._stopping: list[Future[None]] = []

    def read(self, model: ModelName) -> int | None:
        """Returns nothing: each run begins anew."""
        return None

    def write(self, model: ModelName, engines: int) -> None:
        """Has so many engines run or start."""
        self._starting = [(at_s, f) for at_s, f in self._starting if not f.done()]
        n = len(self._since_s) + len(self._starting)
        for _ in range(engines - n):
            self._starting.append((time.monotonic(), self._run(self._start())))
        for _ in range(n - engines):
            if self._starting:
                at_s, start = self._starting.pop()
                start.cancel()
                self.engine_s += time.monotonic() - at_s
            else:
                engine_id = next(reversed(self._since_s))
                self._stopping.append(
                    self._run(self._stop(engine_id, self._since_s.pop(engine_id)))
                )

    def adopt(self) -> None:
        """Counts from now on what runs."""
        self._since_s = dict.fromkeys(self.platform.engines, time.monotonic())
        self.engine_s = 0.0

    def close(self) -> float:
        """Returns the engine-seconds so far."""
        now_s = time.monotonic()
        running = sum(now_s - since_s for since_s in self._since_s.values())
        starting = sum(now_s - at_s for at_s, start in self._starting if not start.done())
        return self.engine_s + running + starting

    def _run(self, work: Any) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self.platform._loop)

    async def _start(self) -> None:
        asked_s = time.monotonic()
        await asyncio.sleep(_START_S)
        engine_id = await self.platform._start_engine(self.platform._model(MODEL))
        self._since_s[engine_id] = asked_s

    async def _stop(self, engine_id: EngineId, since_s: float) -> None:
        await self.platform.engines.pop(engine_id).stop()
        self.engine_s += time.monotonic() - since_s


def list_shots(url: str, seed: int) -> list[Shot]:
    """Returns the requests of the course, in time."""
    chance, at_s, from_s = random.Random(seed), 0.0, 0.0
    shots = []
    for duration_s, level in _LEVELS:
        while (at_s := at_s + chance.expovariate(level * _EACH_RPS)) < from_s + duration_s:
            prompt = [chance.randrange(100, 2000) for _ in range(16)]
            body = {"model": MODEL, "prompt": prompt, "max_tokens": _N_TOKENS, "stream": True}
            body |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
            ask = Ask("/v1/completions", json.dumps(body).encode(), True, 16, _N_TOKENS)
            shots.append(Shot(at_s, url, ask))
        at_s = from_s = from_s + duration_s
    return shots


def measure(policy: str, aim: float, seed: int) -> dict[str, float | str]:
    """Runs the course under one policy."""
    engine = {
        "kind": "echo",
        "batch": {"step_s": _STEP_S},
        "max_num_seqs": _MAX_SEQS,
        "max_model_len": 512,
    }
    model = write_model(
        MODEL,
        source={"kind": "local", "path": str(prepare_embedded_model())},
        engine=engine,
        replicas={"min": 1, "max": _MOST},
        autoscaling={"load": aim, "ttft_target_s": _TTFT_S, "scale_down_after_s": _DOWN_S / 5}
        if policy == "ours"
        else {},
        drain_timeout_s=60.0,
    )
    board = LiveBoard()
    with tempfile.TemporaryDirectory() as folder:
        store = {"state_dir": str(Path(folder) / "state")}
        settings = parse_settings(write_args(model, store=store))
        with LocalPlatform(settings, Path(folder), board=board) as platform:
            board.platform = platform
            board.adopt()
            if policy == "serve":
                inside = ServeRequests(aim, 1, _MOST, _UP_S, _DOWN_S, _LOOK_BACK_S)
                known = platform.router(MODEL)._autoscaler._models[MODEL]
                known.scaler = _ServeInside(inside)  # type: ignore[assignment]  # as it is asked
            duration_s = sum(seconds for seconds, _ in _LEVELS)
            load = asyncio.run(run_open(list_shots(platform.url, seed), duration_s))
            engine_s = board.close()
    done = [answer for answer in load.answers if answer.arrivals_s]
    n_good = sum(answer.ttft_s <= _TTFT_S for answer in done)
    return {
        "policy": policy,
        "aim": aim,
        "in time": round(n_good / len(load.answers), 4),
        "engine-s": round(engine_s, 1),
        "requests": len(load.answers),
        "errors": len(load.errors),
        "sent late": load.n_late,
    }


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--load", type=float, action="append", help="ours")
    parser.add_argument("--per-engine", type=float, action="append", help="Serve's")
    args = parser.parse_args(sys.argv[1:])
    plans = [("ours", aim) for aim in args.load or [0.8]]
    plans += [("serve", aim) for aim in args.per_engine or [2.0, 6.0]]
    for policy, aim in plans:
        print(json.dumps(measure(policy, aim, args.seed)), flush=True)


if __name__ == "__main__":
    main()
