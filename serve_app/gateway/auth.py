"""Who sends a request. Decides from the key alone and does no I/O."""

import time
from collections.abc import Mapping
from contextvars import ContextVar

from serve_app.catalog import Caller, Catalog
from serve_app.config_tenants import Scope
from serve_app.gateway.error_body import ApiError
from serve_app.keys import hash_key, read_key
from serve_app.names import KeyId

current_caller: ContextVar[Caller] = ContextVar("current_caller")
"""Whose request this task handles. Set by the gateway from the API key and nothing else."""

_HOW_TO_SEND = "Send it as 'Authorization: Bearer <key>'."
_MAX_NOTED = 100_000


class Authenticator:
    """Finds the caller of a request in the catalog, and notes which keys are in use.

    Args:
        catalog: Tenants and keys as they are known now.
        needs_keys: Whether a request without a key is refused. If not, keys are not looked at.
    """

    def __init__(self, catalog: Catalog, *, needs_keys: bool) -> None:
        self._catalog = catalog
        self.needs_keys = needs_keys
        """May change while the gateway runs."""
        self._used_s: dict[KeyId, float] = {}

    def identify(self, headers: Mapping[str, str]) -> Caller:
        """Returns who sends a request.

        Raises:
            ApiError: 401 the key is missing or does not work; 503 it is not known yet whether it
                does.
        """
        if not self.needs_keys:
            return self._catalog.anonymous()
        key = read_key(headers)
        if key is None:
            raise ApiError(401, f"There is no API key in the request. {_HOW_TO_SEND}")
        now_s = time.time()
        caller = self._catalog.identify(hash_key(key), now_s)
        if caller is not None:
            self._note_use(caller, now_s)
            return caller
        if not self._catalog.is_loaded:
            raise ApiError(
                503,
                "The API keys are still being read. Try again shortly.",
                code="keys_not_loaded",
                retry_after_s=2.0,
            )
        raise ApiError(
            401,
            "The API key is unknown, expired or revoked. Check that it is complete, or ask for "
            "a new one.",
        )

    def _note_use(self, caller: Caller, now_s: float) -> None:
        if caller.key is not None and caller.key.source == "admin":
            if len(self._used_s) >= _MAX_NOTED:
                self._used_s.clear()
            self._used_s[caller.key.id] = now_s

    def take_used(self) -> dict[KeyId, float]:
        """Returns when stored keys were last used, and forgets it."""
        used, self._used_s = self._used_s, {}
        return used


def check_scope(caller: Caller, scope: Scope) -> None:
    """Refuses a key that lacks a scope.

    Raises:
        ApiError: 403.
    """
    if caller.can(scope):
        return
    if caller.key is None:
        raise ApiError(
            403,
            "Administration needs a key, and keys are off here. Set auth.kind to keys in the "
            "config file and make a key with `arriero keys create --bootstrap`.",
            code="keys_are_off",
        )
    has = ", ".join(sorted(caller.key.scopes))
    raise ApiError(
        403,
        f"This API key has the scope {has} and not {scope}, which this path needs. "
        f"Use a key with the scope {scope}.",
        code="insufficient_scope",
    )


def check_sight(caller: Caller) -> None:
    """Refuses a key without the scope `admin`. Where keys are off, this machine may look.

    Raises:
        ApiError: 403.
    """
    if caller.key is not None:
        check_scope(caller, "admin")
