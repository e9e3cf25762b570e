"""Which adapter a request uses, and whether its tenant may."""

from contextvars import ContextVar
from dataclasses import dataclass

from serve_app.adapter_registry import Adapter
from serve_app.catalog import Caller
from serve_app.messages import AdapterRef


@dataclass(frozen=True)
class AdapterChoice:
    """The adapter that a request uses.

    Attributes:
        asked: What the request calls it.
        ref: The version that it gets.
    """

    asked: str
    ref: AdapterRef


current_adapter: ContextVar[AdapterChoice | None] = ContextVar("current_adapter", default=None)
"""The adapter of the HTTP request that the present task works for."""


def may_use(caller: Caller, adapter: Adapter) -> bool:
    """Whether a tenant may use an adapter."""
    is_its_own = adapter.owner is None or adapter.owner == caller.tenant_id
    return is_its_own and caller.tenant.may_use(*adapter.names)
