"""Sends a workload to the running platform, and tells what became of it as the simulator does.

Time is scaled: an engine that is ten times as fast as the paper's gets the paper's ten minutes in
one. What `Run` holds is in the paper's seconds again, so that measures and plots are the same code.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import uvloop

from bench.fair_platform import BATCH, SPARE
from bench.load import Answer, Ask, completion_ask, draw_prompt, run_load
from bench.open_load import OpenLoad, Shot, run_open
from bench.sim_engine import Job, SimRequest
from bench.simulate import SERVICE
from bench.simulation import GapArrays, Run
from bench.systems import NotRunningError
from bench.workloads import REFERENCE_RPS
from serve_app.messages import TicketId
from serve_app.names import TenantId
from serve_app.policy.fairness_bound import Capacity, bound_gap
from serve_app.policy.fairness_options import Cost
from serve_app.policy.queueing import Waiting

_STOP_TOKEN = 999
_UNHEARD_S = 0.2
"""For which a router has not heard of tokens: engines tell it every 0.1 s, and it is busy, too."""
_MAX_ERRORS = 0.001
_WARM_UP_S = 1.0
_TICK_S = 0.002
"""Events closer than this count as one when gaps are looked for; an engine's step is longer."""


@dataclass(frozen=True)
class Target:
    """Where to send, and how fast time goes there."""

    gateways: Sequence[str]
    model: str
    keys: Mapping[TenantId, Sequence[str]]
    speed: float = 1.0
    """The paper's seconds in one of this engine's."""
    length: float = 1.0
    """Factor of prompts' and answers' lengths."""
    n_engines: int = 1
    models: Mapping[str, str] = field(default_factory=dict)
    """By lane, where its requests go to another model."""

    @property
    def handed(self) -> int:
        """Requests that engines hold at most, running or waiting."""
        return self.n_engines * (BATCH + SPARE)

    @property
    def capacity(self) -> float:
        """Service in one of the paper's seconds, by the way in which `speed` is measured."""
        return REFERENCE_RPS * SERVICE * self.length

    def bound(self, requests: Sequence[SimRequest], weights: Mapping[TenantId, float]) -> float:
        """Returns the bound of the gap between tenants that wait."""
        longest = max(request.prompt_tokens + request.output_tokens for request in requests)
        most = Capacity(
            max(request.prompt_tokens for request in requests),
            self.handed * longest,
            round(_UNHEARD_S * self.speed * self.capacity / 3),
        )
        return bound_gap(Cost(), most, least_weight=min(weights.values(), default=1.0))


@dataclass(frozen=True)
class Sending:
    """How requests leave, where it is not the plain way.

    Args:
        gateways: By tenant, the gateways that it uses; others use all in turn.
        n_keys: By tenant, how many of its keys it uses in turn; others use one.
        drops_after_s: By tenant, after which of the paper's seconds its client hangs up.
    """

    gateways: Mapping[TenantId, Sequence[int]] = field(default_factory=dict)
    n_keys: Mapping[TenantId, int] = field(default_factory=dict)
    drops_after_s: Mapping[TenantId, float] = field(default_factory=dict)


def send(
    target: Target,
    requests: Sequence[SimRequest],
    until_s: float,
    sending: Sending | None = None,
    *,
    weights: Mapping[TenantId, float] | None = None,
    seed: int = 1,
) -> Run:
    """Sends requests when they are due and returns what became of them.

    Args:
        target: Where.
        requests: In the order of their arrival, in the paper's seconds.
        until_s: When all hang up, in the paper's seconds.
        sending: How.
        weights: By tenant, as the platform has them; others have 1.
        seed: Of the prompts.

    Raises:
        NotRunningError: Requests failed.
    """
    scaled = [_scale(request, target.length) for request in requests]
    aim = _Aim(target, sending or Sending(), random.Random(seed))
    shots = [aim.shoot(request) for request in scaled]
    load = uvloop.run(run_open(shots, until_s / target.speed))
    if len(load.errors) > _MAX_ERRORS * len(shots):
        raise NotRunningError(f"{len(load.errors)} of {len(shots)} failed, as {load.errors[0]}")
    return make_run(scaled, load, target.speed, until_s, weights or {}, target.handed)


def measure_capacity(target: Target, tenant: TenantId, lengths: tuple[int, int], n: int) -> float:
    """Returns the requests/s of a platform that always has twice a batch to do."""
    rng = random.Random(0)
    prompt, output = (max(2, round(tokens * target.length)) for tokens in lengths)
    key = target.keys[tenant][0]

    def asks() -> Ask:
        return completion_ask(target.model, draw_prompt(prompt, rng), output, key=key)

    load = uvloop.run(run_load(target.gateways[0], iter(asks, None), 48, n))
    if load.n_errors:
        raise NotRunningError(f"{load.n_errors} requests failed, as {load.errors[0]}")
    ends_s = sorted(answer.ended_s for answer in load.answers)
    first, last = n // 4, 3 * n // 4
    return (last - first) / (ends_s[last] - ends_s[first])


