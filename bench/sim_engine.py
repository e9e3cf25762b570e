"""A batching engine as a model of its own time, step by step.

A step takes a fixed time, and some more for each running sequence, each token in the KV cache and
each prompt token computed. It holds as many requests as its KV cache has room for with prompt and
answer complete. Whose turn it is in the engine, and who yields, is as in the real one.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deployments.echo_pace import Pace
from serve_app.messages import EngineId, Standing, TicketId
from serve_app.names import TenantId
from serve_app.policy.engine_turns import EngineTurns
from serve_app.policy.queueing import Waiting
from serve_app.policy.turns import Admission


class EngineModel(Pace, frozen=True, kw_only=True):
    """What an engine can hold and how long its steps take.

    The defaults are Llama-2-7B on an A10G as the paper has it: 1.744 requests/s of 256/256.
    """

    kv_tokens: int = 10_000
    max_running: int = 256
    step_s: float = 0.0300
    per_sequence_s: float = 0.00022
    per_kv_token_s: float = 0.8e-6
    per_prompt_token_s: float = 0.000196

    @classmethod
    def load(cls, path: Path) -> "EngineModel":
        """Reads measurements of another engine from JSON; absent fields keep their default."""
        return msgspec.json.decode(path.read_bytes(), type=cls)


@dataclass(frozen=True, slots=True)
class SimRequest:
    """One request of a workload."""

    arrival_s: float
    tenant: TenantId
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    lane: str = ""

    @property
    def service(self) -> int:
        """Prompt tokens, and twice the output tokens."""
        return self.prompt_tokens + 2 * self.output_tokens


@dataclass(slots=True, eq=False)
class Job:
    """A request in the simulation; what became of it."""

    request: SimRequest
    waiting: Waiting
    gateway: int
    is_refused: bool = False
    admitted_s: float | None = None
    first_token_s: float | None = None
    end_s: float | None = None
    produced: int = 0
    """Tokens."""
    unreported: int = 0
    engine: "SimEngine | None" = None

    @property
    def held_tokens(self) -> int:
        """Room it takes in the KV cache."""
        return self.request.prompt_tokens + self.request.output_tokens


class SimEngine:
    """One engine: what was handed to it, in the order of its turns, and what runs."""

    def __init__(self, name: str, model: EngineModel) -> None:
        self.engine_id = EngineId(name)
        self.model = model
        self.turns = EngineTurns()
        self.handed: dict[TicketId, Job] = {}
        self.running: dict[TicketId, Job] = {}
        self.by_tenant: Counter[TenantId] = Counter()
        self.preemptions = 0
        self.held_tokens = 0
        self.handed_tokens = 0
        self.kv_tokens = 0
        self.busy_until_s: float | None = None

    @property
    def in_flight(self) -> int:
        """Requests handed over and not ended."""
        return len(self.handed) + len(self.running)

    def could_start(self, tokens: int) -> bool:
        """Whether a request of so many tokens would start at once."""
        held = self.held_tokens + self.handed_tokens + tokens
        return held <= self.model.kv_tokens and self.in_flight < self.model.max_running

    def hand(self, job: Job, admission: Admission) -> None:
        """Gives it a request."""
        job.engine = self
        request = job.request
        # Orders without counters hand over in the order in which requests are to start.
        tenant = request.tenant if admission.charged else TenantId("")
        self.turns.arrive(
            job.waiting.ticket,
            Standing(
                tenant,
                admission.tier,
                admission.counter,
                admission.charged,
                admission.fit.is_express,
            ),
        )
        self.handed[job.waiting.ticket] = job
        self.by_tenant[request.tenant] += 1
        self.handed_tokens += job.held_tokens

    def begin_step(self) -> float | None:
        """Starts what fits; returns how long the next step takes, None if there is nothing."""
        self._make_room()
        prompt_tokens = 0
        while (ticket := self.turns.next()) is not None and self._has_room([self.handed[ticket]]):
            self.turns.take(ticket)
            self.turns.start(ticket)
            job = self.running[ticket] = self.handed.pop(ticket)
            self.handed_tokens -= job.held_tokens
            self.held_tokens += job.held_tokens
            # Without a prefix cache: what a preempted request had is computed again.
            prompt_tokens += job.request.prompt_tokens + job.produced
        if not self.running:
            return None
        self.kv_tokens += prompt_tokens
        return self.model.time_step(len(self.running), self.kv_tokens, prompt_tokens)

    def _has_room(self, jobs: Sequence[Job]) -> bool:
        tokens = self.held_tokens + sum(job.held_tokens for job in jobs)
        n_running = len(self.running) + len(jobs)
        return n_running <= self.model.max_running and tokens <= self.model.kv_tokens

    def _make_room(self) -> None:
        express = [self.handed[ticket] for ticket in self.turns.waiting_express()]
        for n, newcomer in enumerate(express, 1):
            while not self._has_room(express[:n]):
                ticket = self.turns.choose_yielding(newcomer.waiting.ticket)
                if ticket is None:
                    return
                self._preempt(ticket)

    def _preempt(self, ticket: TicketId) -> None:
        self.turns.give_place(ticket)
        self.turns.put_back(ticket)
        job = self.handed[ticket] = self.running.pop(ticket)
        self.held_tokens -= job.held_tokens
        self.handed_tokens += job.held_tokens
        self.kv_tokens -= job.request.prompt_tokens + job.produced
        self.preemptions += 1

    def end_step(self, now_s: float) -> list[Job]:
        """Produces a token for each running request; returns those that have ended."""
        ended = []
        for job in self.running.values():
            job.produced += 1
            if job.produced == 1:
                job.first_token_s = now_s
            if job.produced == job.request.output_tokens:
                ended.append(job)
        self.kv_tokens += len(self.running)
        for job in ended:
            job.end_s = now_s
            del self.running[job.waiting.ticket]
            self.turns.end(job.waiting.ticket)
            self.by_tenant[job.request.tenant] -= 1
            self.by_tenant += Counter()
            self.held_tokens -= job.held_tokens
            self.kv_tokens -= job.held_tokens
        return ended
