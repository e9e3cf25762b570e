"""An engine core without weights: it says the prompt's tokens back, in order and again.

For fast tests and for measuring what the platform itself costs. Same interface as
`deployments.vllm_core.VllmCore`; one contract test runs both. Never a default. Steps take what
`deployments.echo_pace` says. Who starts and who yields is `serve_app.policy.engine_turns`' choice,
as in the real engine; there is no prefix cache, so what was preempted is computed again.
"""

import queue
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.tasks import SupportedTask
from vllm.v1.engine import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.outputs import LogprobsLists

from deployments.echo_adapters import AdapterPace, EchoAdapters, adapter_of
from deployments.echo_pace import Pace
from deployments.vllm_core import Emit
from serve_app.messages import Standing, TicketId
from serve_app.names import TenantId
from serve_app.policy.engine_turns import EngineTurns

_News = tuple[EngineCoreRequest, Standing, Sequence[int]] | list[str] | Mapping[TenantId, int]
"""A request with what it has got elsewhere, ids to abort, or the router's counters."""
_IMPOSSIBLE = -100.0
"""A log-probability next to none."""


@dataclass
class _Running:
    request: EngineCoreRequest
    echo: list[int]
    limit: int
    stops_at: int | None = None
    """The token that ends it, when it reaches its limit."""
    said: int = 0

    def say(self, n_tokens: int) -> EngineCoreOutput:
        """The next `n_tokens` tokens, fewer at the end."""
        end = min(self.said + n_tokens, self.limit)
        tokens = [self.echo[i % len(self.echo)] for i in range(self.said, end)]
        self.said = end
        done = FinishReason.LENGTH if self.stops_at is None else FinishReason.STOP
        return EngineCoreOutput(
            self.request.request_id,
            tokens,
            self._logprobs(tokens),
            finish_reason=done if end >= self.limit else None,
            stop_reason=self.stops_at if end >= self.limit else None,
        )

    @property
    def held_tokens(self) -> int:
        """Tokens of it in the KV cache."""
        return len(self.request.prompt_token_ids or ()) + self.said

    def _logprobs(self, tokens: list[int]) -> LogprobsLists | None:
        """Certainty: the token said has probability 1, the first ids stand in for others."""
        params = self.request.sampling_params
        if params is None or params.logprobs is None:
            return None
        n_others = max(0, params.logprobs)
        others = range(n_others + 1)
        ids = [[token, *[i for i in others if i != token][:n_others]] for token in tokens]
        logprobs = [[0.0] + [_IMPOSSIBLE] * n_others] * len(tokens)
        return LogprobsLists(
            np.array(ids, dtype=np.int32).reshape(len(tokens), n_others + 1),
            np.array(logprobs, dtype=np.float32).reshape(len(tokens), n_others + 1),
            np.ones(len(tokens), dtype=np.int32),
        )


