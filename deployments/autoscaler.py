"""Says how many engines each of a router's models is to have.

It watches what the router sees, asks `policy.scaling` and writes the answer on a board, where
Serve's controller reads it (`serve_app.engine_scaler`). The router is where all of it is known:
requests wait here, engines report here, and nothing of that passes Serve's own handles.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from deployments.demand import DemandMeter
from deployments.fleet import Fleet
from deployments.known_engine import KnownEngine
from deployments.mender import Staff
from deployments.ticket import Ticket
from deployments.ticket_book import TicketBook
from serve_app.config_model import ModelSettings
from serve_app.messages import EngineId, Leave, Progress, ScalingStatus
from serve_app.names import ModelName
from serve_app.policy.fairness_options import Cost
from serve_app.policy.scaling import Look, Scaler, Wanted

logger = logging.getLogger(__name__)

_PUBLISH_EVERY_S = 0.25
_REPEAT_S = 10.0
_WAKE_LASTS_S = 5.0
"""Gateways repeat every second that somebody waits."""
_LONGEST_START_S = 3600.0


class Board(Protocol):
    """Where Serve's controller reads how many engines are wanted. Its calls may block."""

    def read(self, model: ModelName) -> int | None:
        """Returns what was written last; None if nothing was."""

    def write(self, model: ModelName, engines: int) -> None:
        """Replaces what is written."""


@dataclass
class _Scaled:
    """One model as the autoscaler knows it."""

    scaler: Scaler
    meter: DemandMeter
    wake_timeout_s: float
    wanted: Wanted
    is_new: bool = False
    """Whether no engine of it was ever ready: until then nobody can read requests for it."""
    start_s: float = 0.0
    asked_s: list[float] = field(default_factory=list)
    """When engines were asked for that have not come yet."""
    ready: set[EngineId] = field(default_factory=set)
    woken_s: float = -_WAKE_LASTS_S
    """When a gateway said last that somebody waits there."""

    @property
    def sleeps(self) -> bool:
        """Whether it may sleep, and no engine is ready."""
        return self.scaler.least == 0 and not self.ready


