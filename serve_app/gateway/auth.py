"""Who sends a request. Decides from the key alone and does no I/O.

Run `python -m serve_app.gateway.auth new-key` to make a key and the hash that config.yaml wants.
"""

import hashlib
import secrets
import sys
from collections.abc import Mapping

from serve_app.config import AuthOff, AuthStatic
from serve_app.names import KeyId, TenantId

ANONYMOUS = TenantId("anonymous")
_PREFIX = "sk-arriero-"


def hash_key(key: str) -> str:
    """SHA-256 in hexadecimal. Keys are 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class Authenticator:
    """Maps API keys to tenants."""

    def __init__(self, settings: AuthOff | AuthStatic) -> None:
        self._tenant_of: dict[str, TenantId] | None = None
        if isinstance(settings, AuthStatic):
            self._tenant_of = {
                key_hash: tenant
                for tenant, hashes in settings.tenants.items()
                for key_hash in hashes
            }

    def identify(self, headers: Mapping[str, str]) -> TenantId | None:
        """Returns the tenant, or None when the key is missing or unknown.

        Looking up a hash by dictionary takes time that depends on the hash only, of which a
        guesser of keys learns nothing.
        """
        if self._tenant_of is None:
            return ANONYMOUS
        key = _read_key(headers)
        return self._tenant_of.get(hash_key(key)) if key else None


def key_id_of(headers: Mapping[str, str]) -> KeyId:
    """Names the key of a request that was identified; tells nothing of it."""
    return KeyId(f"declared-{hash_key(_read_key(headers))[:8]}")


def _read_key(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    # Anthropic's clients send their key in a header of its own.
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def main(argv: list[str]) -> int:
    """Prints a new key and its hash."""
    if argv != ["new-key"]:
        print("usage: python -m serve_app.gateway.auth new-key", file=sys.stderr)
        return 2
    key = _PREFIX + secrets.token_urlsafe(32)
    print(f"key (give it to the tenant; it is not stored): {key}")
    print(f"hash (for config.yaml, auth.tenants): {hash_key(key)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
