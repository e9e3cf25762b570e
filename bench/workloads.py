"""The reference workloads: who sends how much, when. Deterministic by seed.

Source: Sheng et al., *Fairness in Serving Large Language Models*, OSDI 2024, section 5; the
arena-like trace has the shape that the paper describes, drawn anew.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench.sim_engine import SimRequest
from serve_app.names import TenantId

REFERENCE_RPS = 1.744
"""Requests/s of 256/256 that the paper's engine serves; rates are scaled by one's own capacity."""

_PHASE_S = 60.0
Source = Iterator[SimRequest]


@dataclass(frozen=True)
class Workload:
    """One experiment."""

    name: str
    make: Callable[[float, random.Random, float], list[SimRequest]]
    """From duration, chance and factor of rates to requests in the order of arrival."""
    duration_s: float = 600.0
    weights: Mapping[TenantId, float] = field(default_factory=dict)
    is_mixed: bool = False
    """Whether tenants send different lengths in different amounts."""
    light: Sequence[TenantId] = ()
    """Tenants within their share."""
    better: Mapping[str, float] = field(default_factory=dict)
    """Figures to beat, at most."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """Figures of the paper's own runs."""


def name_tenant(number: int) -> TenantId:
    """Returns the id of tenant number 1, 2 and so on."""
    return TenantId(f"tenant-{number:02}")


def steady(
    tenant: TenantId, rps: float, until_s: float, lengths: tuple[int, int], start_s: float = 0.0
) -> Source:
    """Yields requests at equal distances."""
    n = 0
    while (at_s := start_s + n / rps) < until_s:
        yield SimRequest(at_s, tenant, *lengths, lengths[1])
        n += 1


def on_off(
    tenant: TenantId, rps: float, until_s: float, lengths: tuple[int, int], start_s: float = 0.0
) -> Source:
    """Yields requests at equal distances for a minute, then none for a minute, and again."""
    while start_s < until_s:
        yield from steady(tenant, rps, min(start_s + _PHASE_S, until_s), lengths, start_s)
        start_s += 2 * _PHASE_S


def poisson(
    tenant: TenantId, rps: float, until_s: float, lengths: tuple[int, int], rng: random.Random
) -> Source:
    """Yields requests at random."""
    at_s = rng.expovariate(rps)
    while at_s < until_s:
        yield SimRequest(at_s, tenant, *lengths, lengths[1])
        at_s += rng.expovariate(rps)


def rising(
    tenant: TenantId, first: float, last: float, until_s: float, lengths: tuple[int, int]
) -> Source:
    """Yields requests at a rate that rises evenly."""
    at_s = 0.0
    while at_s < until_s:
        yield SimRequest(at_s, tenant, *lengths, lengths[1])
        at_s += 1 / (first + (last - first) * at_s / until_s)


def arena(
    rps: float, until_s: float, rng: random.Random, n_tenants: int = 27
) -> Iterator[SimRequest]:
    """Yields a skewed mix: 27 tenants of whom three send half, each with lengths of its own."""
    shares = [1 / rank**1.08 for rank in range(1, n_tenants + 1)]
    for number, share in enumerate(shares, 1):
        rate = rps * share / sum(shares)
        talk = rng.uniform(0.7, 1.4)
        at_s = rng.expovariate(rate)
        while at_s < until_s:
            prompt = min(max(round(rng.lognormvariate(3.69, 1.8)), 2), 1021)
            output = min(max(round(talk * rng.gammavariate(1.6, 150)), 2), 977)
            yield SimRequest(at_s, name_tenant(number), prompt, output, output)
            at_s += rng.expovariate(rate)


def fixed(*rates: float, lengths: tuple[int, int] = (256, 256)) -> Callable[..., list[SimRequest]]:
    """Returns a maker of tenants 1, 2, … at steady rates."""

    def make(until_s: float, rng: random.Random, factor: float) -> list[SimRequest]:
        return merge(
            steady(name_tenant(i), rate * factor, until_s, lengths)
            for i, rate in enumerate(rates, 1)
        )

    return make


