"""What a client may not say of its own request: how urgent it is, and whose cache it reads.

vLLM's front end takes such things from the body (`priority`, `cache_salt`, `vllm_xargs`,
`kv_transfer_params`, `session_id`) and from headers. Parameters are sealed before vLLM looks at
them, as it would believe what they say of cached tokens. Requests are sealed where they leave for
the engines, so that no form of request and no later field of the API gets around it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from serve_app.catalog import Caller


def seal_request(request: EngineCoreRequest, caller: Caller) -> None:
    """Replaces what the client said of scheduling and caches by what holds for its tenant."""
    request.priority = 0
    request.cache_salt = caller.tenant.cache_salt
    request.data_parallel_rank = None
    request.session_id = None
    request.kv_hints = None
    for params in (request.sampling_params, request.pooling_params):
        if params is not None:
            seal_params(params)


def seal_params(params: SamplingParams | PoolingParams) -> None:
    """Drops arguments for parts of vLLM that no client of a shared platform may talk to."""
    if isinstance(params, SamplingParams):
        params.extra_args = None
    else:
        params.extra_kwargs = None


def seal_renderer(renderer: Any) -> None:
    """Makes one of vLLM's renderers refuse names that clients give to images and the like (`uuid`).

    vLLM looks media up by such a name in caches that all tenants share: who guesses a name would
    see another's image, and who takes one first would replace it. Without names media are known
    by their content.
    """
    process = renderer._process_mm_uuids

    def process_unnamed(data: Any, items: Any, names: Mapping[str, Sequence[Any]], id: str) -> Any:
        if any(name is not None for group in names.values() for name in group):
            raise VLLMValidationError(
                "'uuid' of a content part is not taken here, as caches are shared by tenants. "
                "Leave it out; equal content is found again by itself.",
                parameter="uuid",
            )
        return process(data, items, names, id)

    renderer._process_mm_uuids = process_unnamed  # There is no other hook.