class EchoCore:
    """Answers each request with its own prompt until `max_tokens` or one of its stop tokens.

    Args:
        config: Resolved as for a real engine; gives limits and the tokenizer, never weights.
        emit: Takes each step's outputs for one client.
        pace: How long steps take. None says all of a request's tokens in one step.
        adapters: How many adapters it takes, and what they cost.
    """

    def __init__(
        self,
        config: VllmConfig,
        emit: Emit,
        pace: Pace | None,
        adapters: AdapterPace = AdapterPace(),  # noqa: B008 - frozen
    ) -> None:
        self._emit = emit
        self._pace = pace
        self._adapters = EchoAdapters(adapters)
        self._mail: queue.SimpleQueue[_News | Callable[[], None] | None] = queue.SimpleQueue()
        self.last_step_s = time.monotonic()
        self._turns = EngineTurns()
        self._waiting: dict[TicketId, _Running] = {}
        self._running: dict[TicketId, _Running] = {}
        self._max_running = int(config.scheduler_config.max_num_seqs)
        eos = config.model_config.hf_config.eos_token_id
        self._never_said = set(eos) if isinstance(eos, list) else {eos}

    @property
    def max_running(self) -> int:
        """Sequences that one batch can hold."""
        return self._max_running

    @property
    def prefix_tokens(self) -> int:
        """It has no prefix cache."""
        return 0

    @property
    def tasks(self) -> tuple[SupportedTask, ...]:
        """It generates and can do nothing else."""
        return ("generate",)

    def accept(
        self, request: EngineCoreRequest, standing: Standing, produced: Sequence[int] = ()
    ) -> None:
        """Takes a request; it runs when it is its turn."""
        self._mail.put((request, standing, produced))

    def synchronise(self, counters: Mapping[TenantId, int]) -> None:
        """Takes the router's counters; they hold from the next step on."""
        self._mail.put(counters)

    @property
    def adapter_slots(self) -> int:
        """Different adapters that a batch may have."""
        return self._adapters.pace.slots

    @property
    def adapter_capacity(self) -> int:
        """Adapters that host memory holds."""
        return self._adapters.pace.capacity

    def active_adapters(self) -> set[int]:
        """Adapters of the requests that run."""
        return self._adapters.active

    def hold_adapter(self, adapter_id: int, path: str) -> Future[None]:
        """Takes as long as loading would; no weights are read."""
        return self._between_steps(lambda: self._adapters.hold(adapter_id))

    def activate_adapter(self, adapter_id: int) -> Future[None]:
        """Takes as long as a copy to a slot would, if one is free."""
        return self._between_steps(lambda: self._adapters.activate(adapter_id))

    def drop_adapter(self, adapter_id: int) -> Future[None]:
        """Forgets an adapter that no request uses."""
        return self._between_steps(lambda: self._adapters.drop(adapter_id))

    def _between_steps(self, errand: Callable[[], None]) -> Future[None]:
        done: Future[None] = Future()

        def run() -> None:
            errand()
            done.set_result(None)

        self._mail.put(run)
        return done

    def abort(self, request_ids: list[str]) -> None:
        """Ends requests; unknown ids are ignored."""
        self._mail.put(request_ids)

    def stop(self) -> None:
        """Makes `run` return."""
        self._mail.put(None)

    def counts(self) -> tuple[int, int, float]:
        """Requests running, requests waiting, share of the batch in use."""
        return len(self._running), len(self._waiting), len(self._running) / self._max_running

    def run(self) -> None:
        """Steps until `stop`."""
        ends_s: float | None = None
        length_s = 0.0
        while self._read_mail(ends_s):
            now_s = time.monotonic()
            if ends_s is not None and now_s < ends_s:
                continue
            if ends_s is not None:
                self._end_step()
                self.last_step_s = time.monotonic()
            # What a step was late is made good by the next one; an idle time is not.
            begins_s = now_s if ends_s is None else max(ends_s, now_s - length_s)
            length_s = self._begin_step()
            ends_s = begins_s + length_s if self._running else None

    def _read_mail(self, until_s: float | None) -> bool:
        """Reads all that has come, waiting for the step's end or, when idle, for mail."""
        wait_s = None if until_s is None else max(0.0, until_s - time.monotonic())
        try:
            mail = self._mail.get(timeout=wait_s)
            while True:
                if mail is None:
                    return False
                self._take(mail)
                mail = self._mail.get_nowait()
        except queue.Empty:
            return True

    def _take(self, news: _News | Callable[[], None]) -> None:
        match news:
            case EngineCoreRequest() as request, Standing() as standing, produced:
                self._add(request, standing, len(produced))
            case list():
                for request_id in news:
                    self._end(TicketId(request_id))
            case Mapping():
                self._turns.synchronise(news)
            case _:
                news()

    def _add(self, request: EngineCoreRequest, standing: Standing, said: int) -> None:
        assert request.sampling_params is not None
        ticket = TicketId(request.request_id)
        entry = self._waiting[ticket] = self._prepare(request, request.sampling_params)
        entry.said = said
        self._turns.arrive(ticket, standing)

    def _end(self, ticket: TicketId) -> None:
        if self._waiting.pop(ticket, None) is not None:
            self._turns.take(ticket)
        entry = self._running.pop(ticket, None)
        if entry is not None:
            self._adapters.end(adapter_of(entry.request))
        self._turns.end(ticket)

    def _prepare(self, request: EngineCoreRequest, params: SamplingParams) -> _Running:
        prompt = request.prompt_token_ids or []
        echo = [token for token in prompt if token not in self._never_said] or [0]
        limit = params.max_tokens or 16
        stops = set(params.stop_token_ids or ())
        for i in range(max(params.min_tokens - 1, 0), min(limit, params.min_tokens + len(echo))):
            if echo[i % len(echo)] in stops:
                return _Running(request, echo, i + 1, echo[i % len(echo)])
        return _Running(request, echo, limit)

    def _begin_step(self) -> float:
        """Fills the batch; returns how many seconds its step takes."""
        if self._adapters.pace.slots:
            self._adapters.plan(self._waiting[ticket].request for ticket in self._turns)
        self._make_room()
        prompt_tokens = 0
        adapters_s = 0.0
        skipped: list[TicketId] = []
        while len(self._running) < self._max_running and (ticket := self._turns.next()):
            self._turns.take(ticket)
            adapter = adapter_of(self._waiting[ticket].request)
            if not self._adapters.may_start(adapter):
                skipped.append(ticket)
                continue
            adapters_s += self._adapters.start(adapter)
            self._turns.start(ticket)
            entry = self._running[ticket] = self._waiting.pop(ticket)
            prompt_tokens += entry.held_tokens
        for ticket in skipped:
            self._turns.put_back(ticket)
        if self._pace is None:
            return adapters_s
        kv_tokens = sum(entry.held_tokens for entry in self._running.values())
        return adapters_s + self._pace.time_step(len(self._running), kv_tokens, prompt_tokens)

    def _make_room(self) -> None:
        """Preempts what has to yield to express requests."""
        express = [
            ticket
            for ticket in self._turns.waiting_express()
            if self._adapters.may_start(adapter_of(self._waiting[ticket].request))
        ]
        for n_places, newcomer in enumerate(express, 1):
            if len(self._running) + n_places <= self._max_running:
                continue
            ticket = self._turns.choose_yielding(newcomer)
            if ticket is None:
                return
            self._turns.give_place(ticket)
            self._turns.put_back(ticket)
            entry = self._waiting[ticket] = self._running.pop(ticket)
            self._adapters.end(adapter_of(entry.request))

    def _end_step(self) -> None:
        by_client: dict[int, list[EngineCoreOutput]] = defaultdict(list)
        for ticket, entry in list(self._running.items()):
            output = entry.say(1 if self._pace is not None else entry.limit)
            by_client[entry.request.client_index].append(output)
            if output.finished:
                self._end(ticket)
        for client_index, outputs in by_client.items():
            self._emit(client_index, EngineCoreOutputs(outputs=outputs))
