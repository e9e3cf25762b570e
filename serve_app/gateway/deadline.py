"""A request's own deadline: refused at once where it cannot be met, ended where it has passed."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Mapping

from serve_app.gateway.error_body import ApiError
from serve_app.gateway.meter import Meter
from serve_app.messages import ModelStatus
from serve_app.policy.deadline import estimate_wait_s, lateness_s

_MAX_TIMEOUT_S = 86_400.0


def read_timeout(headers: Mapping[str, str], default_s: float | None) -> float | None:
    """Returns how many seconds a request may take, as its client or the settings say.

    Raises:
        ApiError: 400.
    """
    given = headers.get("x-request-timeout")
    if given is None:
        return default_s
    try:
        timeout_s = float(given)
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s <= _MAX_TIMEOUT_S:
        raise ApiError(
            400,
            f"The header x-request-timeout is {given[:40]!r}; it is a number of seconds above 0 "
            f"and at most {_MAX_TIMEOUT_S:g}.",
            param="x-request-timeout",
        )
    return timeout_s if default_s is None else min(timeout_s, default_s)


def check_in_time(meter: Meter, status: ModelStatus, mean_tokens: float) -> None:
    """Refuses a request that would wait longer than its client does.

    Raises:
        GracefulHTTPError: 503; the client is told when it would be in time.
    """
    tokens_per_s = sum(e.load.tokens_per_s for e in status.engines if e.state == "ready")
    wait_s = estimate_wait_s(status.waiting, tokens_per_s, mean_tokens)
    late_s = lateness_s(wait_s, meter.timeout_s)
    if late_s is None:
        return
    raise meter.fail(
        ApiError(
            503,
            f"{status.waiting} requests wait for this model, about {wait_s:.0f} s, and this one "
            f"may take {meter.timeout_s:g} s. Try again in {late_s:.0f} s, or allow it more time.",
            code="deadline_exceeded",
            retry_after_s=late_s,
        )
    )


class Deadline:
    """Ends a generation whose time is over.

    Args:
        meter: The request; says when.
        end: Ends what runs with an error.
    """

    def __init__(self, meter: Meter, end: Callable[[Exception], None]) -> None:
        self._meter = meter
        self._end = end
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def bound(self) -> AsyncIterator[None]:
        """Bounds what is waited for inside. Raises GracefulHTTPError: 504."""
        try:
            async with asyncio.timeout_at(self._meter.deadline_s):
                yield
        except TimeoutError as error:
            raise self._meter.fail(late_error(self._meter)) from error

    def start(self) -> None:
        """From now on its time may end at any moment."""
        if self._meter.deadline_s is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._meter.deadline_s, self._pass)

    def stop(self) -> None:
        """It has ended."""
        if self._timer is not None:
            self._timer.cancel()

    def _pass(self) -> None:
        self._end(self._meter.fail(late_error(self._meter)))


def late_error(meter: Meter) -> ApiError:
    """Return what a client hears whose request took too long."""
    return ApiError(
        504,
        f"The request was not complete within its {meter.timeout_s:g} s (x-request-timeout, or "
        "gateway.request_timeout_s) and was ended.",
        code="deadline_exceeded",
    )
