"""What others feel of a cold adapter: time between tokens while one a second is loaded.

    python -m bench.adapter_stall            three rounds of 20 s a case
    python -m bench.adapter_stall --quick    one round of 15 s

The embedded model on one thread; four requests for the base model stream without end. Beside them
nothing arrives, or every second a request of four tokens:

  - warm: for an adapter that is in a slot. What it costs is not loading.
  - cold: for one that is on disk only, through our gate and store, as engines do it.
  - vLLM: for one that is on disk as PEFT saved it, loaded by vLLM in the step that needs it.

Cases take turns. The figures are of each case to `warm` in the same round: by the wall's clock,
which needs a quiet machine, and in time that the core's thread took from the processor.
"""

import argparse
import asyncio
import itertools
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.report import Figure, Spread, describe_run, print_figures, print_table, say
from deployments.engine_metrics import EngineMetrics
from serve_app.embedded_model import prepare_embedded_model
from serve_app.messages import AdapterRef, Standing
from serve_app.names import ModelName, TenantId
from tests.support.adapters import ALL_LINEAR, ATTENTION, make_adapter

_NEIGHBOURS = 4
_SLOTS = 4
_IN_MEMORY = 5
_ADAPTERS = 12
"""More than memory holds: each that comes again is cold."""
_KINDS: dict[str, dict[str, Any]] = {
    "r8 q,v": {"rank": 8, "modules": ATTENTION},
    "r64 all": {"rank": 64, "modules": ALL_LINEAR},
}
_CASES = ("nothing", "warm", "cold", "vLLM")
_STANDING = Standing(TenantId("a"), 0, 0, 0)


class Rig:
    """One core with gate and store, and the adapters of one kind."""

    def __init__(self, folder: Path, kind: str) -> None:
        from deployments.adapter_gate import AdapterGate
        from deployments.engine_build import build_store
        from serve_app.config_adapters import AdapterCacheSettings
        from tests.support.core_run import CoreRun

        model = prepare_embedded_model()
        self.folders = [folder / str(i) for i in range(_ADAPTERS)]
        for i, path in enumerate(self.folders):
            make_adapter(path, model, seed=i, **_KINDS[kind])
        self.run = CoreRun(
            model,
            max_model_len=4096,
            max_num_seqs=8,
            enforce_eager=True,
            enable_lora=True,
            max_loras=_SLOTS,
            max_cpu_loras=_IN_MEMORY,
            max_lora_rank=_KINDS[kind]["rank"],
        )
        cache = AdapterCacheSettings(path=str(folder / "cache"))
        self.store = build_store(cache, self.run.core.vllm_config)
        loop = asyncio.get_running_loop()
        series = EngineMetrics(ModelName("m")).adapters()
        self.gate = AdapterGate(self.run.note, self.store, loop, 0, 60.0, series)
        self.gate.attach(self.run.core)
        self.run.sink = self.gate.emit
        self.refs: list[AdapterRef] = []
        self._ids = itertools.count(1000)
        self._names = itertools.count()
        self._sent_to_vllm: list[int] = []

    async def bring_to_disk(self) -> None:
        """Learns the versions, and so has a copy of each on disk."""
        store: Any = self.store
        for i, path in enumerate(self.folders, 1):
            facts = await store.examine(path.as_uri())
            self.refs.append(AdapterRef(i, f"m:{i}", ModelName("m"), facts.version, path.as_uri()))

    def send(self, ref: AdapterRef) -> None:
        """One request, by the gate."""
        from vllm.lora.request import LoRARequest

        from tests.support.core_run import make_request

        lora = LoRARequest(ref.name, ref.id, ref.place, ref.base)
        request = make_request(f"r{next(self._names)}", [5, 6, 7, 8], 4, lora)
        self.gate.accept(request, _STANDING)

    def send_to_vllm(self, path: Path) -> None:
        """One request straight to the core, which loads a new adapter in its step."""
        from vllm.lora.request import LoRARequest

        from tests.support.core_run import make_request

        adapter_id = next(self._ids)
        self._sent_to_vllm.append(adapter_id)
        lora = LoRARequest(str(adapter_id), adapter_id, str(path))
        self.run.core.accept(
            make_request(f"r{next(self._names)}", [5, 6, 7, 8], 4, lora), _STANDING
        )

    async def measure(self, case: str, length_s: float) -> tuple[list[float], list[float]]:
        """Returns the times between neighbours' tokens, by the wall and of the core's thread."""
        loop = asyncio.get_running_loop()
        send = self._sender(case)
        streams = [f"n{next(self._names)}" for _ in range(_NEIGHBOURS)]
        for name in streams:
            self.run.send(name, [9, 10, 11], 4000)
        reading = loop.run_in_executor(None, self._read, streams, length_s)
        while not reading.done():
            await asyncio.sleep(1.0)
            send()
        await reading
        self.gate.abort(streams)
        assert not self.gate.report().failures, self.gate.report().failures
        while sum(self.gate.counts()[:2]):  # noqa: ASYNC110 - another thread's
            await asyncio.sleep(0.05)
        for adapter_id in self._sent_to_vllm:
            await asyncio.wrap_future(self.run.core.drop_adapter(adapter_id))
        self._sent_to_vllm.clear()
        return _gaps(self.run.times_s, streams), _gaps(self.run.worked_s, streams)

    def _read(self, streams: list[str], length_s: float) -> None:
        self.run.read()
        first_s = self.run.times_s[streams[0]]
        while not first_s or first_s[-1] - first_s[0] < length_s:
            self.run.read()

    def _sender(self, case: str) -> Callable[[], None]:
        cold: Iterator[AdapterRef] = itertools.cycle(self.refs[1:])
        paths = itertools.cycle(self.folders[1:])
        senders: dict[str, Callable[[], None]] = {
            "nothing": lambda: None,
            "warm": lambda: self.send(self.refs[0]),
            "cold": lambda: self.send(next(cold)),
            "vLLM": lambda: self.send_to_vllm(next(paths)),
        }
        return senders[case]


