"""What gateways and the ledger say to one another.

As in `serve_app.messages`, each is named for its reader and travels as msgpack over
`serve_app.wire`; here a message is a list of them, all of one turn of the sender's event loop.
Gateways send no times: only the ledger's clock counts.
"""

from typing import NewType

import msgspec

from serve_app.names import KeyId, ModelName, TenantId

LeaseId = NewType("LeaseId", str)
"""One reservation, from the moment it is asked for until it is settled."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens used for a lease so far, or in the end."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


# --- gateway -> ledger ---------------------------------------------------------------------


class Reserve(msgspec.Struct, frozen=True, tag=True):
    """A request wants to begin. Answered by `Granted` or `Refused`."""

    lease: LeaseId
    tenant: TenantId
    key: KeyId
    """Empty where there are no keys."""
    model: ModelName
    requests: int
    """1; or 0 for a later turn of a request that was counted already."""
    prompt_tokens: int
    max_tokens: tuple[int, ...]
    """The most tokens that each of its completions may have."""
    is_max_tokens_given: bool = True
    """Whether the client said so; if not, a limit lowers it instead of refusing it."""
    adapter: str = ""
    """Full name of the adapter that it uses, by which it is priced; empty is none."""


class Progress(msgspec.Struct, frozen=True):
    """A running lease: what it was granted for, and what it has used so far."""

    reserve: Reserve
    usage: Usage


class Resume(msgspec.Struct, frozen=True, tag=True):
    """A gateway's running leases, sent first on every connection."""

    running: list[Progress] = []


class Renew(msgspec.Struct, frozen=True, tag=True):
    """These leases still run; sent several times in a lease's length."""

    running: dict[LeaseId, Usage]


class Settle(msgspec.Struct, frozen=True, tag=True):
    """A lease has ended. Sent again on every connection until answered by `Settled`."""

    lease: LeaseId
    usage: Usage | None
    """None gives everything back: nothing was served, through no fault of the client."""


class Forget(msgspec.Struct, frozen=True, tag=True):
    """`Settled` has come for these: they will not be settled again."""

    leases: list[LeaseId]


class Look(msgspec.Struct, frozen=True, tag=True):
    """How do things stand? Answered by `Looked`; reserves nothing."""

    number: int
    tenant: TenantId
    key: KeyId
    model: ModelName


class SetLogLevel(msgspec.Struct, frozen=True, tag=True):
    """An operator wants more or fewer log lines; empty is what the settings say."""

    level: str


# --- ledger -> gateway ---------------------------------------------------------------------


class Meter(msgspec.Struct, frozen=True):
    """One limit as the `x-ratelimit-*` headers show it."""

    limit: int
    remaining: int
    reset_s: float
    """Seconds until all of it is there again, if nothing else begins."""


class Standing(msgspec.Struct, frozen=True):
    """The tightest limits a minute on requests and on tokens; None where there is none."""

    requests: Meter | None = None
    tokens: Meter | None = None


class Granted(msgspec.Struct, frozen=True, tag=True):
    """The request may begin."""

    lease: LeaseId
    standing: Standing
    max_output_tokens: int | None = None
    """What each completion is cut to; None leaves them as they are."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The request may not begin; nothing was taken for it."""

    lease: LeaseId
    limit: str
    """Name of the limit, as `LimitSpec` has it."""
    scope: str
    """Whom the limit binds, in words."""
    value: float
    used: float
    """What counted against the limit, this request not included."""
    requested: float
    retry_after_s: float | None
    """It is granted after so long if nothing else begins. None: it never fits."""
    standing: Standing
    may_come: bool = False
    """Whether it would fit if other cells gave up what they hold; then nobody knows how long."""


class Settled(msgspec.Struct, frozen=True, tag=True):
    """These are accounted for and will survive the ledger."""

    leases: list[LeaseId]


class Looked(msgspec.Struct, frozen=True, tag=True):
    """Answer to `Look`."""

    number: int
    standing: Standing


LedgerMail = Reserve | Resume | Renew | Settle | Forget | Look | SetLogLevel
LeaseMail = Granted | Refused | Settled | Looked
