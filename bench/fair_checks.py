"""The named checks of fairness: each a small scene on the running platform, with its target.

Times and rates are the paper's, scaled as in `bench.fair_runs`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bench.fair_platform import PAIR
from bench.fair_runs import Sending, Target, send
from bench.report import say
from bench.sim_engine import SimRequest
from bench.sim_metrics import list_ttft_s, spread_service
from bench.simulate import Figures, add_figure
from bench.simulation import Run
from bench.workloads import REFERENCE_RPS, merge, steady
from serve_app.names import TenantId

HONEST, CHEAT = TenantId("honest"), TenantId("cheat")
BUSY, AWAY = TenantId("busy"), TenantId("away")
LIGHT, LOUD = TenantId("light"), tuple(TenantId(f"loud-{i}") for i in range(1, 4))
HEAVY, SLIM = TenantId("heavy"), TenantId("slim")
N_KEYS: Mapping[TenantId, int] = {
    **dict.fromkeys((HONEST, BUSY, AWAY, LIGHT, HEAVY, SLIM, *LOUD), 1),
    CHEAT: 10,
}
WEIGHTS: Mapping[TenantId, float] = {HEAVY: 4.0}

_L = (256, 256)
_RPS = REFERENCE_RPS
WARM_S = 40.0
"""Until both wait for certain, and what ran before has ended."""
_END_S = 160.0
LONG_S = 320.0
"""Where few requests are counted."""
_BURST_AT_S = 60.0
_BURST = 60


@dataclass
class Scene:
    """Where checks run, and what they found."""

    one: Target
    """A model with one engine, through all gateways."""
    three: Target | None
    """One with three engines, if that was started."""
    pair: Target | None
    """Two models of one domain, by lane, if they were started."""
    adapted: Target | None
    """A model with adapters, by lane, if that was started."""
    settle: Callable[[], None]
    """Waits until nothing of an earlier scene is left."""
    seed: int = 1
    figures: Figures = field(default_factory=dict)

    def note(
        self, name: str, value: float, *, most: float | None = None, least: float | None = None
    ) -> None:
        """Keeps a figure and shows it."""
        add_figure(self.figures, name, value, most=most, least=least)
        say(f"{name}: {value:.3f}, target {self.figures[name]['target']}")

    def send(
        self,
        sources: Sequence[Sequence[SimRequest]],
        sending: Sending | None = None,
        target: Target | None = None,
        until_s: float = _END_S,
    ) -> Run:
        """Sends all of these requests."""
        self.settle()
        return send(target or self.one, merge(sources), until_s, sending, seed=self.seed)


def find_share(run: Run, tenant: TenantId, from_s: float, to_s: float) -> float:
    """Returns a tenant's part of all service in a stretch of time."""
    got = {
        each: spread_service(
            [job for job in run.jobs if job.request.tenant == each], run.end_s
        ).within(from_s, to_s)
        for each in run.tenants
    }
    return got[tenant] / (sum(got.values()) or 1.0)


def flow(
    tenant: TenantId, times: float, lengths: tuple[int, int] = _L, until_s: float = _END_S
) -> list[SimRequest]:
    """A tenant's requests, at a steady rate of so many times the capacity."""
    return list(steady(tenant, times * _RPS, until_s, lengths))


def check_cheats(scene: Scene) -> None:
    """Two tenants, both overloaded; one tries something. Neither may get more than half."""
    honest, more = flow(HONEST, 2), flow(CHEAT, 4)
    at_once = [SimRequest(0.0, CHEAT, *_L, _L[1]) for _ in range(100)]
    short = (256, 64)
    early = [replace(request, max_tokens=4096) for request in flow(CHEAT, 6, short)]
    tricks: Mapping[str, tuple[Sequence[Sequence[SimRequest]], Sending | None]] = {
        "twice as many requests": ((honest, more), None),
        "ten keys": ((honest, more), Sending(n_keys={CHEAT: 10})),
        "a hundred connections at once": ((honest, [*at_once, *more]), None),
        "dropped and sent again": ((honest, flow(CHEAT, 6)), Sending(drops_after_s={CHEAT: 9.0})),
        "max_tokens 4096 that ends at 64": ((flow(HONEST, 4, short), early), None),
    }
    for name, (sources, sending) in tricks.items():
        if name.startswith("max_tokens") and scene.one.length != 1.0:
            continue  # Only the echo engine can be told when to end.
        share = find_share(scene.send(sources, sending), CHEAT, WARM_S, _END_S)
        scene.note(f"cheats: share with {name}", share, most=0.52)


def check_away(scene: Scene) -> None:
    """A tenant that was away sends 60 requests at once beside a busy one."""
    burst = [SimRequest(_BURST_AT_S, AWAY, *_L, _L[1]) for _ in range(_BURST)]
    run = scene.send((flow(BUSY, 3), burst))
    firsts_s = [j.first_token_s for j in run.jobs if j.request.tenant == AWAY if j.first_token_s]
    last_s = max(firsts_s)
    share = find_share(run, AWAY, _BURST_AT_S, last_s)
    scene.note("away: share while both wait, at least", share, least=0.45)
    scene.note("away: share while both wait, at most", share, most=0.55)
    began = [j for j in run.jobs if j.first_token_s and _BURST_AT_S < j.first_token_s <= last_s]
    part = sum(job.request.tenant == AWAY for job in began) / len(began)
    scene.note("away: part of the requests begun while both wait, at least", part, least=0.45)


