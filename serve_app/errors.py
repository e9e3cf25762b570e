"""Every error this platform raises on purpose, in one tree.

    ArrieroError
    ├── ClientError        the request is wrong; sending it again does not help
    │   └── AdapterRefusedError  an adapter is not there, or not fit to be served
    ├── OverloadedError    no room now; send it again after `retry_after_s`
    │   └── AdapterAwayError   an adapter cannot be brought here now
    ├── InternalError      our fault
    │   ├── EngineStartError   a model could not be loaded
    │   ├── EngineDeadError    an engine stopped working while it served
    │   └── StoreError         tenants, keys or usage cannot be read or written now
    │       └── StoreRefusedError  the database will never take these values
    ├── CommandError       a command failed
    └── ConfigError        the settings are wrong; nothing was started

Texts say what is wrong, which value, which limit and what to do. They never hold prompt text or a
key. Plain dataclasses with `eq=False`, because errors cross actors and must survive pickling.
"""

from dataclasses import dataclass


@dataclass(eq=False)
class ArrieroError(Exception):
    """Root of the tree.

    Attributes:
        message: What a person reads.
    """

    message: str

    def __str__(self) -> str:
        """Return what a person reads."""
        return self.message


@dataclass(eq=False)
class ClientError(ArrieroError):
    """The request is wrong; sending it again does not help."""


@dataclass(eq=False)
class AdapterRefusedError(ClientError):
    """An adapter is not there, or not fit to be served. The text says why.

    Attributes:
        is_missing: Whether there is no such adapter, rather than a bad one.
    """

    is_missing: bool = False


@dataclass(eq=False)
class OverloadedError(ArrieroError):
    """There is no room now.

    Attributes:
        retry_after_s: Seconds after which another try is worth it.
    """

    retry_after_s: float


@dataclass(eq=False)
class AdapterAwayError(OverloadedError):
    """An adapter cannot be brought here now: its store does not answer, or there is no room."""


@dataclass(eq=False)
class InternalError(ArrieroError):
    """This platform is at fault."""


@dataclass(eq=False)
class EngineStartError(InternalError):
    """A model could not be loaded. The text says why and what to do."""


@dataclass(eq=False)
class EngineDeadError(InternalError):
    """An engine stopped working while it served."""


@dataclass(eq=False)
class StoreError(InternalError):
    """Tenants, keys or usage cannot be read or written now."""


@dataclass(eq=False)
class StoreRefusedError(StoreError):
    """The database will never take these values: one is out of bounds, or must not repeat."""


@dataclass(eq=False)
class CommandError(ArrieroError):
    """A command failed; the text says why and what to do."""


@dataclass(eq=False)
class ConfigError(ArrieroError):
    """The settings are wrong; nothing was started. `message` lists every problem found."""
