"""Shows people what a config file asks for."""

from collections.abc import Iterable, Iterator, Sequence

from serve_app.config import Settings
from serve_app.config_adapters import AdaptersSettings
from serve_app.config_file import ServeFile
from serve_app.config_model import ModelSettings, Source
from serve_app.lora_room import describe_room
from serve_app.policy.placement import Placement, plan_placement

_HEADER = ("MODEL", "SOURCE", "ENGINES", "EACH ASKS FOR", "KV CACHE")


def summarize(file: ServeFile) -> str:
    """Return the file's models and what they ask of Ray, as a table and a few lines."""
    settings = file.settings
    edge = settings.gateway.replicas * settings.gateway.cpus
    edge += (
        len({m.domain_name for m in settings.models}) * settings.router.cpus + settings.ledger.cpus
    )
    return "\n".join(
        [
            f"{file.path} is valid.",
            "",
            *format_table([_HEADER, *_describe_models(settings)]),
            "",
            *_describe_adapters(settings.models),
            f"Gateways, routers and ledger: {edge:g} CPU.",
            f"In all: {_describe_total(settings.with_engines, edge)}.",
            *_describe_registry(settings.adapters),
            f"Address: http://{file.host}:{file.port}   Keys: {settings.auth.kind}",
        ]
    )


def _describe_registry(adapters: AdaptersSettings) -> list[str]:
    if not adapters.declared and not adapters.families:
        return []
    n_declared, families = len(adapters.declared), ", ".join(f.source for f in adapters.families)
    cache = f"at most {adapters.cache.max_gib:g} GiB of each node's disk"
    named = f"{n_declared} declared" + (f", and all under {families}" if families else "")
    return [f"Adapters: {named}; {cache}."]


def _describe_models(settings: Settings) -> Iterator[tuple[str, ...]]:
    for model in settings.versions:
        if settings.with_engines:
            yield _describe_model(model)
        else:
            yield (model.name, _describe_source(model.source), "in other cells", "nothing", "none")


def _describe_model(model: ModelSettings) -> tuple[str, ...]:
    low, high = model.replicas.min, model.replicas.max
    return (
        model.name,
        _describe_source(model.source),
        f"{low} {model.engine.kind}" if low == high else f"{low}-{high} {model.engine.kind}",
        _describe_need(model),
        _describe_kv_cache(model),
    )


def _describe_adapters(models: Sequence[ModelSettings]) -> list[str]:
    rooms = [(model.name, describe_room(model)) for model in models]
    return [f"Adapters of {name}: {room}." for name, room in rooms if room is not None]


def _describe_source(source: Source) -> str:
    match source.kind:
        case "embedded":
            return source.package
        case "huggingface":
            return f"{source.id}@{source.revision}" if source.revision else source.id
        case "local":
            return source.path
        case "object_store":
            return source.uri


def _describe_kv_cache(model: ModelSettings) -> str:
    if model.engine.kind == "echo":
        return "none"
    if model.accelerator.kind == "cpu":
        return f"{model.accelerator.kv_cache_gib} GiB"
    size_bytes = model.engine.args.get("kv_cache_memory_bytes")
    if isinstance(size_bytes, int):
        return f"{size_bytes / 2**30:.3g} GiB a GPU"
    part = model.engine.args.get("gpu_memory_utilization")
    return "rest of the GPU" if part is None else f"rest of {part:.0%} of the GPU"


def _count_resources(placement: Placement) -> dict[str, float]:
    """Return all that one engine asks of Ray, by resource."""
    total = {"GPU": 0.0, "CPU": 0.0 if placement.bundles else placement.num_cpus}
    for bundle in placement.bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _describe_need(model: ModelSettings) -> str:
    cpus = f"{_count_resources(plan_placement(model))['CPU']:g} CPU"
    if model.accelerator.kind == "cpu":
        return cpus
    n_gpus = model.tensor_parallel_size * model.pipeline_parallel_size
    share, kind = model.accelerator.share, model.accelerator.type or "GPU"
    part = "" if share == 1 else f"{share:g} of "
    return f"{part}{n_gpus} {kind} + {cpus}"


def _describe_total(models: Sequence[ModelSettings], edge_cpus: float) -> str:
    needs = [(_count_resources(plan_placement(model)), model.replicas) for model in models]
    low = _describe_sum(((need, replicas.min) for need, replicas in needs), edge_cpus)
    high = _describe_sum(((need, replicas.max) for need, replicas in needs), edge_cpus)
    return low if low == high else f"{low} at least, {high} at most"


def _describe_sum(parts: Iterable[tuple[dict[str, float], int]], edge_cpus: float) -> str:
    gpus, cpus = 0.0, edge_cpus
    for need, n_engines in parts:
        gpus += need["GPU"] * n_engines
        cpus += need["CPU"] * n_engines
    return f"{gpus:.4g} GPU and {cpus:.4g} CPU" if gpus else f"{cpus:.4g} CPU"


def format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose columns are as wide as they must be."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
