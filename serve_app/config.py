"""The platform's settings: what `applications[].args` of a Ray Serve config file may say.

Each part of the platform gets its own section. Sections are frozen, refuse unknown keys and do not
convert types, so that a typing error is an error and not a silent other meaning. Importing this
module needs neither Ray nor vLLM: engine arguments are checked by `serve_app.engine_args`, which
`parse_settings` imports when a model asks for vLLM.
"""

import ipaddress
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from serve_app.config_adapters import AdaptersSettings, find_adapter_conflict
from serve_app.config_cell import CellMembership
from serve_app.config_fleet import FleetSettings
from serve_app.config_front import FrontSettings
from serve_app.config_limits import LedgerSettings, PriceSpec
from serve_app.config_metrics import MetricsSettings
from serve_app.config_model import (
    Accelerator,
    CpuAccelerator,
    EchoEngine,
    EmbeddedSource,
    Engine,
    FrontEndSettings,
    GpuAccelerator,
    HuggingFaceSource,
    LocalSource,
    ModelSettings,
    ObjectStoreSource,
    ReplicaSettings,
    Source,
    VllmEngine,
)
from serve_app.config_problems import Problem, describe_invalid, list_problems
from serve_app.config_records import RecordsSettings
from serve_app.config_section import Cpus, Seconds, Section
from serve_app.config_store import StoreSettings, Where
from serve_app.config_tenants import DeclaredTenant, find_tenant_conflict
from serve_app.config_tracing import TracingSettings
from serve_app.errors import ConfigError
from serve_app.names import ModelName, PricedNameText

__all__ = [
    "Accelerator",
    "AuditSettings",
    "AuthKeys",
    "AuthOff",
    "AuthSettings",
    "CellMembership",
    "CpuAccelerator",
    "DeclaredTenant",
    "EchoEngine",
    "EmbeddedSource",
    "Engine",
    "FleetSettings",
    "FrontEndSettings",
    "FrontSettings",
    "GatewaySettings",
    "GpuAccelerator",
    "HuggingFaceSource",
    "LimitSettings",
    "LocalSource",
    "LoggingSettings",
    "ModelSettings",
    "ObjectStoreSource",
    "RecordsSettings",
    "ReplicaSettings",
    "RouterSettings",
    "Section",
    "Settings",
    "Source",
    "StoreSettings",
    "TracingSettings",
    "VllmEngine",
    "check_exposure",
    "cost_factors_of",
    "is_loopback",
    "parse_settings",
]

Bytes = Annotated[int, Field(ge=1024, le=1 << 40)]


class GatewaySettings(Section):
    """The HTTP edge."""

    replicas: Annotated[int, Field(ge=1, le=256)] = 1
    """Gateway processes."""
    cpus: Cpus = 1.0
    """CPUs that one gateway asks of Ray."""
    max_body_bytes: Bytes = 16 << 20
    """Longest request body in bytes. A longer one is refused before it is read whole."""
    max_concurrent_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    """Requests that one gateway holds at the same time, waiting ones included."""
    sse_keep_alive_s: Annotated[int, Field(ge=0, le=3600)] = 15
    """Seconds of silence after which a stream sends a comment, so no proxy cuts it. 0 = never."""
    request_timeout_s: Seconds | None = None
    """Most seconds that a request may take, if its `x-request-timeout` does not say fewer. None
    means no bound."""
    drain_timeout_s: Seconds = 300.0
    """Seconds that a stopping gateway gets to finish its streams."""


class RouterSettings(Section):
    """The actor of each model that decides who is next, and on which engine."""

    cpus: Cpus = 0.1
    """CPUs that one router asks of Ray."""


class LimitSettings(Section):
    """Bounds that keep a crowd from hurting everyone."""

    max_waiting: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Requests that may wait for one model. One more is refused with 503."""
    max_wait_s: Seconds = 600.0
    """Seconds that a request may wait for an engine. Then it is refused with 503."""
    max_running_per_engine: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Requests sent to one engine at a time. None means its `max_num_seqs` and a few more."""
    max_engine_deaths_in_a_row: Annotated[int, Field(ge=1, le=1000)] = 3
    """Engines that may die under a request, one after the other, and give it no token. Then it is
    stopped with 500, as it may be what kills them. It makes its last try alone."""
    max_engine_deaths: Annotated[int, Field(ge=1, le=1000)] = 20
    """Engines that may die under a request in all. Then it is stopped with 500."""
    retry_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.2
    """Requests that a gateway may try again because their engine died or failed before their first
    token, as a part of all. One beyond that is refused with 503. Those that have tokens, or that an
    engine hands over as it leaves, always go on."""
    retry_reserve: Annotated[int, Field(ge=0, le=100_000)] = 256
    """Retries that a gateway may save up for one model, so that single deaths cost no request."""
    retry_after_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 1.0
    """Seconds that a refused client is told to wait."""


