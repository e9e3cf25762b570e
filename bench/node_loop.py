"""Times how nodes come for what Ray has no room for: our controller beside Ray's own autoscalers.

    python -m bench.node_loop --rounds 5

Each turn has a head of its own without processors, on loopback, and nodes with one processor each
(`cluster.local_nodes`), the very same for all. An actor that wants a processor is created at a
time drawn from a seed; it ends once it runs; then three at once. Last, who decides is killed, just
after it has asked for a node: in one turn it is started again at once, in another nobody does it.

Ours looks every 10 s by default, Ray's every 5 s; so ours is there with 5 s, too.
"""

import argparse
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.node_systems import OURS_SOONER, WAYS, NodeSystem, node_system, use_token, wait_until
from bench.report import Figure, Spread, describe_run, print_figures, print_table, say
from cluster.policy.fleet import NodeId

_IDLE_S = 15.0
"""Without work, on all sides, until a node is to go."""
_AT_ONCE = 3
_PERIOD_S = 10.0
"""Of the slower: within it an actor is created at any time."""
_SETTLE_S = 6.0
_MOST_S = 120.0
_ALONE_S = 40.0
"""For so long one waits for somebody who was killed to come back by himself."""
_CLOUD_S = 20.0
"""How long a node takes to start where who decides is killed meanwhile."""


@dataclass(frozen=True)
class Served:
    """What came of actors without room. In seconds since they were created, but `gone_s`.

    Attributes:
        asked_s: To the first node that was asked for.
        joined_s: To the first that joined.
        runs_s: Until all actors ran.
        gone_s: From the end of the actors until all nodes were gone, less the time without work
            that was set.
        n_asked: Nodes that were asked for.
    """

    asked_s: float
    joined_s: float
    runs_s: float
    gone_s: float
    n_asked: int


Rounds = dict[str, list[Served]]
"""What came of each way's turns."""


@dataclass(frozen=True)
class Left:
    """What became of a cluster whose decider was killed and not started again.

    Attributes:
        is_back: Whether it came back by itself.
        n_served: Actors that ran, of two: the first waited for the node that was asked for, the
            second came when that was full.
        n_left: Nodes that were still there after their time without work.
        gone_s: From the start of another one until they were gone.
    """

    is_back: bool
    n_served: int
    n_left: int
    gone_s: float


class LateError(Exception):
    """Something did not come about at all; the text says what."""


def serve(system: NodeSystem, count: int) -> Served:
    """Has actors served and waits until their nodes are gone."""
    watch = Watch(system, count)
    watch.until_all_run()
    return watch.served()


class Watch:
    """Actors from their creation to the end of their nodes.

    Args:
        system: Who serves them.
        count: How many are created, now.
    """

    def __init__(self, system: NodeSystem, count: int) -> None:
        self._system = system
        self._before = len(system.actors.ran())
        self._count = count
        self._asked: dict[NodeId, float] = {}
        self._joined_s: float | None = None
        self._runs_s = 0.0
        self._created_s = system.actors.add(count)

    def until_asked(self) -> None:
        """Waits until a node is asked for."""
        self._wait(lambda: bool(self._look()), "a node that is asked for")

    def until_all_run(self) -> float:
        """Waits until all actors run; returns the seconds since they were created."""
        self._wait(lambda: self._look() and self._n_ran() >= self._count, "actors that run")
        self._runs_s = self._system.actors.ran()[-1] - self._created_s
        return self._runs_s

    def served(self) -> Served:
        """Ends the actors and waits until all nodes are gone."""
        ended_s = self._system.actors.end()
        self._wait(lambda: not self._look(), "nodes that go")
        gone_s = time.time() - ended_s - self._system.cell.idle_s
        if self._joined_s is None:
            raise LateError(f"{self._system.way}: no node was seen to join")
        asked_s = min(self._asked.values()) - self._created_s
        joined_s = self._joined_s - self._created_s
        return Served(asked_s, joined_s, self._runs_s, gone_s, len(self._asked))

    def _look(self) -> bool:
        """Notes what there is; returns whether there are nodes."""
        asked = self._system.cell.asked()
        self._asked |= asked
        if self._joined_s is None and self._system.joined() & self._asked.keys():
            self._joined_s = time.time()
        return bool(asked)

    def _n_ran(self) -> int:
        return len(self._system.actors.ran()) - self._before

    def _wait(self, is_so: Callable[[], bool], what: str) -> None:
        if not wait_until(is_so, _MOST_S):
            n_there, n_joined = len(self._system.cell.asked()), len(self._system.joined())
            raise LateError(
                f"{self._system.way}: no {what} within {_MOST_S:.0f} s; {self._n_ran()} of "
                f"{self._count} actors ran, {len(self._asked)} nodes were asked for, {n_there} "
                f"are there, {n_joined} have joined"
            )


def take_turn(way: str, rng: random.Random) -> tuple[Served, Served]:
    """Serves one actor, then some at once."""
    with node_system(way, _IDLE_S) as system:
        _check_loopback(system)
        time.sleep(_SETTLE_S + rng.uniform(0.0, _PERIOD_S))
        single = serve(system, 1)
        time.sleep(rng.uniform(0.0, _PERIOD_S))
        burst = serve(system, _AT_ONCE)
        _check_loopback(system)
    say(f"{way}: {single}")
    say(f"{way}: {_AT_ONCE} at once: {burst}")
    return single, burst