def _gaps(times: dict[str, list[float]], streams: list[str]) -> list[float]:
    """Between all tokens but the first of each, in ms."""
    return [1000 * (b - a) for name in streams for a, b in itertools.pairwise(times[name][20:])]


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def measure_kind(folder: Path, kind: str, rounds: int, length_s: float) -> dict[str, Any]:
    """Returns by case, for each round: p50, p99 by the wall, then of the core's thread, in ms."""
    rig = Rig(folder, kind)
    await rig.bring_to_disk()
    await rig.measure("warm", 3.0)
    found: defaultdict[str, list[list[float]]] = defaultdict(list)
    for number in range(rounds):
        for case in _CASES:
            measured = await rig.measure(case, length_s)
            found[case].append([percentile(g, share) for g in measured for share in (0.5, 0.99)])
        texts = [f"{case} {'/'.join(f'{ms:.0f}' for ms in found[case][-1])}" for case in _CASES]
        say(f"{kind}, round {number + 1}, in ms: {', '.join(texts)}")
    rig.run.stop()
    closing: Any = rig.store
    await closing.close()
    return dict(found)


def run_kind(kind: str, rounds: int, length_s: float) -> None:
    """Measures one kind in this process; prints it for the one that asked."""
    import json

    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure_kind(Path(folder), kind, rounds, length_s))
    print("FOUND:" + json.dumps(found), flush=True)


def ask_kind(kind: str, rounds: int, length_s: float) -> dict[str, list[list[float]]]:
    """Measures one kind in a process of its own: one has one core."""
    import json
    import subprocess

    environment = {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    done = subprocess.run(
        [sys.executable, "-m", "bench.adapter_stall", "--kind", kind, str(rounds), str(length_s)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND:"))
    found: dict[str, list[list[float]]] = json.loads(line.removeprefix("FOUND:"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What others feel of a cold adapter.")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--kind", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind is not None:
        kind, n_rounds, length = options.kind
        run_kind(kind, int(n_rounds), float(length))
        return
    rounds, length_s = (1, 15.0) if options.quick else (3, 20.0)
    rows, figures = [], {}
    for kind in _KINDS:
        found = ask_kind(kind, rounds, length_s)
        for case in _CASES:
            rounds_of = list(zip(found[case], found["warm"], strict=True))
            wall, work = (Spread.of(a[i] / b[i] for a, b in rounds_of) for i in (1, 3))
            columns = [Spread.of(a[i] for a, _ in rounds_of).text(0) for i in range(4)]
            rows.append([f"{kind}, {case}", *columns, wall.text(), work.text()])
            if case in ("cold", "vLLM"):
                target = "<= 1.3" if case == "cold" else ""
                figures[f"wall_p99_beside_warm, {kind}, {case}"] = Figure(wall.mid, target)
                figures[f"work_p99_beside_warm, {kind}, {case}"] = Figure(work.mid, target)
    print(describe_run(f"python -m bench.adapter_stall{' --quick' if options.quick else ''}"))
    head = ["adapter, arrivals", "p50", "p99", "p50, thread", "p99, thread"]
    head += ["p99 beside warm", "same, thread"]
    print_table("Time between the neighbours' tokens, ms", head, rows)
    print_figures("adapter_stall", figures, is_quick=options.quick)


if __name__ == "__main__":
    main()
