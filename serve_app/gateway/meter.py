"""What one HTTP request uses, counted while it runs.

`Dispatch` makes a meter, the `ModelClient` counts on it, and when the request has ended whatever
way it becomes one usage record. A request may have several tickets (`n`, or several prompts); the
prompt of an `n` is counted once, as OpenAI counts it.
"""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest

from serve_app import telemetry
from serve_app.catalog import Caller
from serve_app.names import ModelName
from serve_app.usage import Outcome, UsageRecord, new_request_id


@dataclass
class Meter:
    """Counts for one HTTP request."""

    caller: Caller
    model: ModelName
    started_s: float = field(default_factory=time.time)
    first_token_s: float | None = None
    completion_tokens: int = 0
    cached_tokens: int = 0
    _prompts: dict[str, int] = field(default_factory=dict)

    @property
    def prompt_tokens(self) -> int:
        """Those of every prompt, each once."""
        return sum(self._prompts.values())

    @property
    def is_used(self) -> bool:
        """Whether anything was asked of an engine."""
        return bool(self._prompts)

    def begin(self, request: EngineCoreRequest) -> None:
        """Takes note of a ticket."""
        prompt = request.external_req_id or request.request_id
        self._prompts[prompt] = len(request.prompt_token_ids or ())

    def take(self, output: EngineCoreOutput) -> None:
        """Counts what a step produced for one of its tickets."""
        if output.new_token_ids and self.first_token_s is None:
            self.first_token_s = time.time()
        self.completion_tokens += len(output.new_token_ids)
        if output.prefill_stats is not None:
            self.cached_tokens += output.prefill_stats.num_cached_tokens

    def close(self, outcome: Outcome) -> UsageRecord:
        """Returns the record of the request, which has ended."""
        return UsageRecord(
            request_id=new_request_id(),
            client_request_id=telemetry.request_id.get(),
            tenant_id=self.caller.tenant_id,
            key_id=self.caller.key.id if self.caller.key is not None else "",
            model=self.model,
            outcome=outcome,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=min(self.cached_tokens, self.prompt_tokens),
            completion_tokens=self.completion_tokens,
            started_s=self.started_s,
            first_token_s=self.first_token_s,
            ended_s=time.time(),
        )


current_meter: ContextVar[Meter] = ContextVar("current_meter")
"""The meter of the request that the present task works for."""
