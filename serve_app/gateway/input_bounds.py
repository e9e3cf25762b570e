"""Bounds on what a request may ask of grammars, checked before vLLM looks at it.

vLLM checks a JSON schema by compiling it, on the gateway's event loop. Its `guidance` backend keeps
an entry for each item that `minItems` promises, so that one line of JSON takes all memory.
"""

import json
from collections.abc import Iterator
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams, StructuredOutputsParams, check_json_nesting
from vllm.tasks import SupportedTask
from vllm.v1.engine.input_processor import InputProcessor

MAX_SCHEMA_COUNT = 10_000
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")


class BoundedInputProcessor(InputProcessor):
    """vLLM's checks of a request's parameters, after ours."""

    def _validate_params(
        self,
        params: SamplingParams | PoolingParams,
        supported_tasks: tuple[SupportedTask, ...],
    ) -> bool | None:
        if isinstance(params, SamplingParams) and params.structured_outputs is not None:
            check_schema_counts(params.structured_outputs)
        return super()._validate_params(params, supported_tasks)


def check_schema_counts(outputs: StructuredOutputsParams) -> None:
    """Refuses a schema that counts beyond `MAX_SCHEMA_COUNT`.

    Raises:
        VLLMValidationError: Names the keyword, the value and the limit.
    """
    # Deeper ones are refused here, so that the walk below ends.
    check_json_nesting(outputs.json)
    check_json_nesting(outputs.structural_tag, structural_tag=True)
    for schema in (outputs.json, outputs.structural_tag):
        for keyword, count in _find_counts(_parse(schema)):
            if count > MAX_SCHEMA_COUNT:
                raise VLLMValidationError(
                    f"The JSON schema has {keyword!r} above {MAX_SCHEMA_COUNT}, the most that is "
                    "taken here. Lower it, or leave it out.",
                    parameter="structured_outputs",
                    value=count if count < 1 << 63 else "a larger one",
                )


def _parse(schema: str | dict[str, Any] | None) -> Any:
    if not isinstance(schema, str):
        return schema
    try:
        return json.loads(schema)
    except ValueError:
        return None  # vLLM's own check says what is wrong with it.


def _find_counts(schema: Any) -> Iterator[tuple[str, float]]:
    if isinstance(schema, dict):
        for keyword, value in schema.items():
            if keyword in _COUNTS and isinstance(value, int | float):
                yield keyword, value
            else:
                yield from _find_counts(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _find_counts(item)
