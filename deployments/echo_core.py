"""An engine core without weights: it says the prompt's tokens back, in order and again.

For fast tests and for measuring what the platform itself costs. Same interface as
`deployments.vllm_core.VllmCore`; one contract test runs both. Never a default.
"""

import queue
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from vllm.config import VllmConfig
from vllm.tasks import SupportedTask
from vllm.v1.engine import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.outputs import LogprobsLists

from deployments.vllm_core import Emit
from serve_app.messages import Standing
from serve_app.names import TenantId

_IMPOSSIBLE = -100.0
"""A log-probability next to none."""


@dataclass
class _Running:
    request: EngineCoreRequest
    echo: list[int]
    limit: int
    said: int = 0

    def say(self, n_tokens: int) -> EngineCoreOutput:
        """The next `n_tokens` tokens, fewer at the end."""
        end = min(self.said + n_tokens, self.limit)
        tokens = [self.echo[i % len(self.echo)] for i in range(self.said, end)]
        self.said = end
        done = FinishReason.LENGTH if end >= self.limit else None
        return EngineCoreOutput(
            self.request.request_id, tokens, self._logprobs(tokens), finish_reason=done
        )

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
    """Answers each request with its own prompt until `max_tokens`.

    Args:
        config: Resolved as for a real engine; gives limits and the tokenizer, never weights.
        emit: Takes each step's outputs for one client.
        tokens_per_s: Pace of one request. None says all of a request's tokens in one step.
    """

    def __init__(self, config: VllmConfig, emit: Emit, tokens_per_s: float | None) -> None:
        self._emit = emit
        self._step_s = 1.0 / tokens_per_s if tokens_per_s else 0.0
        self._mail: queue.SimpleQueue[EngineCoreRequest | list[str] | None] = queue.SimpleQueue()
        self._waiting: deque[_Running] = deque()
        self._running: dict[str, _Running] = {}
        self._max_running = int(config.scheduler_config.max_num_seqs)
        eos = config.model_config.hf_config.eos_token_id
        self._never_said = set(eos) if isinstance(eos, list) else {eos}

    @property
    def max_running(self) -> int:
        """Sequences that one batch can hold."""
        return self._max_running

    @property
    def tasks(self) -> tuple[SupportedTask, ...]:
        """It generates and can do nothing else."""
        return ("generate",)

    def accept(self, request: EngineCoreRequest, standing: Standing) -> None:
        """Takes a request; it runs as soon as there is room, in the order of arrival."""
        self._mail.put(request)

    def synchronise(self, counters: Mapping[TenantId, int]) -> None:
        """Needs no counters."""

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
        next_step_s = time.monotonic()
        while self._read_mail(next_step_s):
            self._admit()
            now_s = time.monotonic()
            if now_s < next_step_s:
                continue
            # After an idle time the pace starts anew; within one it is kept on average.
            next_step_s = max(next_step_s, now_s - self._step_s) + self._step_s
            self._step()

    def _read_mail(self, until_s: float) -> bool:
        """Reads all that has come, waiting for the next step or, when idle, for mail."""
        busy = bool(self._running or self._waiting)
        wait_s = max(0.0, until_s - time.monotonic()) if busy else None
        try:
            mail = self._mail.get(timeout=wait_s)
            while True:
                if mail is None:
                    return False
                self._take(mail)
                mail = self._mail.get_nowait()
        except queue.Empty:
            return True

    def _take(self, mail: EngineCoreRequest | list[str]) -> None:
        if isinstance(mail, list):
            for request_id in mail:
                self._running.pop(request_id, None)
            self._waiting = deque(r for r in self._waiting if r.request.request_id not in mail)
            return
        assert mail.sampling_params is not None
        prompt = mail.prompt_token_ids or []
        echo = [token for token in prompt if token not in self._never_said] or [0]
        self._waiting.append(_Running(mail, echo, limit=mail.sampling_params.max_tokens or 16))

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_running:
            entry = self._waiting.popleft()
            self._running[entry.request.request_id] = entry

    def _step(self) -> None:
        by_client: dict[int, list[EngineCoreOutput]] = defaultdict(list)
        for entry in list(self._running.values()):
            output = entry.say(1 if self._step_s else entry.limit)
            by_client[entry.request.client_index].append(output)
            if output.finished:
                del self._running[entry.request.request_id]
        for client_index, outputs in by_client.items():
            self._emit(client_index, EngineCoreOutputs(outputs=outputs))
