"""Makes the fair queue that the settings ask for, and the log of what it decides."""

from collections.abc import Callable
from pathlib import Path

from deployments.audit_log import AuditLog
from serve_app.config import FairnessSettings, Settings
from serve_app.config_store import state_dir_of
from serve_app.names import ModelName
from serve_app.policy.fairness import Vtc, VtcSettings
from serve_app.policy.fairness_audit import Record
from serve_app.policy.fairness_baselines import ByRequest, OneLine
from serve_app.policy.fairness_options import Cost, MovingAverage, NoPrediction


def make_turn_order(
    fairness: FairnessSettings, audit: Callable[[Record], None] | None = None
) -> Vtc:
    """Returns the queue that the settings ask for, empty."""
    if fairness.policy == "fcfs":
        return OneLine()
    if fairness.policy == "round_robin":
        return ByRequest()
    predictor = MovingAverage() if fairness.predicts_lengths else NoPrediction()
    vtc = VtcSettings(cost=cost_of(fairness), lifts=fairness.policy == "vtc")
    return Vtc(vtc, predictor, audit=audit)


def cost_of(fairness: FairnessSettings) -> Cost:
    """Returns what a token costs by the settings."""
    return Cost(
        prompt=fairness.prompt_cost, cached=fairness.cached_cost, output=fairness.output_cost
    )


def make_audit_log(model_name: ModelName, settings: Settings) -> AuditLog | None:
    """Returns the log that the settings ask for, if they ask for one."""
    audit = settings.fairness.audit
    if audit is None:
        return None
    folder = Path(audit.folder) if audit.folder else state_dir_of(settings.store) / "audit"
    return AuditLog(folder, model_name, audit)
