"""What gateways, routers and engines say to one another.

Each message is named for its reader. They travel over `serve_app.wire` as msgpack, one tagged
struct a message; an unknown tag or a field of the wrong type fails to decode and is refused.
Engine requests and outputs are vLLM's own structs and are not repeated here.
"""

from typing import Literal, NewType

import msgspec

from serve_app.adapter_counts import AdapterArrivals, AdapterTally
from serve_app.names import ModelName, TenantId

EngineId = NewType("EngineId", str)
TicketId = NewType("TicketId", str)
"""One generation (one of a request's `n`) from the moment it waits until it ends."""

EngineState = Literal["loading", "ready", "draining", "failed"]


class Endpoint(msgspec.Struct, frozen=True):
    """Where a listener can be reached, and the key without which it does not answer.

    `key` is the listener's CURVE public key. It is handed out over Ray only and works as a
    capability: the handshake cannot be begun without it. It must not be logged.
    """

    address: str
    key: bytes

    def __repr__(self) -> str:
        return f"Endpoint({self.address!r}, key=…)"


class Standing(msgspec.Struct, frozen=True):
    """How a granted request's tenant stands: by this an engine orders what it holds.

    It goes from the router to the engine by way of the gateway, together with the request.
    """

    tenant: TenantId
    tier: int
    """The router's: 0 goes first."""
    counter: int
    """The tenant's service when the request was granted, what it was charged included, in units."""
    charged: int
    """What of that is for this request."""
    is_express: bool = False
    """Whether the engine was full, and one that runs is to yield its place (`policy.express`)."""


class Handover(msgspec.Struct, frozen=True):
    """What a gateway tells an engine beside a request. Goes with it in a frame of its own."""

    ticket: TicketId
    standing: Standing
    produced: list[int] = []
    """Tokens that it has got from other engines, to go on from."""


class AdapterRef(msgspec.Struct, frozen=True):
    """One version of one adapter, as requests carry it and engines load it."""

    id: int
    """Above 0; of this adapter in this version alone, for ever. vLLM's `lora_int_id`."""
    name: str
    """What clients call it: `base-model:adapter`."""
    base: ModelName
    version: str
    """SHA-256 of its files in 64 hexadecimal digits; empty while it is not known."""
    source: str
    """Where it comes from: a folder's address, as `serve_app.adapter_source` has it."""

    @property
    def place(self) -> str:
        """Source and version in one text: vLLM's `lora_path`, which keeps cached prefixes apart."""
        return f"{self.source}#{self.version}"

    @classmethod
    def at(cls, place: str, *, id: int, name: str, base: str) -> "AdapterRef":
        """Reads what `place` wrote."""
        source, _, version = place.rpartition("#")
        return cls(id, name, ModelName(base), version, source)


class EngineLoad(msgspec.Struct, frozen=True):
    """What an engine is doing at this moment."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    """Share of KV-cache blocks in use, 0 to 1."""
    tokens_per_s: float = 0.0
    """Output tokens a second over the last second or so."""


# --- engine -> gateway ---------------------------------------------------------------------


class EngineTimes(msgspec.Struct, frozen=True):
    """How a request began in an engine, told once, with its first output; in a frame before it."""

    adapter_load_s: float = 0.0
    """Seconds that it waited for its adapter before the core got it."""
    queue_s: float = 0.0
    """Seconds that it then waited for a place in the batch."""
    prefill_s: float = 0.0
    """Seconds from there to the end of the step with its first token."""


# --- gateway -> router ---------------------------------------------------------------------


class Enqueue(msgspec.Struct, frozen=True, tag=True):
    """A request wants an engine. Answered by `Grant` or `Refuse`."""

    ticket: TicketId
    tenant: TenantId
    weight: float
    """The tenant's; twice the weight is twice the service while both wait."""
    tier: int
    """The tenant's; a higher one goes first."""
    prompt_tokens: int
    max_tokens: int
    adapter: AdapterRef | None = None
    """What it runs with; None is the base model alone."""
    dialect: str = ""
    """Engines that it may run on (`serve_app.dialect`); empty is any of the model's."""
    marks: bytes = b""
    """Of its prompt, as `policy.prefixes.mark_prompt` wrote them."""


class Leave(msgspec.Struct, frozen=True, tag=True):
    """A ticket ended, whether finished, aborted or failed, waiting or running."""

    ticket: TicketId
    is_finished: bool = False
    """Whether it came to its own end; what was aborted teaches nothing about lengths."""
    completion_tokens: int = 0
    """All that were produced, as the gateway counted them."""
    cached_tokens: int | None = None
    """Prompt tokens that were found in the prefix cache; None is not known."""
    has_failed: bool = False
    """Whether its engine could not run it, and the request is not known to be the reason."""


