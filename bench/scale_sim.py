"""A fleet of batching engines that grows and shrinks, as a simulation of whole days.

Engines are those of `bench.sim_engine`: a step takes what `EngineModel` says, and an engine holds
what its KV cache has room for. To get through a day, an engine takes several steps at a time, and
who arrives meanwhile begins after them; that is at most `_STEPS` steps. One queue, first come,
first served; requests go to the engine with the smallest share of its room in use, as in
`policy.routing`.

An engine that is started costs from then on and serves `start_s` later. One that is stopped takes
nothing more and costs until it has finished what it has.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bench.sim_engine import EngineModel, SimRequest
from serve_app.policy.scaling import Look

_STEPS = 8
_LOOK_S = 1.0


@dataclass(slots=True, eq=False)
class _Running:
    request: SimRequest
    first_s: float = 0.0


class _Engine:
    """One engine: what runs is kept by the step at which it ends."""

    def __init__(self, number: int, model: EngineModel, asked_s: float, ready_s: float) -> None:
        self.number, self.model = number, model
        self.asked_s, self.ready_s = asked_s, ready_s
        self.is_leaving = self.is_stepping = False
        self._step = 0
        self._ends: list[tuple[int, int, SimRequest]] = []
        self._new: list[SimRequest] = []
        self._held = self._kv = 0
        self._n = 0
        self._taken = 0

    @property
    def n_running(self) -> int:
        """Requests that it has."""
        return len(self._ends) + len(self._new)

    @property
    def fill(self) -> float:
        """How full it is, from 0 to 1."""
        return max(self._held / self.model.kv_tokens, self.n_running / self.model.max_running)

    def has_room(self, request: SimRequest) -> bool:
        """Whether a request would start at once."""
        held = self._held + request.prompt_tokens + request.output_tokens
        return held <= self.model.kv_tokens and self.n_running < self.model.max_running

    def hand(self, request: SimRequest) -> None:
        """Gives it a request."""
        self._new.append(request)
        self._held += request.prompt_tokens + request.output_tokens

    def advance(self, now_s: float) -> tuple[float, list[tuple[SimRequest, float]], int]:
        """Begins some steps.

        Returns:
            When they end; who gets a first token meanwhile, and when; output tokens.
        """
        prompt = sum(request.prompt_tokens for request in self._new)
        self._kv += prompt
        n = self.n_running
        first_s = now_s + self.model.time_step(n, self._kv, prompt)
        begun = [(request, first_s) for request in self._new]
        for request in self._new:
            self._taken += 1
            heapq.heappush(self._ends, (self._step + request.output_tokens, self._taken, request))
        self._new.clear()
        steps = min(self._ends[0][0] - self._step, _STEPS)
        rest = steps - 1
        end_s = first_s + rest * self.model.time_step(n, self._kv + n * steps // 2, 0)
        self._step += steps
        self._kv += n * steps
        return end_s, begun, n * steps

    def end_steps(self) -> None:
        """Lets go of what has ended."""
        while self._ends and self._ends[0][0] <= self._step:
            _, _, request = heapq.heappop(self._ends)
            self._held -= request.prompt_tokens + request.output_tokens
            self._kv -= request.prompt_tokens + request.output_tokens


class Policy(Protocol):
    """Says how many engines there are to be."""

    def decide(self, look: Look, n_target: int) -> int:
        """Returns it; called every second."""


@dataclass
class Outcome:
    """What a policy came to."""

    ttft_s: list[float] = field(default_factory=list)
    """In the order of first tokens."""
    engine_s: float = 0.0
    n_unserved: int = 0
    timeline: list[tuple[float, int, int]] = field(default_factory=list)
    """Every minute: seconds, engines wanted, engines ready."""

    def attainment(self, target_s: float) -> float:
        """Returns the part of all requests whose first token came in time."""
        n_good = sum(ttft_s <= target_s for ttft_s in self.ttft_s)
        return n_good / max(len(self.ttft_s) + self.n_unserved, 1)

    def percentile_s(self, share: float) -> float:
        """Returns the time to the first token that this share of requests did not exceed."""
        return sorted(self.ttft_s)[min(int(share * len(self.ttft_s)), len(self.ttft_s) - 1)]


class Day:
    """Plays one trace under one policy.

    Args:
        requests: In the order of their arrival.
        model: Of all engines.
        policy: Decides.
        start_s: What an engine takes to start.
        ttft_target_s: When a first token is late.
        engines: At the beginning, ready.
    """

    def __init__(
        self,
        requests: Sequence[SimRequest],
        model: EngineModel,
        policy: Policy,
        start_s: float,
        ttft_target_s: float,
        engines: int = 1,
    ) -> None:
        self._requests, self._model, self._policy = requests, model, policy
        self._start_s, self._ttft_target_s = start_s, ttft_target_s
        self._n_made = 0
        self._engines: list[_Engine] = []
        self._target = engines
        self._queue: deque[SimRequest] = deque()
        self._events: list[tuple[float, int, _Engine]] = []
        self._n_events = 0
        self._arrived = self._done = self._queued = 0.0
        self._n_first = self._n_late = 0
        self._outcome = Outcome()
        for _ in range(engines):
            self._start(0.0, 0.0)

    def run(self, until_s: float) -> Outcome:
        """Plays everything up to a time."""
        arrivals = iter(self._requests)
        request = next(arrivals, None)
        look_s = 0.0
        while True:
            step_s = self._events[0][0] if self._events else float("inf")
            arrival_s = request.arrival_s if request is not None else float("inf")
            now_s = min(step_s, arrival_s, look_s)
            if now_s > until_s:
                break
            if now_s == look_s:
                self._look(now_s)
                look_s += _LOOK_S
            elif request is not None and arrival_s <= step_s:
                self._arrive(request)
                request = next(arrivals, None)
            else:
                self._end_steps(now_s)
            self._dispatch(now_s)
        self._outcome.engine_s += sum(until_s - engine.asked_s for engine in self._engines)
        self._outcome.n_unserved = len(self._queue)
        return self._outcome

    def _arrive(self, request: SimRequest) -> None:
        self._queue.append(request)
        self._arrived += request.service
        self._queued += request.service

    def _dispatch(self, now_s: float) -> None:
        while self._queue:
            fits = [e for e in self._serving(now_s) if e.has_room(self._queue[0])]
            if not fits:
                break
            request = self._queue.popleft()
            self._queued -= request.service
            min(fits, key=lambda e: (e.fill, e.number)).hand(request)
        for engine in self._engines:
            if not engine.is_stepping and engine.n_running:
                self._advance(engine, now_s)

    def _serving(self, now_s: float) -> list[_Engine]:
        return [e for e in self._engines if e.ready_s <= now_s and not e.is_leaving]

    def _advance(self, engine: _Engine, now_s: float) -> None:
        end_s, begun, n_tokens = engine.advance(now_s)
        engine.is_stepping = True
        self._n_events += 1
        heapq.heappush(self._events, (end_s, self._n_events, engine))
        self._done += 2.0 * n_tokens
        for request, first_s in begun:
            ttft_s = first_s - request.arrival_s
            self._outcome.ttft_s.append(ttft_s)
            self._done += request.prompt_tokens
            self._n_first += 1
            self._n_late += ttft_s > self._ttft_target_s

    def _end_steps(self, now_s: float) -> None:
        _, _, engine = heapq.heappop(self._events)
        engine.is_stepping = False
        engine.end_steps()
        if engine.is_leaving and not engine.n_running:
            self._end(engine, now_s)

    # --- engines come and go ----------------------------------------------------------------

    def _look(self, now_s: float) -> None:
        ready = self._serving(now_s)
        n_requests = len(self._queue) + sum(engine.n_running for engine in self._engines)
        overdue = bool(self._queue) and now_s - self._queue[0].arrival_s > self._ttft_target_s
        look = Look(
            now_s,
            arrived=self._arrived,
            done=self._done,
            waiting=self._queued,
            n_requests=n_requests,
            n_ready=len(ready),
            fill=sum(min(engine.fill, 1.0) for engine in ready),
            n_first_tokens=self._n_first,
            n_late=self._n_late + overdue,
            start_s=self._start_s,
        )
        self._arrived = self._done = 0.0
        self._n_first = self._n_late = 0
        self._scale(self._policy.decide(look, self._target), now_s)
        if now_s % 60.0 == 0.0:
            self._outcome.timeline.append((now_s, self._target, len(ready)))

    def _scale(self, target: int, now_s: float) -> None:
        self._target = target
        staying = [engine for engine in self._engines if not engine.is_leaving]
        for _ in range(target - len(staying)):
            self._start(now_s, now_s + self._start_s)
        # As Serve does: those that do not serve yet go first.
        staying.sort(key=lambda e: (-e.ready_s if e.ready_s > now_s else 0.0, e.n_running))
        for engine in staying[: max(len(staying) - target, 0)]:
            engine.is_leaving = True
            if not engine.n_running:
                self._end(engine, now_s)

    def _start(self, asked_s: float, ready_s: float) -> None:
        self._n_made += 1
        self._engines.append(_Engine(self._n_made, self._model, asked_s, ready_s))

    def _end(self, engine: _Engine, now_s: float) -> None:
        self._engines.remove(engine)
        self._outcome.engine_s += now_s - engine.asked_s
