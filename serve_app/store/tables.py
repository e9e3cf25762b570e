"""The tables, as the code sees them. `migrations/` makes them; a test compares the two.

Times are seconds since 1970 (UTC). Costs are whole billionths of a US dollar, so that sums are
exact. An adapter of '' means the base model itself.
"""

import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Date,
    Double,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Table(DeclarativeBase):
    """What every table is made from."""


class CatalogVersionRow(Table):
    """One row: the number of changes ever made to tenants, keys and adapters.

    Whoever changes one raises it first and so holds its lock: changes become visible in the order
    of their numbers, and a reader that has seen a number has missed nothing below it.
    """

    __tablename__ = "catalog_version"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    version: Mapped[int] = mapped_column(BigInteger)


class TenantRow(Table):
    """A tenant made through the admin API. A deleted one leaves its row, to tell of it."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Weight, tier, limits, budgets, allowed models: `TenantSettings` without its id."""
    created_s: Mapped[float] = mapped_column(Double)
    updated_s: Mapped[float] = mapped_column(Double)
    deleted_s: Mapped[float | None] = mapped_column(Double)
    version: Mapped[int] = mapped_column(BigInteger, index=True)


class KeyRow(Table):
    """An API key. Its tenant may be a declared one, of which there is no row."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(64), index=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    prefix: Mapped[str] = mapped_column(String(16))
    name: Mapped[str | None] = mapped_column(String(128))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    limits: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_s: Mapped[float] = mapped_column(Double)
    expires_s: Mapped[float | None] = mapped_column(Double)
    revoked_s: Mapped[float | None] = mapped_column(Double)
    last_used_s: Mapped[float | None] = mapped_column(Double)
    version: Mapped[int] = mapped_column(BigInteger, index=True)


class AdapterRow(Table):
    """An adapter registered through the admin API. A deleted one leaves its row, to tell of it."""

    __tablename__ = "adapters"

    name: Mapped[str] = mapped_column(String(512), primary_key=True)
    """Base model and adapter, `llama:sql`."""
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    """`AdapterSettings`."""
    created_s: Mapped[float] = mapped_column(Double)
    deleted_s: Mapped[float | None] = mapped_column(Double)
    version: Mapped[int] = mapped_column(BigInteger, index=True)


class AdapterVersionRow(Table):
    """One content of one adapter, wherever that was named. Never deleted: engines go by the id.

    The current one of an adapter and a source is the one with the greatest `version`.
    """

    __tablename__ = "adapter_versions"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(512))
    content: Mapped[str] = mapped_column(String(64))
    """SHA-256 of its files."""
    source: Mapped[str] = mapped_column(String(2048))
    mark: Mapped[str] = mapped_column(String(64))
    """Of the files at the source; empty where they are no more."""
    facts: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Rank, modules and size."""
    created_s: Mapped[float] = mapped_column(Double)
    version: Mapped[int] = mapped_column(BigInteger, index=True)

    __table_args__ = (
        UniqueConstraint("name", "content"),
        {"sqlite_autoincrement": True},  # Or the id of a row that was last might be given again.
    )


class UsageRow(Table):
    """What one request used. Written once."""

    __tablename__ = "usage"

    request_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Ours, never the client's: two requests under one name would be billed as one."""
    client_request_id: Mapped[str] = mapped_column(String(128))
    """The answer's `x-request-id`, which a client may choose and use twice."""
    tenant_id: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(256))
    adapter: Mapped[str] = mapped_column(String(256))
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    outcome: Mapped[str] = mapped_column(String(16))
    cost_nano_usd: Mapped[int] = mapped_column(BigInteger)
    started_s: Mapped[float] = mapped_column(Double)
    first_token_s: Mapped[float | None] = mapped_column(Double)
    ended_s: Mapped[float] = mapped_column(Double)
    status: Mapped[int | None] = mapped_column(Integer)
    """This and what follows is None in rows from before there were request records."""
    engine: Mapped[str | None] = mapped_column(String(128))
    migrations: Mapped[int | None] = mapped_column(Integer)
    gateway_s: Mapped[float | None] = mapped_column(Double)
    queue_s: Mapped[float | None] = mapped_column(Double)
    router_s: Mapped[float | None] = mapped_column(Double)
    adapter_load_s: Mapped[float | None] = mapped_column(Double)
    engine_ttft_s: Mapped[float | None] = mapped_column(Double)
    ttft_s: Mapped[float | None] = mapped_column(Double)
    ledger_s: Mapped[float | None] = mapped_column(Double)
    total_s: Mapped[float | None] = mapped_column(Double)

    __table_args__ = (
        Index("ix_usage_tenant_ended", "tenant_id", "ended_s"),
        Index("ix_usage_ended", "ended_s"),
        Index("ix_usage_client_request", "client_request_id"),
    )


class RequestTextRow(Table):
    """What was asked and answered in a request of a tenant that wants this kept."""

    __tablename__ = "request_texts"

    request_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(64))
    ended_s: Mapped[float] = mapped_column(Double, index=True)
    path: Mapped[str] = mapped_column(String(64))
    request: Mapped[str] = mapped_column(Text)
    answer: Mapped[str] = mapped_column(Text)
    is_whole: Mapped[bool] = mapped_column(Boolean)

    __table_args__ = (Index("ix_request_texts_tenant_ended", "tenant_id", "ended_s"),)


class UsageDayRow(Table):
    """Usage of a tenant, model and adapter summed over a day (UTC), kept beside the rows.

    Reports over months and a ledger that starts anew read this; raw rows may be purged.
    """

    __tablename__ = "usage_days"

    day: Mapped[datetime.date] = mapped_column(Date, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str] = mapped_column(String(256), primary_key=True)
    adapter: Mapped[str] = mapped_column(String(256), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    failed: Mapped[int] = mapped_column(BigInteger)
    cancelled: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    cost_nano_usd: Mapped[int] = mapped_column(BigInteger)
