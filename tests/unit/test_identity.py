from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.pooling_params import PoolingParams
from vllm.renderers.base import BaseRenderer
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from serve_app.catalog import Caller, Tenant
from serve_app.config_tenants import TenantSettings
from serve_app.gateway.identity import seal_renderer, seal_request
from serve_app.names import TenantId

# Importing vLLM warns about its own use of deprecated calls.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

KNOWN_FIELDS = {
    "request_id",
    "prompt_token_ids",
    "mm_features",
    "sampling_params",
    "pooling_params",
    "arrival_time",
    "lora_request",
    "cache_salt",
    "data_parallel_rank",
    "prompt_embeds",
    "prompt_is_token_ids",
    "client_index",
    "current_wave",
    "priority",
    "trace_headers",
    "resumable",
    "external_req_id",
    "reasoning_ended",
    "reasoning_parser_kwargs",
    "abort_immediately",
    "session_id",
    "kv_hints",
}


def make_request(**changes: Any) -> EngineCoreRequest:
    fields: dict[str, Any] = {
        "request_id": "r",
        "prompt_token_ids": [1],
        "mm_features": None,
        "sampling_params": SamplingParams(extra_args={"kv_transfer_params": {}}),
        "pooling_params": None,
        "arrival_time": 0.0,
        "lora_request": None,
        "cache_salt": "from the client",
        "data_parallel_rank": 3,
        "priority": -9,
        "session_id": "s",
    }
    return EngineCoreRequest(**(fields | changes))


def make_caller(*, has_own_prefix_cache: bool) -> Caller:
    settings = TenantSettings(id=TenantId("a"), has_own_prefix_cache=has_own_prefix_cache)
    return Caller(Tenant(settings, "admin", 1.0, 1.0))


@pytest.mark.parametrize(("is_own", "salt"), [(True, "a@1.000"), (False, None)])
def test_request_leaves_with_what_holds_for_its_tenant(is_own: bool, salt: str | None) -> None:
    request = make_request()
    seal_request(request, make_caller(has_own_prefix_cache=is_own))
    assert (request.priority, request.cache_salt, request.session_id) == (0, salt, None)
    assert request.data_parallel_rank is None
    assert request.sampling_params is not None
    assert request.sampling_params.extra_args is None


def test_pooling_request_leaves_without_extra_arguments() -> None:
    params = PoolingParams(extra_kwargs={"anything": 1})
    request = make_request(sampling_params=None, pooling_params=params)
    seal_request(request, make_caller(has_own_prefix_cache=False))
    assert request.pooling_params is not None
    assert request.pooling_params.extra_kwargs is None


def test_fields_by_which_a_client_could_steer_are_those_that_are_known() -> None:
    """A new field of vLLM's request fails here, so that someone decides whether to seal it."""
    assert set(EngineCoreRequest.__struct_fields__) == KNOWN_FIELDS


def test_renderer_takes_no_names_of_media() -> None:
    assert callable(BaseRenderer._process_mm_uuids)
    renderer: Any = SimpleNamespace(_process_mm_uuids=lambda data, items, names, id: names)
    seal_renderer(renderer)
    assert renderer._process_mm_uuids({}, {}, {"image": [None]}, "r") == {"image": [None]}
    with pytest.raises(VLLMValidationError, match="Leave it out"):
        renderer._process_mm_uuids({}, {}, {"image": [None, "mine"]}, "r")