class RunningTicket(msgspec.Struct, frozen=True):
    """A request that has begun, as its gateway describes it to a router."""

    enqueue: Enqueue
    engine_id: EngineId | None
    """None while it waits to go on elsewhere."""
    completion_tokens: int
    strikes: int = 0
    """Engines in a row that died under it and gave it no token."""
    paid_tokens: int | None = None
    """Tokens that it had when it came from another cell, where these and its prompt were paid; None
    is paid here from the start."""


class Requeue(msgspec.Struct, frozen=True, tag=True):
    """A request has lost its engine. It waits again, before all new ones, and has paid."""

    run: RunningTicket
    failed_on: EngineId | None = None
    """The engine that could not run it; None where it died or leaves."""


class Resume(msgspec.Struct, frozen=True, tag=True):
    """A gateway's whole state, sent first on every connection: a new router starts from these."""

    waiting: list[Enqueue] = []
    running: list[RunningTicket] = []
    ended: list[Leave] = []
    """The last that had run, repeated: the router may have died before it took note of them."""
    model: ModelName = ModelName("")
    """Which of the router's models this connection is for."""


class Alive(msgspec.Struct, frozen=True, tag=True):
    """A gateway lives; sent when it has said nothing else for a while."""


class EngineUnreachable(msgspec.Struct, frozen=True, tag=True):
    """A gateway lost its connection to an engine: nothing more may be sent there."""

    engine_id: EngineId


class Wake(msgspec.Struct, frozen=True, tag=True):
    """Somebody waits for a sleeping model with a request that no engine has said how to read.

    Repeated every second while that is so.
    """


class AdaptersGone(msgspec.Struct, frozen=True, tag=True):
    """Versions of adapters that no new request gets: deleted, or others have taken their place."""

    refs: list[AdapterRef]


class SetLogLevel(msgspec.Struct, frozen=True, tag=True):
    """An operator wants more or fewer log lines, of everyone who is connected to the router."""

    level: str
    """Such as DEBUG; empty is what the settings say."""


class FrontEndWanted(msgspec.Struct, frozen=True, tag=True):
    """A gateway asks for what it needs to parse requests for this model."""

    config_id: str


# --- engine -> router ----------------------------------------------------------------------


class AdapterReport(msgspec.Struct, frozen=True):
    """Which adapters an engine has, by id and tier: what is higher up is below, too."""

    slots: int = 0
    """Different adapters that its batch may have; 0 is an engine without adapters."""
    capacity: int = 0
    """Adapters that its host memory holds."""
    on_disk: list[int] = []
    """Held on its node's disk for it."""
    in_memory: list[int] = []
    """In host memory: a request costs one copy at most."""
    active: list[int] = []
    """In the batch at this moment."""
    failures: dict[int, str] = {}
    """Adapters that could not be loaded of late, and why."""
    tally: AdapterTally = AdapterTally()
    coming: list[int] = []
    """On their way to host memory."""


class EngineReport(msgspec.Struct, frozen=True, tag=True):
    """An engine's state and load, sent at every change and as its heartbeat."""

    engine_id: EngineId
    state: EngineState
    detail: str = ""
    endpoint: Endpoint | None = None
    """None until the engine is ready."""
    config_id: str = ""
    max_running: int = 0
    """Requests the engine wants handed over at once, running and waiting."""
    load: EngineLoad = EngineLoad()
    model: ModelName = ModelName("")
    """Which of the router's models it serves."""
    adapters: AdapterReport = AdapterReport()
    prefix_tokens: int = 0
    """Tokens that its prefix cache holds; 0 is none."""


class FrontEndOffer(msgspec.Struct, frozen=True, tag=True):
    """What gateways need to parse requests for this engine, pickled by the engine."""

    config_id: str
    payload: bytes


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Tokens that an engine produced since its last such message."""

    tokens: dict[TicketId, int]


class EngineGone(msgspec.Struct, frozen=True, tag=True):
    """An engine leaves for good; what it still runs is to go on elsewhere."""

    engine_id: EngineId


# --- router -> gateway ---------------------------------------------------------------------


class Grant(msgspec.Struct, frozen=True, tag=True):
    """It is this ticket's turn, on this engine."""

    ticket: TicketId
    engine_id: EngineId
    endpoint: Endpoint
    standing: Standing
    queue_s: float = 0.0
    """Seconds that it has waited at this router, since it came or came back, for its turn."""
    adapter_load_s: float = 0.0
    """Seconds beside those that it waited, its turn come, for its adapter to be loaded."""


