"""Says in a word and a sentence how a model stands, and whether requests for it are taken."""

from dataclasses import dataclass
from typing import Literal

import msgspec

from serve_app.config_model import ModelSettings
from serve_app.messages import EngineState, ModelStatus

State = Literal["ready", "asleep", "waking", "loading", "draining", "failed"]
NONE_YET = "no engine has reported yet"
_TOLD: tuple[EngineState, ...] = ("loading", "failed", "draining")


@dataclass(frozen=True)
class ModelState:
    """How a model stands, as `/ready` shows it."""

    state: State
    detail: str = ""

    @property
    def takes_requests(self) -> bool:
        """Whether a request is served or, where the model sleeps, wakes it and waits."""
        return self.state in ("ready", "asleep", "waking")


def describe(
    model: ModelSettings, status: ModelStatus, *, has_front_end: bool, missing: str = NONE_YET
) -> ModelState:
    """Return how a model stands.

    Args:
        model: Its settings.
        status: What its router said last.
        has_front_end: Whether this gateway can read requests for it.
        missing: What to say where nothing is known of any engine.
    """
    may_sleep = model.replicas.min == 0 and status.scaling is not None
    if _serves(status):
        if has_front_end:
            return ModelState("ready", _describe_failed(status))
        return ModelState("waking" if may_sleep else "loading", "building its front end")
    if may_sleep and status.scaling is not None and status.scaling.wanted == 0:
        return ModelState("asleep", "its first request wakes it, and waits")
    for state in _TOLD:
        for engine in status.engines:
            if engine.state == state == "loading" and may_sleep:
                return ModelState("waking", _describe_waking(model, status, engine.detail))
            if engine.state == state and not (state == "draining" and may_sleep):
                return ModelState(state, engine.detail)
    if may_sleep:
        return ModelState("waking", _describe_waking(model, status, "an engine is asked for"))
    return ModelState("loading", missing)


def follow(before: ModelStatus, status: ModelStatus) -> ModelStatus:
    """Return what to believe now that a router has said something.

    A router that has just replaced a dead one has not heard of all engines yet. If what it knows
    serves nobody, a model that was served still counts as served: requests wait at the router for
    the engines that are about to report, rather than be sent away.
    """
    if not status.is_settling or _serves(status) or not _serves(before):
        return status
    return msgspec.structs.replace(status, config_id=before.config_id, engines=before.engines)


def _serves(status: ModelStatus) -> bool:
    return any(engine.state == "ready" for engine in status.engines)


def _describe_failed(status: ModelStatus) -> str:
    """Return what was done about a change that failed, else why another engine failed."""
    if status.note:
        return status.note
    failed = [engine.detail for engine in status.engines if engine.state == "failed"]
    return f"an engine failed: {failed[-1]}" if failed else ""


def _describe_waking(model: ModelSettings, status: ModelStatus, detail: str) -> str:
    bound_s = model.autoscaling.wake_timeout_s
    text = f"{detail}; {status.waiting} requests wait, {bound_s:g} s at most"
    if status.scaling is not None and status.scaling.start_s:
        text += f"; it took {status.scaling.start_s:.0f} s last time"
    return text
