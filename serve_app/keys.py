"""API keys: how they are made, hashed, shown, and read out of a request. Nothing here does I/O.

A key is `sk-arriero-` and 256 random bits. It is shown once, when it is made; what is kept is its
SHA-256. A slow hash would add nothing against guessing 256 random bits.
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from serve_app.names import KeyId

KEY_PREFIX = "sk-arriero-"
_SHOWN_CHARS = 8
_MAX_KEY_CHARS = 512


@dataclass(frozen=True)
class FreshKey:
    """A key that was just made, the only time that its text is known.

    Attributes:
        text: The key itself.
        id: What names it from now on.
    """

    text: str = field(repr=False)
    id: KeyId

    @property
    def hash(self) -> str:
        """What is kept of it."""
        return hash_key(self.text)

    @property
    def prefix(self) -> str:
        """Its first characters, by which its owner recognises it."""
        return self.text.removeprefix(KEY_PREFIX)[:_SHOWN_CHARS]


def make_key() -> FreshKey:
    """Return a new random key."""
    return FreshKey(KEY_PREFIX + secrets.token_urlsafe(32), KeyId(f"key-{secrets.token_hex(8)}"))


def hash_key(text: str) -> str:
    """Return a key's SHA-256 in lower-case hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def read_key(headers: Mapping[str, str]) -> str | None:
    """Return the key that a request carries, or None.

    `Authorization: Bearer <key>` is OpenAI's form, `x-api-key: <key>` Anthropic's. Where both
    stand, the first counts.
    """
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
    return key if 0 < len(key) <= _MAX_KEY_CHARS else None
