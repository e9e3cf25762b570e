"""What import workers are asked, and what they answer: one line of JSON each.

A worker is a process of its own, so that nothing that it does (waiting for a store, reading,
hashing, multiplying) takes a moment of the process that serves.
"""

import hashlib

import msgspec

from serve_app.policy.adapter_shapes import ModelShape


class AdapterFacts(msgspec.Struct, frozen=True):
    """What was found in an adapter; kept beside its files as `import.json`."""

    version: str
    """SHA-256 of the files as its author made them."""
    mark: str
    """Another one when a file at the source is another; cheap to ask for."""
    rank: int
    """Its greatest."""
    modules: tuple[str, ...]
    """Last names of the modules that it changes."""
    n_bytes: int
    """Of its weights in the form that engines load."""
    source_bytes: int
    """Of its weights as its author made them."""
    sha256: str
    """Of weights and config in the form that engines load, in this order."""


class Bring(msgspec.Struct, frozen=True, tag=True):
    """Have an adapter on this node's disk. Answered by `Brought`, `Refused` or `Away`."""

    source: str
    version: str
    """What it must be; empty takes what there is."""
    shape: ModelShape
    max_rank: int


class Look(msgspec.Struct, frozen=True, tag=True):
    """Say whether a source has changed, without reading it. Answered by `Seen` or as `Bring`."""

    source: str


class Brought(msgspec.Struct, frozen=True, tag=True):
    """The adapter is here."""

    key: str
    facts: AdapterFacts


class Seen(msgspec.Struct, frozen=True, tag=True):
    """The source's mark."""

    mark: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    """`AdapterRefusedError`."""

    message: str
    is_missing: bool


class Away(msgspec.Struct, frozen=True, tag=True):
    """`AdapterAwayError`."""

    message: str
    retry_after_s: float


Job = Bring | Look
Outcome = Brought | Seen | Refused | Away


def key_of(version: str, shape: ModelShape) -> str:
    """Return what an adapter's folder in the cache is called: other files or form, another name."""
    return hashlib.sha256(f"2\n{version}\n{shape.fingerprint}".encode()).hexdigest()