class EngineLost(msgspec.Struct, frozen=True, tag=True):
    """Nothing more is to be expected of an engine: what it runs has to go on elsewhere."""

    engine_id: EngineId
    is_leaving: bool
    """Whether it leaves as it was told to. Then no request is to blame."""


class Refuse(msgspec.Struct, frozen=True, tag=True):
    """This ticket will not be served."""

    ticket: TicketId
    kind: Literal["crowded", "overdue", "outdated"]
    """Too many wait already, it has waited too long itself, or its model has become another."""
    reason: str
    retry_after_s: float


class Introduce(msgspec.Struct, frozen=True, tag=True):
    """The router does not know this gateway, or not any more: it is to send `Resume`."""


class EngineStatus(msgspec.Struct, frozen=True):
    """One engine as `/ready` shows it."""

    engine_id: EngineId
    state: EngineState
    detail: str
    load: EngineLoad
    adapters: AdapterTally = AdapterTally()
    adapters_in_memory: int = 0
    places: int = 0
    """Requests that it wants at a time, a few more than it runs."""


class TenantStatus(msgspec.Struct, frozen=True):
    """One tenant at a router."""

    tenant: TenantId
    weight: float
    waiting: int
    running: int
    lag: float
    """How far it is behind the waiting tenant that has got most; 0 where it does not wait."""


class FairnessStatus(msgspec.Struct, frozen=True):
    """How fair a router is at this moment, in tokens of cost and weight 1."""

    gap: float = 0.0
    """Greatest difference of service of two tenants that wait."""
    bound: float = 0.0
    """What the gap cannot exceed."""
    tenants_waiting: int = 0
    tenants: list[TenantStatus] = []
    """Those that wait or run most, and no more than operators can read."""


class ScalingStatus(msgspec.Struct, frozen=True):
    """How many engines a model is to have."""

    wanted: int
    reason: str
    start_s: float
    """What an engine took to start, last time; 0 is not known."""


class ModelStatus(msgspec.Struct, frozen=True, tag=True):
    """What a router knows of a model, pushed at every change and about once a second."""

    config_id: str
    """Identifies the front end to use; empty until an engine has been ready."""
    engines: list[EngineStatus]
    waiting: int
    fairness: FairnessStatus = FairnessStatus()
    adapters: AdapterArrivals = AdapterArrivals()
    log_level: str = ""
    """What an operator has set; empty where nobody has."""
    scaling: ScalingStatus | None = None
    """None where the number of engines is fixed."""
    note: str = ""
    """What the platform has done about a deployment of it that failed."""
    is_settling: bool = False
    """Whether the router is so new that engines may be there that have not reported to it yet."""


class FrontEndPayload(msgspec.Struct, frozen=True, tag=True):
    """Answer to `FrontEndWanted`."""

    config_id: str
    payload: bytes


# --- router -> engine ----------------------------------------------------------------------


class Counters(msgspec.Struct, frozen=True, tag=True):
    """Answer to `Progress`: the counters of the tenants that have something on this engine."""

    counters: dict[TenantId, int]


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """The engine is to bring an adapter into host memory: requests for it are coming."""

    ref: AdapterRef
    tenant: TenantId
    """Whose requests."""


class Drop(msgspec.Struct, frozen=True, tag=True):
    """The engine is to forget adapters as soon as no request uses them, on its disk, too."""

    refs: list[AdapterRef]


class HoldOn(msgspec.Struct, frozen=True, tag=True):
    """The engine, which could not start, is not to end yet: the next one would fail as soon."""

    wait_s: float
    n_failed: int
    """Starts of this model that failed one after the other, with this one."""


class LogLevel(msgspec.Struct, frozen=True, tag=True):
    """The engine is to log no less and no more than this; empty is what its settings say."""

    level: str


RouterMail = (
    Enqueue
    | Requeue
    | Leave
    | Resume
    | Alive
    | EngineUnreachable
    | Wake
    | AdaptersGone
    | SetLogLevel
    | FrontEndWanted
    | EngineReport
    | FrontEndOffer
    | Progress
    | EngineGone
)
GatewayMail = Grant | EngineLost | Refuse | Introduce | ModelStatus | FrontEndPayload
EngineMail = Counters | Prepare | Drop | HoldOn | LogLevel
