"""What a model's settings mean for the engine that serves it."""

from typing import Any

from deployments.echo_pace import Pace
from serve_app.config_model import EchoEngine, HuggingFaceSource, ModelSettings, VllmEngine
from serve_app.policy.placement import plan_placement


def pace_of(engine: EchoEngine) -> Pace | None:
    """How long an echo engine's steps take; None is at once."""
    if engine.batch is not None:
        return Pace(**engine.batch.model_dump())
    return Pace(1.0 / engine.tokens_per_s) if engine.tokens_per_s else None


def engine_args_of(model: ModelSettings) -> dict[str, Any]:
    """The configured engine arguments and those that other settings of the model stand for."""
    assert isinstance(model.engine, VllmEngine)
    args = model.engine.args | dict(plan_placement(model).engine_args)
    args["tensor_parallel_size"] = model.tensor_parallel_size
    args["pipeline_parallel_size"] = model.pipeline_parallel_size
    if isinstance(model.source, HuggingFaceSource) and model.source.revision is not None:
        args["revision"] = model.source.revision
    return args