class Autoscaler:
    """Follows the models of one router.

    Args:
        models: Their settings.
        cost: What work counts as.
        fleet: The engines.
        tickets: The requests.
        board: Where answers are written; None leaves engines as many as they are.
    """

    def __init__(
        self,
        models: Iterable[ModelSettings],
        cost: Cost,
        fleet: Fleet,
        tickets: TicketBook,
        board: Board | None,
    ) -> None:
        self._cost = cost
        self._fleet = fleet
        self._tickets = tickets
        self._board = board
        self._models: dict[ModelName, _Scaled] = {}
        self._fixed: dict[ModelName, int] = {}
        """Engines of models that have no choice."""
        self.configure(models)

    def configure(self, models: Iterable[ModelSettings]) -> None:
        """Takes new settings. What was measured stays."""
        known = list(models)
        fixed = [m for m in known if m.replicas.min == m.replicas.max]
        self._fixed = {model.name: model.replicas.min for model in fixed}
        self._models = {m.name: self._scale(m) for m in known if m.name not in self._fixed}

    def _scale(self, model: ModelSettings) -> _Scaled:
        least, most, settings = model.replicas.min, model.replicas.max, model.autoscaling
        known = self._models.get(model.name)
        if known is None:
            before = self._find_before(model.name)
            # A model that is new starts once, so that it is known to start, and how to ask it.
            engines = min(max(least, 1 if before is None else before), most)
            meter = DemandMeter(self._cost, settings.ttft_target_s)
            scaler = Scaler(settings, least, most, engines)
            wanted = Wanted(engines, "as before" if before is not None else "for a start")
            return _Scaled(scaler, meter, settings.wake_timeout_s, wanted, before is None)
        known.scaler.settings, known.scaler.least, known.scaler.most = settings, least, most
        known.meter.ttft_target_s = settings.ttft_target_s
        known.wake_timeout_s = settings.wake_timeout_s
        return known

    def _find_before(self, name: ModelName) -> int | None:
        """Returns how many engines there were to be; None if there never were any.

        Those that run count for more than the board: their number may have been fixed meanwhile.
        """
        n_ready = sum(1 for _ in self._ready(name))
        if n_ready or self._board is None:
            return n_ready or None
        return self._board.read(name)

    # --- what happens -----------------------------------------------------------------------

    def note_arrival(self, ticket: Ticket) -> None:
        """A request has come."""
        model = self._models.get(ticket.model)
        if model is not None:
            model.meter.note_arrival(ticket)

    def note_progress(self, engine_id: EngineId, progress: Progress, now_s: float) -> None:
        """An engine has produced tokens. Called before they are charged."""
        if not self._models:
            return
        for name, n_tokens in progress.tokens.items():
            ticket = self._tickets.find(name)
            model = None if ticket is None else self._models.get(ticket.model)
            if ticket is not None and model is not None and ticket.engine_id == engine_id:
                model.meter.note_tokens(ticket, n_tokens, now_s)

    def note_end(self, leave: Leave) -> None:
        """A request has ended. Called before it is forgotten."""
        ticket = self._tickets.find(leave.ticket)
        model = None if ticket is None else self._models.get(ticket.model)
        if model is not None and leave.is_finished:
            model.meter.note_end(leave.completion_tokens)

    def note_wake(self, name: ModelName, now_s: float) -> None:
        """Somebody waits at a gateway that cannot read his request before an engine runs."""
        model = self._models.get(name)
        if model is not None:
            model.woken_s = now_s

    # --- what comes of it -------------------------------------------------------------------

    def look(self, now_s: float) -> None:
        """Decides for every model; called about once a second."""
        for name, model in self._models.items():
            self._note_engines(name, model, now_s)
            wanted = model.scaler.decide(self._look_at(name, model, now_s))
            rise = wanted.engines - model.wanted.engines
            if rise:
                logger.info("%s: %d engines wanted: %s.", name, wanted.engines, wanted.reason)
            model.asked_s += [now_s] * rise
            if rise < 0:
                model.asked_s.clear()
            if rise > 0 and not model.wanted.engines:
                self._fleet.outdate_reasons(name, now_s)
            model.wanted = wanted

    def _look_at(self, name: ModelName, model: _Scaled, now_s: float) -> Look:
        ready = [(self._fleet.view(e), e.report.load.kv_usage) for e in self._ready(name)]
        look = model.meter.look(now_s, self._tickets.tickets_of(name), ready, model.start_s)
        is_called = model.is_new or now_s - model.woken_s < _WAKE_LASTS_S
        return replace(look, n_requests=look.n_requests + 1) if is_called else look

    def _ready(self, name: ModelName) -> Iterator[KnownEngine]:
        return (e for e in self._fleet if e.report.model == name and e.report.state == "ready")

    def _note_engines(self, name: ModelName, model: _Scaled, now_s: float) -> None:
        ready = {engine.report.engine_id for engine in self._ready(name)}
        if model.is_new and not model.asked_s:
            model.asked_s = [now_s] * model.wanted.engines
        for _ in ready - model.ready:
            if model.asked_s and now_s - (asked_s := model.asked_s.pop(0)) < _LONGEST_START_S:
                model.start_s = now_s - asked_s
        model.is_new &= not ready
        if not model.ready and model.scaler.least == 0:
            model.meter.awake_since_s = now_s
        model.ready = ready

    def status(self, name: ModelName) -> ScalingStatus | None:
        """Returns how a model stands; None where the number of its engines is fixed."""
        model = self._models.get(name)
        if model is None:
            return None
        wanted = model.wanted
        return ScalingStatus(wanted.engines, wanted.reason, round(model.start_s, 1))

    def wanted(self) -> dict[ModelName, int]:
        """Returns how many engines each model is to have, those with a fixed number included."""
        return self._fixed | {name: m.wanted.engines for name, m in self._models.items()}

    def count_staff(self) -> dict[ModelName, Staff]:
        """Returns how many engines each model has and is to have."""
        return {
            name: Staff(sum(1 for _ in self._ready(name)), n_wanted)
            for name, n_wanted in self.wanted().items()
        }

    def find_overdue(self, ticket: Ticket, now_s: float, max_wait_s: float) -> str | None:
        """Returns why a waiting request has waited too long; None if it has not."""
        model, slept_s = self._models.get(ticket.model), now_s - ticket.since_s
        if model is not None and model.sleeps and slept_s > model.wake_timeout_s:
            return (
                f"The model slept and was not awake after {slept_s:.0f} s; its "
                f"autoscaling.wake_timeout_s is {model.wake_timeout_s:g} s. /ready says more."
            )
        waited_s = self.waited_s(ticket, now_s)
        if waited_s <= max_wait_s:
            return None
        return (
            f"No engine had room for {waited_s:.0f} s; limits.max_wait_s is {max_wait_s:g} s. "
            "Try again later."
        )

    def waited_s(self, ticket: Ticket, now_s: float) -> float:
        """Returns how long a request has waited for room; until its model is awake it does not."""
        model = self._models.get(ticket.model)
        if model is None:
            return now_s - ticket.since_s
        return 0.0 if model.sleeps else model.meter.waited_s(ticket, now_s)

    def shortest_patience_s(self, max_wait_s: float) -> float:
        """Returns how long any request may wait at least."""
        return min([max_wait_s, *(m.wake_timeout_s for m in self._models.values())])

    async def publish_regularly(self) -> None:
        """Writes what is wanted on the board, until cancelled."""
        if self._board is None:
            return
        written: dict[ModelName, tuple[int, float]] = {}
        while True:
            for name, model in list(self._models.items()):
                number, at_s = written.get(name, (-1, 0.0))
                if number != model.wanted.engines or time.monotonic() - at_s > _REPEAT_S:
                    number = model.wanted.engines
                    if await self._write(self._board, name, number):
                        written[name] = number, time.monotonic()
            await asyncio.sleep(_PUBLISH_EVERY_S)

    async def _write(self, board: Board, name: ModelName, engines: int) -> bool:
        try:
            await asyncio.to_thread(board.write, name, engines)
        except Exception as error:  # Ray's, of whatever kind: it is tried again.
            logger.warning("How many engines %s is to have cannot be said: %s", name, error)
            return False
        return True
