"""The paper's measures of fairness, from what happened to each request.

Source: Sheng et al., *Fairness in Serving Large Language Models*, OSDI 2024, section 5.1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.sim_engine import Job
from bench.simulation import Run
from serve_app.names import TenantId

Floats = npt.NDArray[np.float64]

_HALF_WINDOW_S = 30.0
_TICK_S = 30.0


@dataclass(frozen=True)
class Spread:
    """What each request's service was spread over; arrays of length [n_requests]."""

    start_s: Floats
    end_s: Floats
    service: Floats

    def within(self, from_s: float, to_s: float) -> float:
        """Returns the service in a stretch of time."""
        overlap = np.minimum(self.end_s, to_s) - np.maximum(self.start_s, from_s)
        length = np.maximum(self.end_s - self.start_s, 1e-9)
        return float((np.clip(overlap, 0, None) / length * self.service).sum())


def spread_service(jobs: Sequence[Job], end_s: float) -> Spread:
    """Spreads each request's service evenly from its first token to its end, or that of the run."""
    begun = [job for job in jobs if job.first_token_s is not None]
    return Spread(
        np.array([job.first_token_s for job in begun], dtype=np.float64),
        np.array([job.end_s or end_s for job in begun], dtype=np.float64),
        np.array([job.request.prompt_tokens + 2 * job.produced for job in begun], dtype=np.float64),
    )


def list_ticks(duration_s: float) -> list[float]:
    """Returns the middles of the windows that lie in the run."""
    n = round(duration_s / _TICK_S)
    return [_TICK_S * i for i in range(1, n)]


def rate_service(run: Run, tenant: TenantId, ticks_s: Sequence[float]) -> Floats:
    """Returns a tenant's service/s around each tick."""
    spread = spread_service([j for j in run.jobs if j.request.tenant == tenant], run.end_s)
    width_s = 2 * _HALF_WINDOW_S
    return np.array(
        [spread.within(x - _HALF_WINDOW_S, x + _HALF_WINDOW_S) / width_s for x in ticks_s]
    )


def rate_demand(run: Run, tenant: TenantId, ticks_s: Sequence[float]) -> Floats:
    """Returns the service/s that a tenant asked for around each tick."""
    mine = [job.request for job in run.jobs if job.request.tenant == tenant]
    at_s = np.array([request.arrival_s for request in mine])
    service = np.array([request.service for request in mine])
    width_s = 2 * _HALF_WINDOW_S
    return np.array([service[np.abs(at_s - x) <= _HALF_WINDOW_S].sum() / width_s for x in ticks_s])


def measure_difference(
    run: Run, duration_s: float, weights: Mapping[TenantId, float]
) -> tuple[float, float, float]:
    """Returns maximum, mean and variance of the service difference over the ticks, in service/s.

    At a tick it is the sum over tenants of what each lacks to the best served one, but no more than
    what it lacks to its demand. With weights, service and demand are divided by them.
    """
    ticks_s = list_ticks(duration_s)
    weight = np.array([[weights.get(tenant, 1.0)] for tenant in run.tenants])
    service = np.array([rate_service(run, t, ticks_s) for t in run.tenants]) / weight
    demand = np.array([rate_demand(run, t, ticks_s) for t in run.tenants]) / weight
    lacks = np.minimum(service.max(axis=0) - service, np.abs(demand - service))
    difference = lacks.sum(axis=0)
    return float(difference.max()), float(difference.mean()), float(difference.var())


def measure_throughput(run: Run, duration_s: float) -> float:
    """Returns all tenants' service/s."""
    return spread_service(run.jobs, run.end_s).within(0, duration_s) / duration_s


def measure_shares(run: Run, duration_s: float) -> dict[TenantId, float]:
    """Returns each tenant's part of the service after the first minute."""
    got = {
        tenant: spread_service(
            [job for job in run.jobs if job.request.tenant == tenant], run.end_s
        ).within(60.0, duration_s)
        for tenant in run.tenants
    }
    total = sum(got.values()) or 1.0
    return {tenant: service / total for tenant, service in got.items()}


def list_ttft_s(
    run: Run, tenants: Sequence[TenantId], duration_s: float, from_s: float = 0.0
) -> Floats:
    """Returns the time to first token of the tenants' requests; of one that still waits, so far."""
    return np.array(
        [
            (run.end_s if job.first_token_s is None else job.first_token_s) - job.request.arrival_s
            for job in run.jobs
            if job.request.tenant in tenants
            and from_s <= job.request.arrival_s < duration_s
            and not job.is_refused
        ]
    )