def check_isolation(scene: Scene) -> None:
    """A tenant within its share, alone and beside three that send twice the capacity each."""
    light = flow(LIGHT, 0.15, until_s=LONG_S)
    flood = [vary(flow(tenant, 2, until_s=LONG_S)) for tenant in LOUD]
    runs = [scene.send(sources, until_s=LONG_S) for sources in ((light,), (light, *flood))]
    for name, from_s in (("isolation", WARM_S), ("isolation, flood's start included", 0.0)):
        p50_s, p90_s = (
            [
                float(np.percentile(list_ttft_s(run, [LIGHT], LONG_S - 20.0, from_s), percent))
                for run in runs
            ]
            for percent in (50, 90)
        )
        speed = scene.one.speed
        for what, (alone_s, beside_s) in (("p50", p50_s), ("p90", p90_s)):
            say(f"{name}: TTFT {what} {alone_s / speed:.3f} s alone, {beside_s / speed:.3f} beside")
        most = 1.2 if from_s else None
        scene.note(f"{name}: ttft p90 over that of alone", p90_s[1] / p90_s[0], most=most)


def vary(requests: Sequence[SimRequest]) -> list[SimRequest]:
    """Gives answers lengths of 64 to 448: of one length, a whole batch would end at a time."""
    lengths = (64 + 97 * i % 385 for i in range(len(requests)))
    return [
        replace(request, output_tokens=n, max_tokens=n)
        for request, n in zip(requests, lengths, strict=True)
    ]


def check_ingress(scene: Scene) -> None:
    """Weights 4:1; the heavy one's requests come through one gateway, the other's through two."""
    if len(scene.one.gateways) < 2:
        return
    sending = Sending(gateways={HEAVY: [0], SLIM: [0, 1]})
    run = scene.send((flow(HEAVY, 3), flow(SLIM, 2)), sending)
    share = find_share(run, HEAVY, WARM_S, _END_S)
    scene.note("ingress: served ratio at weights 4:1", share / (1 - share), least=3.8)


def check_gateways(scene: Scene) -> None:
    """Two overloaded tenants through 1, 2 and 4 gateways: the gap keeps its bound."""
    _check_gap(scene, scene.one)


def check_engines(scene: Scene) -> None:
    """The same with three engines."""
    if scene.three is not None:
        _check_gap(scene, scene.three)


def _check_gap(scene: Scene, target: Target) -> None:
    for n in (1, 2, 4):
        if n > len(target.gateways):
            continue
        here = replace(target, gateways=target.gateways[:n])
        run = scene.send((flow(HONEST, 1), flow(CHEAT, 2)), target=here)
        ratio = run.gap / target.bound([job.request for job in run.jobs], {})
        where = f"{n} gateways, {target.n_engines} engines"
        scene.note(f"gap over bound: {where}", ratio, most=1)
        error = abs(find_share(run, HONEST, WARM_S, _END_S) - 0.5)
        scene.note(f"difference of the share from a half: {where}", error, most=0.02)


def check_pinned(scene: Scene) -> None:
    """One tenant on one of two engines, another on both: two models of one domain."""
    if scene.pair is None:
        return
    free = [replace(request, lane=PAIR[i % 2]) for i, request in enumerate(flow(HONEST, 4))]
    pinned = [replace(request, lane=PAIR[0]) for request in flow(CHEAT, 4)]
    run = scene.send((free, pinned), target=scene.pair)
    share = find_share(run, CHEAT, WARM_S, _END_S)
    scene.note("pinned: difference from a half", abs(share - 0.5), most=0.02)


def check_adapters(scene: Scene) -> None:
    """All prompts on one adapter, or on fifty: neither gets more than half, or less."""
    if scene.adapted is None:
        return
    lanes = sorted(scene.adapted.models)
    for name, used in (("one adapter", lanes[:1]), ("fifty adapters", lanes)):
        honest = [replace(request, lane=lanes[0]) for request in flow(HONEST, 2)]
        more = [replace(r, lane=used[i % len(used)]) for i, r in enumerate(flow(CHEAT, 4))]
        run = scene.send((honest, more), target=scene.adapted)
        share = find_share(run, CHEAT, WARM_S, _END_S)
        scene.note(f"cheats: share with all on {name}", share, most=0.52)


CHECKS: Mapping[str, Callable[[Scene], None]] = {
    "cheats": check_cheats,
    "away": check_away,
    "isolation": check_isolation,
    "ingress": check_ingress,
    "gateways": check_gateways,
    "engines": check_engines,
    "pinned": check_pinned,
    "adapters": check_adapters,
}