class _Aim:
    """Turns requests of a workload into requests on the wire."""

    def __init__(self, target: Target, sending: Sending, rng: random.Random) -> None:
        self._target = target
        self._sending = sending
        self._rng = rng
        self._n: dict[TenantId, int] = {}

    def shoot(self, request: SimRequest) -> Shot:
        target, sending, tenant = self._target, self._sending, request.tenant
        n = self._n[tenant] = self._n.get(tenant, -1) + 1
        gateways = sending.gateways.get(tenant, range(len(target.gateways)))
        keys = target.keys[tenant][: sending.n_keys.get(tenant, 1)]
        drops_after_s = sending.drops_after_s.get(tenant)
        return Shot(
            request.arrival_s / target.speed,
            target.gateways[gateways[n % len(gateways)]],
            self._write(request, keys[n % len(keys)]),
            None if drops_after_s is None else drops_after_s / target.speed,
        )

    def _write(self, request: SimRequest, key: str) -> Ask:
        prompt = draw_prompt(request.prompt_tokens, self._rng)
        output, stop = request.output_tokens, None
        if request.max_tokens > output:
            # The echo engine says the prompt, so that it comes to this token at the right time.
            prompt[output - 1] = _STOP_TOKEN
            stop = (_STOP_TOKEN, request.max_tokens)
        model = self._target.models.get(request.lane, self._target.model)
        return completion_ask(model, prompt, output, key=key, stop=stop)


def _scale(request: SimRequest, length: float) -> SimRequest:
    if length == 1.0:
        return request
    prompt, output, most = (
        max(2, round(n * length))
        for n in (request.prompt_tokens, request.output_tokens, request.max_tokens)
    )
    return SimRequest(request.arrival_s, request.tenant, prompt, output, most, request.lane)


# --- what became of it ------------------------------------------------------------------------


def make_run(
    requests: Sequence[SimRequest],
    load: OpenLoad,
    speed: float,
    until_s: float,
    weights: Mapping[TenantId, float],
    handed: int = 0,
) -> Run:
    """Returns answers as a run of the simulator, in the paper's seconds.

    A client does not see admission: to it, a prompt is served with the first token. It knows that
    a tenant waits at the router only when more requests have no token than engines can hold.

    Args:
        requests: What was sent.
        load: What became of it.
        speed: The paper's seconds in one of the engine's.
        until_s: When all hung up, in the paper's seconds.
        weights: By tenant; others have 1.
        handed: Requests that engines hold at most.
    """
    tenants = sorted({request.tenant for request in requests})
    seen = [
        _Seen.of(request, answer, load.started_s, speed)
        for request, answer in zip(requests, load.answers, strict=True)
    ]
    return Run(
        [each.as_job(i) for i, each in enumerate(seen)],
        tenants,
        gap=find_gap(seen, tenants, speed, weights, handed),
        uncharged_tokens=0,
        in_flight_tokens=0,
        end_s=until_s,
    )


@dataclass(frozen=True)
class _Seen:
    """One request as its client saw it, in the paper's seconds."""

    request: SimRequest
    arrivals_s: Sequence[float]
    tokens: int
    end_s: float | None
    gone_s: float
    """When it ended or its client hung up; infinite where neither happened."""

    @classmethod
    def of(cls, request: SimRequest, answer: Answer, started_s: float, speed: float) -> "_Seen":
        arrivals_s = [(at_s - started_s) * speed for at_s in answer.arrivals_s]
        end_s = (answer.ended_s - started_s) * speed if answer.ended_s else None
        gone_s = (answer.left_s - started_s) * speed if answer.left_s else float("inf")
        tokens = answer.completion_tokens if end_s is not None else answer.n_events
        return cls(request, arrivals_s, tokens, end_s, end_s or gone_s)

    def as_job(self, number: int) -> Job:
        request = self.request
        ticket = TicketId(f"{number:06}")
        waiting = Waiting(ticket, request.tenant, request.prompt_tokens, request.max_tokens)
        first_s = self.arrivals_s[0] if self.arrivals_s else None
        end_s = self.end_s
        if end_s is None and first_s is not None and self.gone_s < float("inf"):
            end_s = max(self.gone_s, first_s)
        return Job(
            request,
            waiting,
            0,
            admitted_s=first_s,
            first_token_s=first_s,
            end_s=end_s,
            produced=self.tokens,
        )


def find_gap(
    seen: Sequence[_Seen],
    tenants: Sequence[TenantId],
    speed: float,
    weights: Mapping[TenantId, float],
    handed: int,
) -> float:
    """Returns the greatest difference of service of two tenants over any time both waited."""
    index = {tenant: i for i, tenant in enumerate(tenants)}
    weight = np.array([weights.get(tenant, 1.0) for tenant in tenants])
    events: list[tuple[float, int, float, int]] = []
    for each in seen:
        i = index[each.request.tenant]
        events.append((each.request.arrival_s, i, 0.0, 1))
        first_s = each.arrivals_s[0] if each.arrivals_s else each.gone_s
        events.append((first_s, i, each.request.prompt_tokens if each.arrivals_s else 0.0, -1))
        per_arrival = 2.0 * each.tokens / max(1, len(each.arrivals_s))
        events += [(at_s, i, per_arrival, 0) for at_s in each.arrivals_s]
    events.sort(key=lambda event: event[0])
    return _walk(events, weight, _TICK_S * speed, handed)


def _walk(
    events: Sequence[tuple[float, int, float, int]],
    weight: np.typing.NDArray[np.float64],
    tick_s: float,
    handed: int,
) -> float:
    arrays = GapArrays(len(weight))
    service, waiting = np.zeros(len(weight)), np.zeros(len(weight), dtype=np.int64)
    next_s = 0.0
    for at_s, i, units, change in events:
        if at_s == float("inf"):
            break
        if at_s >= next_s or (change < 0 and waiting[i] == handed + 1):
            # Before it: who ceases to wait counts up to here.
            arrays.observe(service / weight, waiting > handed)
            next_s = at_s + tick_s
        service[i] += units
        waiting[i] += change
    arrays.observe(service / weight, waiting > handed)
    return arrays.worst
