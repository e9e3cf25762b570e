"""How many replicas Serve keeps of a deployment over time, their cost, and what a start takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import httpx

from bench.ray_served import RayServed
from bench.report import say

Replicas = Mapping[str, str]
"""States of a deployment's replicas, by id."""
Sample = tuple[float, Replicas]
"""Seconds of the monotonic clock, and what Serve lists then."""


@dataclass
class ReplicaLook:
    """Asks Serve for a deployment's replicas, and says so when there are more or fewer."""

    served: RayServed
    deployment: str
    _shown: tuple[int, int] = (0, 0)
    _problem: str = ""

    def __call__(self) -> Replicas | None:
        """Returns them; None while Ray's dashboard does not answer."""
        try:
            replicas = self.served.list_replicas(self.deployment)
        except httpx.HTTPError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                say(f"  Ray's dashboard does not say which replicas there are: {error}")
            return None
        shown = len(replicas), len(running_of(replicas))
        if shown != self._shown:
            self._shown = shown
            say(f"  {shown[0]} replicas, {shown[1]} of them serve")
        return replicas


def running_of(replicas: Replicas) -> set[str]:
    """Returns those that serve."""
    return {replica for replica, state in replicas.items() if state == "RUNNING"}


def sum_engine_s(samples: Sequence[Sample], since_s: float, until_s: float) -> float:
    """Returns seconds of all replicas together in some time; each sample holds until the next."""
    ends_s = [at_s for at_s, _ in samples[1:]] + [until_s]
    return sum(
        len(replicas) * max(min(end_s, until_s) - max(at_s, since_s), 0.0)
        for (at_s, replicas), end_s in zip(samples, ends_s, strict=True)
    )


def find_starts_s(samples: Sequence[Sample]) -> list[float]:
    """Returns what the replicas that came meanwhile took from the list to their serving."""
    known = set(samples[0][1]) if samples else set()
    listed_s: dict[str, float] = {}
    found = []
    for (before_s, _), (at_s, replicas) in pairwise(samples):
        for replica in replicas.keys() - known:
            # It was listed between the two looks.
            listed_s.setdefault(replica, (before_s + at_s) / 2)
        for replica in running_of(replicas) & listed_s.keys():
            found.append(at_s - listed_s.pop(replica))
            known.add(replica)
    return found
