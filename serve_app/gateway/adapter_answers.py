"""What a client hears of an adapter that it cannot have."""

from typing import NoReturn

from serve_app.adapter_registry import Adapter
from serve_app.errors import AdapterRefusedError
from serve_app.gateway.error_body import ApiError


def answer_refusal(adapter: Adapter, error: AdapterRefusedError) -> NoReturn:
    """Raises what a client hears of an adapter that is refused.

    Raises:
        AdapterRefusedError: Nothing is there, and nobody said that there would be.
        ApiError: 400, 404.
    """
    if error.is_missing and adapter.origin == "family":
        raise error
    raise ApiError(
        404 if error.is_missing else 400,
        f"The adapter {adapter.name!r} cannot be served. {error}",
        param="model",
        code="adapter_not_found" if error.is_missing else "invalid_adapter",
    ) from None


def away_error(adapter: Adapter, retry_after_s: float) -> ApiError:
    """Without what its store said, which may name places that are not this tenant's to know."""
    return ApiError(
        503,
        f"The adapter {adapter.name!r} cannot be fetched at present. Try again shortly.",
        param="model",
        code="adapter_unavailable",
        retry_after_s=max(1.0, retry_after_s),
    )