class AuditSettings(Section):
    """A log of every decision on whose turn it is, for `arriero fairness replay`.

    It holds ids of tenants and requests and numbers of tokens, no texts.
    """

    folder: Where | None = None
    """Folder on each router's machine; every model has its own in it. None means `audit` in the
    state folder."""
    max_file_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 34)] = 16 << 20
    """Bytes after which a new file begins."""
    max_files: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Files kept of each model. The oldest is removed."""


class FairnessSettings(Section):
    """Whose request is next when more wait than run: the tenant that has got the least service.

    Service is counted in tokens, by Virtual Token Counters. What is set here takes effect when a
    model's router starts. Weights and tiers belong to tenants.
    """

    prompt_cost: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    """Service that one prompt token counts as."""
    cached_cost: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 0.0
    """Service that one prompt token counts as when it was found in the prefix cache."""
    output_cost: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 2.0
    """Service that one output token counts as."""
    adapter_load_tokens: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] | None = None
    """Output tokens that a tenant is charged when an adapter is loaded for it. None charges what
    its engine did not produce meanwhile, as measured; 0 charges nothing."""
    predicts_lengths: bool = True
    """Whether a request is charged for its tenant's average answer when it starts, and corrected
    as it goes. Keeps tenants closer together."""
    preempts: bool = True
    """Whether a request whose turn it is takes a running one's place in a full engine, if its
    tenant holds fewer places than the other, by weight, and has nothing else waiting. So what
    others send hardly delays a tenant within its share. Each request yields at most once."""
    locality_quantum: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    """Service by which a tenant may be ahead of the one whose turn it is and yet go first, because
    an engine has its adapter or more of its prompt's prefix. Tenants' service then differs by at
    most this much more. 0 keeps strictly to turns; engines are chosen by prefix all the same."""
    audit: AuditSettings | None = None
    """Log of decisions. None writes none."""
    policy: Literal["vtc", "fcfs", "lcf", "round_robin"] = "vtc"
    """Who is next. Only `vtc` is for use. The others are what it is compared with: `fcfs` first
    come, first served; `lcf` without the lift of who was away; `round_robin` by request, however
    long. A change restarts the routers."""


class AuthOff(Section):
    """No keys: everyone who reaches the port is one tenant. Only on a loopback address."""

    kind: Literal["off"] = "off"


class AuthKeys(Section):
    """Every request needs an API key. Keys are declared with their tenants or made in the store."""

    kind: Literal["keys"]


AuthSettings = Annotated[AuthOff | AuthKeys, Field(discriminator="kind")]


class LoggingSettings(Section):
    """What is logged, and how."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe level that is written."""
    format: Literal["human", "json"] = "human"
    """One readable line, or one JSON object a line."""


