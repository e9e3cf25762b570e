"""An engine core without weights: it says the prompt's tokens back, in order and again.

For fast tests and for measuring what the platform itself costs. Same interface as
`deployments.vllm_core.VllmCore`; one contract test runs both. Never a default. Steps take what
`deployments.echo_pace` says. Who starts and who yields is `serve_app.policy.engine_turns`' choice,
as in the real engine. Without a prefix cache what was preempted is computed again.
"""

import queue
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from vllm.config import VllmConfig
from vllm.tasks import SupportedTask
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
)

from deployments.echo_adapters import AdapterPace, EchoAdapters, adapter_of
from deployments.echo_cache import BlockCache, salt_of
from deployments.echo_pace import Pace
from deployments.echo_request import EchoRequest, prepare
from deployments.vllm_core import Emit
from serve_app.messages import Standing, TicketId
from serve_app.names import TenantId
from serve_app.policy.engine_turns import EngineTurns
from serve_app.policy.prompt_chunks import OwnSteps, Prompt, plan_prompts

_News = (
    tuple[EngineCoreRequest, Standing, Sequence[int], float] | list[str] | Mapping[TenantId, int]
)
"""A request, with what it has got elsewhere and when it came; ids to abort; or the counters."""


class EchoCore:
    """Answers each request with its own prompt until `max_tokens` or one of its stop tokens.

    Args:
        config: Resolved as for a real engine; gives limits and the tokenizer, never weights.
        emit: Takes each step's outputs for one client.
        pace: How long steps take. None says all of a request's tokens in one step.
        adapters: How many adapters it takes, and what they cost.
        cache_tokens: Tokens that its prefix cache holds; 0 is none.
        prompt_chunk: As `prompt_chunk_tokens` of a model's settings.
    """

    def __init__(
        self,
        config: VllmConfig,
        emit: Emit,
        pace: Pace | None,
        adapters: AdapterPace = AdapterPace(),  # noqa: B008 - frozen
        cache_tokens: int = 0,
        prompt_chunk: int | None = None,
    ) -> None:
        self._emit = emit
        self._pace = pace
        self._adapters = EchoAdapters(adapters)
        self._cache = BlockCache(cache_tokens)
        self._prompt_chunk = prompt_chunk
        self._own_steps = OwnSteps()
        self._begun: list[TicketId] = []
        """What the step has started."""
        self._active: set[TicketId] = set()
        """Those whose tokens the step computes."""
        self._mail: queue.SimpleQueue[_News | Callable[[], None] | None] = queue.SimpleQueue()
        self.last_step_s = time.monotonic()
        self._turns = EngineTurns()
        self._waiting: dict[TicketId, EchoRequest] = {}
        self._running: dict[TicketId, EchoRequest] = {}
        self._max_running = int(config.scheduler_config.max_num_seqs)
        eos = config.model_config.hf_config.eos_token_id
        self._never_said = set(eos) if isinstance(eos, list) else {eos}

    @property
    def max_running(self) -> int:
        """Sequences that one batch can hold."""
        return self._max_running

    @property
    def prefix_tokens(self) -> int:
        """Tokens that its prefix cache holds; 0 is none."""
        return self._cache.capacity

    @property
    def tasks(self) -> tuple[SupportedTask, ...]:
        """It generates and can do nothing else."""
        return ("generate",)

    def accept(
        self, request: EngineCoreRequest, standing: Standing, produced: Sequence[int] = ()
    ) -> None:
        """Takes a request; it runs when it is its turn."""
        self._mail.put((request, standing, produced, time.monotonic()))

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

    def hold_adapter(self, adapter_id: int, path: str) -> Future[float]:
        """Takes as long as loading would; no weights are read."""
        return self._between_steps(lambda: self._adapters.hold(adapter_id))

    def activate_adapter(self, adapter_id: int) -> Future[float]:
        """Takes as long as a copy to a slot would, if one is free."""
        return self._between_steps(lambda: self._adapters.activate(adapter_id))

    def drop_adapter(self, adapter_id: int) -> Future[float]:
        """Forgets an adapter that no request uses."""
        return self._between_steps(lambda: self._adapters.drop(adapter_id))

    def _between_steps(self, errand: Callable[[], None]) -> Future[float]:
        done: Future[float] = Future()

        def run() -> None:
            began_s = time.monotonic()
            errand()
            done.set_result(time.monotonic() - began_s)

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
            case EngineCoreRequest() as request, Standing() as standing, produced, came_s:
                self._add(request, standing, len(produced))
                queued = EngineCoreEvent(EngineCoreEventType.QUEUED, float(came_s))
                self._waiting[TicketId(request.request_id)].events = [queued]
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
        entry = self._waiting[ticket] = prepare(request, request.sampling_params, self._never_said)
        entry.said = said
        self._turns.arrive(ticket, standing)

    def _end(self, ticket: TicketId) -> None:
        if self._waiting.pop(ticket, None) is not None:
            self._turns.take(ticket)
        entry = self._running.pop(ticket, None)
        if entry is not None:
            self._cache.hold(entry.tokens, salt_of(entry.request))
            self._adapters.end(adapter_of(entry.request))
        self._turns.end(ticket)

    def _begin_step(self) -> float:
        """Fills the batch; returns how many seconds its step takes."""
        if self._adapters.pace.slots:
            self._adapters.plan(self._waiting[ticket].request for ticket in self._turns)
        self._make_room()
        adapters_s = 0.0
        self._begun = []
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
            entry.uncomputed = self._prefill(entry)
            self._begun.append(ticket)
            entry.note_begun()
        for ticket in skipped:
            self._turns.put_back(ticket)
        if self._pace is None:
            return adapters_s
        chunk = self._prompt_chunk if self._turns.n_tenants > 1 else None
        express = {t for t in self._begun if self._turns.is_express(t)}
        is_own = self._own_steps.give(len(express), chunk)
        self._active = express if is_own else set(self._running)
        prompt_tokens = self._compute_prompts(chunk)
        kv_tokens = sum(self._running[ticket].held_tokens for ticket in self._active)
        return adapters_s + self._pace.time_step(len(self._active), kv_tokens, prompt_tokens)

    def _compute_prompts(self, chunk: int | None) -> int:
        """Plans what of prompts the step computes; returns how many tokens that is."""
        entries = {t: e for t, e in self._running.items() if e.uncomputed and t in self._active}
        prompts = [Prompt(e.uncomputed, self._turns.is_express(t)) for t, e in entries.items()]
        parts = plan_prompts(prompts, chunk)
        for entry, part in zip(entries.values(), parts, strict=True):
            entry.uncomputed -= part
        return sum(parts)

    def _prefill(self, entry: EchoRequest) -> int:
        """Starts a request or goes on with it; returns how many tokens have to be computed."""
        if not self._cache.capacity:
            return entry.held_tokens
        tokens, salt = entry.tokens, salt_of(entry.request)
        cached = self._cache.match(tokens, salt)
        self._cache.hold(tokens, salt)
        if not entry.said:
            entry.cached_tokens = cached
        return len(tokens) - cached

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
            self._cache.hold(entry.tokens, salt_of(entry.request))
            self._adapters.end(adapter_of(entry.request))

    def _end_step(self) -> None:
        by_client: dict[int, list[EngineCoreOutput]] = defaultdict(list)
        for ticket, entry in list(self._running.items()):
            if self._pace is not None and (entry.uncomputed or ticket not in self._active):
                continue
            output = entry.say(1 if self._pace is not None else entry.limit)
            by_client[entry.request.client_index].append(output)
            if output.finished:
                self._end(ticket)
        for client_index, outputs in by_client.items():
            self._emit(client_index, EngineCoreOutputs(outputs=outputs))
