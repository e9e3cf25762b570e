import json
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

from serve_app.gateway.input_bounds import MAX_SCHEMA_COUNT, check_schema_counts

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TOO_MANY = MAX_SCHEMA_COUNT + 1


@pytest.mark.parametrize("keyword", ["minItems", "maxItems", "minLength", "maxProperties"])
@pytest.mark.parametrize("as_text", [True, False])
def test_count_beyond_the_limit_is_refused_wherever_it_stands(keyword: str, as_text: bool) -> None:
    schema: Any = {"type": "object", "properties": {"a": {"anyOf": [{keyword: TOO_MANY}]}}}
    with pytest.raises(VLLMValidationError) as caught:
        check_schema_counts(StructuredOutputsParams(json=json.dumps(schema) if as_text else schema))
    assert keyword in str(caught.value)
    assert str(MAX_SCHEMA_COUNT) in str(caught.value)


@pytest.mark.parametrize("count", [2**70, 1e300])
def test_huge_count_is_refused_with_a_short_text(count: float) -> None:
    with pytest.raises(VLLMValidationError) as caught:
        check_schema_counts(StructuredOutputsParams(json={"minItems": count}))
    assert len(str(caught.value)) < 300


def test_counts_within_the_limit_and_properties_of_that_name_are_taken() -> None:
    schema = {"properties": {"minItems": {"type": "integer"}}, "maxItems": MAX_SCHEMA_COUNT}
    check_schema_counts(StructuredOutputsParams(json=schema))
    check_schema_counts(StructuredOutputsParams(json="{"))
    check_schema_counts(StructuredOutputsParams(regex="a{1,100000}"))
