"""A model, or the canary of one, as a gateway serves it: its connections, and how it is read."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Receive

from serve_app.config import LimitSettings
from serve_app.config_model import ModelSettings
from serve_app.dialect import dialect_of, dialect_of_model
from serve_app.gateway.body import ClientGoneError, wait_for_disconnect
from serve_app.gateway.error_body import ApiError
from serve_app.gateway.front_end import FrontEnd
from serve_app.gateway.model_cards import view_status
from serve_app.gateway.model_client import ModelClient
from serve_app.gateway.model_state import ModelState, describe

_LOOK_EVERY_S = 0.2


@dataclass
class ServedModel:
    """What a gateway knows of one of its models."""

    settings: ModelSettings
    shown_as: ModelSettings
    """Whose names and templates clients see: of a canary, its model's."""
    client: ModelClient
    since_s: float = field(default_factory=time.time)
    front_end: FrontEnd | None = None
    payload: bytes = b""
    """What the present front end was built from."""
    dialect: str = ""
    """Of the present front end."""
    problem: str = ""
    """Why there is none; empty is no reason."""
    is_closed: bool = False
    """Whether it is not served any more."""
    _described: tuple[ModelSettings, str] | None = None
    """Settings, and the dialect of their engines."""

    @property
    def max_model_len(self) -> int | None:
        """Its context in tokens; None while it is not known."""
        return self.front_end.max_model_len if self.front_end is not None else None

    @property
    def percent(self) -> float:
        """Which part of its model's requests it gets."""
        canary = self.shown_as.canary
        return 100.0 if canary is None else canary.percent

    @property
    def state(self) -> ModelState:
        """How it stands."""
        if self.problem:
            return ModelState("failed", self.problem)
        return describe(
            self.settings,
            self.client.status,
            has_front_end=self.front_end is not None,
            missing=self.client.missing,
        )

    def show(self) -> dict[str, Any]:
        """Returns what `/ready` says of it."""
        state = self.state
        known = {"ready": state.takes_requests, "state": state.state, "detail": state.detail}
        return known | view_status(self.client.status)

    def explain_not_ready(self, retry_after_s: float) -> ApiError:
        """Returns what a client hears whose request is not taken."""
        state = self.state
        detail = f": {state.detail}" if state.detail else ""
        return ApiError(
            503,
            f"The model {self.settings.name!r} is not ready ({state.state}{detail}). "
            "Try again shortly; /ready shows its progress.",
            param="model",
            code="model_not_ready",
            retry_after_s=retry_after_s,
        )

    @property
    def reader(self) -> FrontEnd | None:
        """How requests are read; None until the engines that will have them have said it.

        What slept may wake as another model: of its old engines none is there to understand.
        """
        if self.settings.replicas.min > 0:
            return self.front_end
        is_awake = self.state.state == "ready"
        spoken = dialect_of(self.client.status.config_id) if is_awake else self._dialect_to_come()
        return self.front_end if self.dialect == spoken else None

    def _dialect_to_come(self) -> str:
        if self._described is None or self._described[0] is not self.settings:
            self._described = self.settings, dialect_of_model(self.settings)
        return self._described[1]

    async def wake(self, receive: Receive, limits: LimitSettings) -> FrontEnd | None:
        """Returns how requests are read, once an engine has said it; None if none does in time.

        Raises:
            ApiError: 503; too many wait for that already.
            ClientGoneError: Nobody waits any more.
        """
        if self.client.n_calling >= limits.max_waiting:
            raise self._crowded(limits)
        gone = asyncio.ensure_future(wait_for_disconnect(receive))
        try:
            with self.client.calling(), contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.autoscaling.wake_timeout_s):
                    while self.reader is None and self.state.takes_requests and not self.is_closed:
                        await asyncio.wait((gone,), timeout=_LOOK_EVERY_S)
                        if gone.done():
                            raise ClientGoneError
        finally:
            gone.cancel()
        return self.reader

    def _crowded(self, limits: LimitSettings) -> ApiError:
        return ApiError(
            503,
            f"{self.client.n_calling} requests already wait until {self.settings.name!r} is awake, "
            f"and limits.max_waiting is {limits.max_waiting}. Try again later.",
            retry_after_s=limits.retry_after_s,
        )

    async def close_when_idle(self) -> None:
        """Hangs up when its last request has ended."""
        self.is_closed = True
        if self.front_end is not None:
            await self.front_end.retire()
        self.client.close()