def kill_and_start(way: str) -> Served:
    """Kills who decides while a node starts, starts it again at once, and serves."""
    with node_system(way, _IDLE_S, start_s=_CLOUD_S) as system:
        time.sleep(_PERIOD_S)
        watch = Watch(system, 1)
        watch.until_asked()
        system.kill_decider()()
        if system.joined():
            raise LateError(f"{way}: its node had joined before it was dead")
        watch.until_all_run()
        # A second node for the same work would have been asked for by now.
        time.sleep(2 * _PERIOD_S)
        served = watch.served()
    say(f"{way}: killed and started again: {served}")
    return served


def kill_and_leave(way: str) -> Left:
    """Kills who decides while a node starts, and waits for anybody else to see to it."""
    with node_system(way, _IDLE_S, start_s=_CLOUD_S) as system:
        time.sleep(_PERIOD_S)
        first = Watch(system, 1)
        first.until_asked()
        start_again = system.kill_decider()
        first.until_all_run()
        system.actors.add(1)
        wait_until(lambda: len(system.actors.ran()) == 2, _ALONE_S)
        n_served, is_back = len(system.actors.ran()), bool(system.deciders())
        system.actors.end()
        wait_until(lambda: not system.cell.asked(), _IDLE_S + _ALONE_S)
        n_left, began_s = len(system.cell.asked()), time.time()
        if not is_back:
            start_again()
        if not wait_until(lambda: not system.cell.asked(), _MOST_S):
            raise LateError(f"{way}: nodes do not go, though who decides was started again")
        left = Left(is_back, n_served, n_left, time.time() - began_s)
    say(f"{way}: killed and left: {left}")
    return left


def _check_loopback(system: NodeSystem) -> None:
    outside = system.listening_outside()
    if outside:
        raise RuntimeError(f"{system.way} listens beyond this machine: {', '.join(outside)}")


def _take_turns(
    ways: Sequence[str], n_rounds: int, rng: random.Random
) -> tuple[Rounds, Rounds, list[str]]:
    """Returns what came of one actor and of some at once, and what did not come at all."""
    single: Rounds = {way: [] for way in ways}
    burst: Rounds = {way: [] for way in ways}
    late: list[str] = []
    for i in range(n_rounds):
        for way in ways if i % 2 == 0 else reversed(ways):
            try:
                one, many = take_turn(way, rng)
            except LateError as error:
                late.append(str(error))
                say(f"not in the tables: {error}")
                continue
            single[way].append(one)
            burst[way].append(many)
    return single, burst, late


def _print_served(title: str, rounds: Rounds) -> None:
    head = ["way", "asked, s", "joined, s", "all run, s", "gone beyond idle, s", "nodes asked for"]
    rows = [
        [
            way,
            *(_text(served, name, 1) for name in ("asked_s", "joined_s", "runs_s", "gone_s")),
            _text(served, "n_asked", 0),
        ]
        for way, served in rounds.items()
        if served
    ]
    print_table(title, head, rows)


def _text(served: Sequence[Served], name: str, digits: int) -> str:
    spread = Spread.of(getattr(each, name) for each in served)
    return spread.text(digits) if len(served) > 1 else f"{spread.mid:.{digits}f}"


def _print_left(left: dict[str, Left]) -> None:
    head = ["way", "back by itself", "served, of 2", "nodes left", "gone after a start, s"]
    rows = [
        [name, "yes" if a.is_back else "no", str(a.n_served), str(a.n_left), f"{a.gone_s:.1f}"]
        for name, a in left.items()
    ]
    print_table(f"Killed and left for {_ALONE_S:.0f} s", head, rows)


def _figures(single: Rounds, burst: Rounds) -> dict[str, Figure]:
    figures = {}
    for what, rounds in (("one", single), ("burst", burst)):
        for way, served in ((way, served) for way, served in rounds.items() if served):
            for name in ("asked_s", "joined_s", "runs_s", "gone_s", "n_asked"):
                middle = Spread.of(getattr(each, name) for each in served).mid
                figures[f"{way}, {what}: {name}"] = Figure(middle)
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each, one after the other")
    parser.add_argument("--quick", action="store_true", help="one round, and nobody is killed")
    parser.add_argument("--seed", type=int, default=1, help="draws when actors are created")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="which to time")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    use_token()
    ways: Sequence[str] = options.ways
    n_rounds, rng = 1 if options.quick else options.rounds, random.Random(options.seed)
    single, burst, late = _take_turns(ways, n_rounds, rng)
    killed = [] if options.quick else [way for way in ways if way != OURS_SOONER]
    started = {way: [kill_and_start(way)] for way in killed}
    left = {way: kill_and_leave(way) for way in killed}
    print(describe_run(f"python -m bench.node_loop {' '.join(sys.argv[1:])}".strip()))
    _print_served("One actor that has no room", single)
    _print_served(f"{_AT_ONCE} at once", burst)
    if killed:
        _print_served(f"Killed and started again, nodes take {_CLOUD_S:.0f} s to start", started)
        _print_left(left)
    for text in late:
        print(f"- not in the tables: {text}")
    print_figures("node_loop", _figures(single, burst), is_quick=options.quick)


if __name__ == "__main__":
    main()