class Settings(Section):
    """Everything under `applications[].args`."""

    models: Annotated[tuple[ModelSettings, ...], Field(strict=False, min_length=1)]
    """The base models. Each has its own engines."""
    adapters: AdaptersSettings = AdaptersSettings()
    """LoRA adapters of the base models."""
    gateway: GatewaySettings = GatewaySettings()
    """The HTTP edge."""
    router: RouterSettings = RouterSettings()
    """The actor of each model that decides who is next."""
    limits: LimitSettings = LimitSettings()
    """Bounds on waiting and running requests."""
    fairness: FairnessSettings = FairnessSettings()
    """Who is next when requests wait."""
    ledger: LedgerSettings = LedgerSettings()
    """The actor that holds tenants and keys to their limits and budgets."""
    prices: dict[PricedNameText, PriceSpec] = Field(default_factory=dict)
    """What tokens cost, by base model or `model:adapter`. An adapter that is not listed costs what
    its base model does, and a model that is not listed is free."""
    auth: AuthSettings = AuthOff()
    """Whether requests need keys."""
    tenants: Annotated[tuple[DeclaredTenant, ...], Field(strict=False)] = ()
    """Tenants that are declared here. Others are made with `arriero tenants create`."""
    store: StoreSettings = StoreSettings()
    """Where tenants, keys and usage are kept."""
    records: RecordsSettings = RecordsSettings()
    """What is kept of each request, and for how long."""
    logging: LoggingSettings = LoggingSettings()
    """What is logged."""
    metrics: MetricsSettings = MetricsSettings()
    """What is shown to Prometheus."""
    tracing: TracingSettings | None = None
    """Traces of requests. None makes none."""
    fleet: FleetSettings | None = None
    """Nodes that `arriero fleet up` keeps running. None means none: nodes are your affair."""
    cell: CellMembership | None = None
    """What makes this platform one of several cells. None means that it stands alone."""
    front: FrontSettings | None = None
    """One address over several cells. `arriero front` runs it; a cell itself needs none."""

    @field_validator("auth", mode="before")
    @classmethod
    def _read_unquoted_off(cls, value: object) -> object:
        """YAML reads an unquoted `off` as false; it means `off` here."""
        if isinstance(value, Mapping) and value.get("kind") is False:
            return {**value, "kind": "off"}
        return value

    @property
    def versions(self) -> tuple[ModelSettings, ...]:
        """All that has engines of its own: the models, and the canaries of some."""
        canaries = [model.canary_version for model in self.models]
        return (*self.models, *(canary for canary in canaries if canary is not None))

    @property
    def with_engines(self) -> tuple[ModelSettings, ...]:
        """Of those, all: or none, in a cell that has only gateways."""
        return () if self.cell is not None and self.cell.only_gateways else self.versions

    @model_validator(mode="after")
    def _check_names_differ(self) -> Self:
        counts = Counter(name for model in self.versions for name in model.names)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise ValueError(
                f"{_places_of(twice[0], self.versions)} are both {twice[0]!r}; "
                "a name or alias belongs to one model, rename or remove the others"
            )
        return self

    @model_validator(mode="after")
    def _check_adapters(self) -> Self:
        if conflict := find_adapter_conflict(self.adapters, self.models):
            raise ValueError(conflict)
        return self

    @model_validator(mode="after")
    def _check_prices(self) -> Self:
        known = [model.name for model in self.models]
        unknown = next((n for n in self.prices if n.partition(":")[0] not in known), None)
        if unknown is not None:
            raise ValueError(
                f"prices has {unknown!r}, and models has {', '.join(known)}; name one of these "
                "(not an alias), or remove the price"
            )
        return self

    @model_validator(mode="after")
    def _check_tenants(self) -> Self:
        if conflict := find_tenant_conflict(self.tenants):
            raise ValueError(conflict)
        keyed = next((tenant for tenant in self.tenants if tenant.keys), None)
        if self.auth.kind == "off" and keyed is not None:
            raise ValueError(
                f"tenants has keys for {keyed.id!r} while auth.kind is 'off', where no key is "
                "looked at; set auth.kind to keys, or remove the keys"
            )
        return self


def cost_factors_of(settings: Settings, domain: ModelName) -> dict[str, float]:
    """Returns what a token of each model of a fairness domain counts for.

    Empty for a domain of one model: it counts in that model's tokens.
    """
    models = [model for model in settings.models if model.domain_name == domain]
    if len(models) == 1:
        return {}
    return {m.name: m.cost_factor for m in settings.versions if m.domain_name == domain}


def parse_settings(args: Mapping[str, Any]) -> Settings:
    """Check `args` of the application and return them as settings.

    Raises:
        ConfigError: Its one message lists every problem with path, value and remedy.
    """
    problems: list[Problem] = []
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(args)
    except ValidationError as error:
        problems += describe_invalid(error, Settings)
    problems += _find_engine_problems(args)
    if settings is None or problems:
        raise ConfigError(list_problems("The settings are not valid", problems))
    return settings


def _find_engine_problems(args: Mapping[str, Any]) -> list[Problem]:
    """Check what other packages define: engine arguments and parsers by vLLM, GPU names by Ray.

    Works on what was written, so that one message lists these problems beside all others.
    """
    from serve_app.engine_args import find_problems
    from serve_app.gpu_types import find_gpu_type_problems

    models = args.get("models") if isinstance(args, Mapping) else None
    if not isinstance(models, list | tuple):
        return []
    return [
        problem
        for i, model in enumerate(models)
        if isinstance(model, Mapping)
        for find in (find_problems, find_gpu_type_problems)
        for problem in find(model, f"models[{i}]")
    ]


def check_exposure(host: str, settings: Settings) -> None:
    """Refuse to listen where others can connect while keys are off.

    Raises:
        ConfigError: `host` is not a loopback address and `auth.kind` is `off`.
    """
    if settings.auth.kind == "off" and not is_loopback(host):
        raise ConfigError(
            f"http_options.host is {host!r} while auth.kind is 'off': anyone who reaches the port "
            "could use the models. Set http_options.host to 127.0.0.1, or auth.kind to keys."
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to `host`. Other names are not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _places_of(name: str, models: tuple[ModelSettings, ...]) -> str:
    return " and ".join(_iter_places(name, models))


def _iter_places(name: str, models: tuple[ModelSettings, ...]) -> Iterator[str]:
    for i, model in enumerate(models):
        if model.name == name:
            yield f"models[{i}].name"
        for j, alias in enumerate(model.aliases):
            if alias == name:
                yield f"models[{i}].aliases[{j}]"