def merge(sources: Iterable[Iterable[SimRequest]]) -> list[SimRequest]:
    """Returns all requests in the order of their arrival."""
    every = [request for source in sources for request in source]
    return sorted(every, key=lambda r: (r.arrival_s, r.tenant))


_L = (256, 256)
_ONE, _TWO = name_tenant(1), name_tenant(2)


def _on_off_less(until_s: float, rng: random.Random, factor: float) -> list[SimRequest]:
    return merge([on_off(_ONE, 0.5 * factor, until_s, _L), steady(_TWO, 2 * factor, until_s, _L)])


def _on_off_overload(until_s: float, rng: random.Random, factor: float) -> list[SimRequest]:
    return merge([on_off(_ONE, 2 * factor, until_s, _L), steady(_TWO, 3 * factor, until_s, _L)])


def _two_poisson(short: tuple[int, int], long: tuple[int, int]) -> Callable[..., list[SimRequest]]:
    def make(until_s: float, rng: random.Random, factor: float) -> list[SimRequest]:
        return merge(
            [
                poisson(_ONE, 8 * factor, until_s, short, rng),
                poisson(_TWO, 1.5 * factor, until_s, long, rng),
            ]
        )

    return make


def _increase(until_s: float, rng: random.Random, factor: float) -> list[SimRequest]:
    return merge(
        [
            steady(_ONE, 0.5 * factor, until_s, _L),
            rising(_TWO, 0.2 * factor, 2 * factor, until_s, _L),
        ]
    )


def _shift(until_s: float, rng: random.Random, factor: float) -> list[SimRequest]:
    return merge(
        [
            on_off(_ONE, 0.5 * factor, 300.0, _L),
            steady(_TWO, 2 * factor, 300.0, _L),
            steady(_ONE, 1 * factor, 600.0, _L, 300.0),
            steady(_TWO, 1 * factor, 600.0, _L, 300.0),
            steady(_ONE, 0.5 * factor, until_s, _L, 600.0),
            steady(_TWO, 1.5 * factor, until_s, _L, 600.0),
        ]
    )


def _arena(until_s: float, rng: random.Random, factor: float) -> list[SimRequest]:
    return merge([arena(2.5 * factor, until_s, rng)])


WORKLOADS = (
    Workload(
        "overload",
        fixed(1.5, 3),
        better={"gap_ratio": 0.05, "d_max": 0.03, "d_avg": 0.01},
        paper={"gap_ratio": 0.23, "d_max": 0.144, "d_avg": 0.077},
    ),
    Workload(
        "overload-multi",
        fixed(*(0.4,) * 3, *(0.6,) * 5),
        better={"d_max": 0.08, "d_avg": 0.05},
        paper={"d_max": 0.245, "d_avg": 0.124},
    ),
    Workload(
        "weighted",
        fixed(0.8, 0.8, 1.2, 1.6),
        weights={name_tenant(i): float(i) for i in range(1, 5)},
        better={"share_error": 0.01},
        paper={"share_error": 0.02},
    ),
    Workload("proportional", fixed(0.25, 0.5, 1.5), light=(_ONE, _TWO)),
    Workload("on/off less", _on_off_less, light=(_ONE,)),
    Workload("on/off overload", _on_off_overload),
    Workload("short/long", _two_poisson((64, 64), (256, 256)), is_mixed=True),
    Workload("short/long 2", _two_poisson((512, 32), (32, 512)), is_mixed=True),
    Workload("increase", _increase, light=(_ONE,)),
    Workload("shift", _shift, duration_s=900.0),
    Workload(
        "arena-like",
        _arena,
        light=tuple(name_tenant(i) for i in range(14, 28)),
        better={"d_max": 0.256, "d_avg": 0.177},
        paper={"d_max": 0.286, "d_avg": 0.195},
    ),
)
