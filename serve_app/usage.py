"""What one request used: the words in which it is recorded, stored and billed."""

import secrets
import time
from datetime import UTC, date, datetime
from typing import Literal

import msgspec

from serve_app.names import TenantId

Outcome = Literal["finished", "failed", "cancelled", "refused"]
"""Refused is what no engine had: it used nothing and is in no sum."""

_MOST = 1 << 53


def new_request_id() -> str:
    """Return a name for a request that no other has; begins with the time, for good index order."""
    return f"{int(time.time() * 1000):012x}{secrets.token_hex(10)}"


class Texts(msgspec.Struct, frozen=True, kw_only=True):
    """A request's body and its answer, as they went over the wire."""

    path: str
    request: str
    answer: str
    is_whole: bool
    """Whether neither was cut off."""


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one request used. Written to disk as a line of JSON, and to the store as a row."""

    request_id: str
    """From `new_request_id`, never the client's: a name used twice would be billed once."""
    tenant_id: TenantId
    model: str
    """The base model's name."""
    outcome: Outcome
    started_s: float
    ended_s: float
    key_id: str = ""
    adapter: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens whose work was found done; among `prompt_tokens`."""
    completion_tokens: int = 0
    cost_usd: float = 0.0
    first_token_s: float | None = None
    client_request_id: str = ""
    """The `x-request-id` that the client got, by which a person finds the row."""
    status: int = 0
    """HTTP; 0 where the answer never began."""
    engine: str = ""
    """The engine that had it last."""
    migrations: int = 0
    """Engines that it has lost and gone on without."""
    gateway_s: float = 0.0
    """This and the next four, in seconds, add up to `ttft_s` (`gateway.timings` defines them)."""
    queue_s: float = 0.0
    router_s: float = 0.0
    adapter_load_s: float = 0.0
    engine_ttft_s: float = 0.0
    ttft_s: float | None = None
    """From its arrival to its first token; None where none came."""
    ledger_s: float = 0.0
    """Part of `gateway_s` that was waiting for the ledger."""
    total_s: float = 0.0
    """From its arrival to its end."""
    texts: Texts | None = None
    """What was asked and answered, where its tenant wants that kept."""

    @property
    def day(self) -> date:
        """The day (UTC) that it counts for."""
        return datetime.fromtimestamp(self.ended_s, UTC).date()

    @property
    def cost_nano_usd(self) -> int:
        """Its cost in whole billionths of a US dollar."""
        return round(self.cost_usd * 1e9)

    def fitted(self) -> "UsageRecord":
        """Returns the record as every database takes it: no text too long, no count too large."""
        return msgspec.structs.replace(
            self,
            request_id=_fit(self.request_id, 64),
            client_request_id=_fit(self.client_request_id, 128),
            model=_fit(self.model, 256),
            adapter=_fit(self.adapter, 256),
            key_id=_fit(self.key_id, 64),
            engine=_fit(self.engine, 128),
            prompt_tokens=_bound(self.prompt_tokens),
            cached_tokens=_bound(self.cached_tokens),
            completion_tokens=_bound(self.completion_tokens),
            cost_usd=min(max(self.cost_usd, 0.0), 1e6),
        )


def _fit(text: str, most_chars: int) -> str:
    clean = text.replace("\x00", "").encode("utf-8", "replace").decode()
    return clean[:most_chars]


def _bound(count: int) -> int:
    return min(max(count, 0), _MOST)
