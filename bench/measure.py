"""One measurement of one system: let it run, warm it up, load it, hold it still again.

Systems that wait for their turn are held still (SIGSTOP): Ray's own processes use a tenth of a core
even when nobody asks for anything. After its turn comes, a Ray that was held still for long notices
late heartbeats and connects some parts anew; nothing is measured before requests pass again.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import uvloop

from bench.load import Ask, LoadResult, run_load
from bench.processes import Memory, Role
from bench.report import say
from bench.systems import NotRunningError, System, wait_ready

_WARM_UP_S = 2.0
_RECOVERY_S = 60.0
_QUIET_CORES = 0.15

Asks = Callable[[int], Iterator[Ask]]
"""Makes an endless series of requests, the same for every system, another for every number."""


@dataclass(frozen=True)
class Measured:
    """What one run of a load on a system showed.

    Args:
        load: What the clients saw.
        cpu_s: CPU seconds of the system during the run, by role.
        others_cores: Cores that were used by neither the system nor the client.
        memory: After the run.
    """

    load: LoadResult
    cpu_s: dict[Role, float]
    others_cores: float
    memory: Memory

    @property
    def cpu_s_per_1k_tokens(self) -> dict[Role, float]:
        """CPU seconds per 1,000 output tokens, by role."""
        n = self.load.output_tokens / 1000
        return {role: cpu_s / n for role, cpu_s in self.cpu_s.items()}


@contextmanager
def running(systems: dict[str, System]) -> Iterator[dict[str, System]]:
    """Starts all systems one after the other, and holds each still once it is ready."""
    try:
        for system in systems.values():
            say(f"starting {system.name}")
            system.start()
            say(f"  ready after {wait_ready(system):.0f} s")
            system.processes.pause()
        yield systems
    finally:
        for system in systems.values():
            system.stop()


def measure(
    system: System,
    asks: Asks,
    warm_up: Asks,
    clients: int,
    n_requests: int,
    *,
    tries: int = 1,
    base_url: str | None = None,
) -> Measured:
    """Lets a paused system run, warms it up, loads it and pauses it again.

    Args:
        system: Ready, and held still.
        asks: What is measured.
        warm_up: Sent before.
        clients: Requests at a time.
        n_requests: In all.
        tries: Runs at most. One during which something else used the processor is done again; the
            quietest one counts.
        base_url: Where to ask; None means the system's usual address.

    Raises:
        NotRunningError: The system does not answer, or answers wrongly.
    """
    url = base_url or system.base_url
    system.processes.resume()
    try:
        wait_ready(system)
        _warm_up(system, url, warm_up, clients)
        found: list[Measured] = []
        for n in range(tries):
            # Never the same prompts twice on one system: they would be in its prefix cache.
            found.append(_measure_once(system, url, asks(n), clients, n_requests))
            if found[-1].others_cores <= _QUIET_CORES:
                break
            say(f"  something else used {found[-1].others_cores:.2f} cores during the next line")
        return min(found, key=lambda measured: measured.others_cores)
    finally:
        system.processes.pause()


def _warm_up(system: System, url: str, asks: Asks, clients: int) -> None:
    """Sends short requests until they pass without an error for a while."""
    give_up_s = time.monotonic() + _RECOVERY_S
    good_since_s: float | None = None
    while good_since_s is None or time.monotonic() - good_since_s < _WARM_UP_S:
        result = uvloop.run(run_load(url, asks(0), clients, clients))
        if not result.n_errors:
            good_since_s = good_since_s or time.monotonic() - result.wall_s
            continue
        good_since_s = None
        if time.monotonic() > give_up_s:
            raise NotRunningError(f"{system.name} gives no right answers: {result.errors}")
        time.sleep(0.5)


def _measure_once(
    system: System, url: str, asks: Iterator[Ask], clients: int, n_requests: int
) -> Measured:
    before, everything = system.processes.cpu_s(), _busy_s()
    load = uvloop.run(run_load(url, asks, clients, n_requests))
    now, after = _busy_s(), system.processes.cpu_s()
    if load.n_errors:
        raise NotRunningError(f"{system.name}: {load.n_errors} errors, such as {load.errors}")
    cpu_s = {role: after[role] - before.get(role, 0.0) for role in after}
    others_s = now - everything - sum(cpu_s.values()) - load.client_cpu_s
    return Measured(load, cpu_s, max(0.0, others_s / load.wall_s), system.processes.memory())


def _busy_s() -> float:
    """CPU seconds of the whole machine that were not idle."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)
