"""Makes the fair queue that the settings ask for, and the log of what it decides."""

from collections.abc import Callable
from pathlib import Path

from deployments.audit_log import AuditLog
from serve_app.config import FairnessSettings, Settings, cost_factors_of
from serve_app.config_store import state_dir_of
from serve_app.names import ModelName
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_audit import Record
from serve_app.policy.fairness_baselines import ByRequest, OneLine
from serve_app.policy.fairness_options import Cost, Locality, MovingAverage, NoPrediction
from serve_app.policy.fairness_settings import VtcSettings


def make_turn_order(
    fairness: FairnessSettings, cost: Cost, audit: Callable[[Record], None] | None = None
) -> Vtc:
    """Returns the queue that the settings ask for, empty."""
    if fairness.policy == "fcfs":
        return OneLine()
    if fairness.policy == "round_robin":
        return ByRequest()
    predictor = MovingAverage() if fairness.predicts_lengths else NoPrediction()
    quantum = fairness.locality_quantum
    locality = Locality(quantum) if quantum else None
    vtc = VtcSettings(cost=cost, locality=locality, lifts=fairness.policy == "vtc")
    return Vtc(vtc, predictor, audit=audit)


def cost_of(settings: Settings, domain: ModelName) -> Cost:
    """Returns what a token costs in a domain."""
    factors = cost_factors_of(settings, domain)
    fairness = settings.fairness
    return Cost(fairness.prompt_cost, fairness.cached_cost, fairness.output_cost, factors)


def make_audit_log(model_name: ModelName, settings: Settings) -> AuditLog | None:
    """Returns the log that the settings ask for, if they ask for one."""
    audit = settings.fairness.audit
    if audit is None:
        return None
    folder = Path(audit.folder) if audit.folder else state_dir_of(settings.store) / "audit"
    return AuditLog(folder, model_name, audit)
