"""The one place where an error becomes an HTTP answer.

Clients see OpenAI's error body whoever noticed the error, this gateway or vLLM's front end:

    {"error": {"message": …, "type": …, "param": …, "code": …}}

Anthropic's endpoint keeps Anthropic's form, because that is what its clients parse. Texts never
hold a stack trace.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from vllm.entrypoints.serve.exception_handling.handlers.validation import clean_loc_for_param

RETRYABLE = (429, 503)

_MAX_PROBLEMS_SHOWN = 5
_MAX_MESSAGE_CHARS = 2000

_TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_CODE_OF_STATUS = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    429: "rate_limit_exceeded",
    503: "service_unavailable",
}


@dataclass(eq=False)
class ApiError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status.
        message: What is wrong, which value, which limit, what to do.
        param: The parameter at fault.
        code: OpenAI's or our short name for it; None takes the status's own.
        retry_after_s: For statuses that invite another try.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None


def render(error: ApiError, path: str) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Returns body and headers of an error's answer."""
    kind = _TYPE_OF_STATUS.get(error.status, "server_error")
    if path.startswith("/v1/messages"):
        body: dict[str, Any] = {
            "type": "error",
            "error": {"type": _anthropic_type(error.status), "message": error.message},
        }
    else:
        code = error.code or _CODE_OF_STATUS.get(error.status)
        body = {
            "error": {
                "message": error.message,
                "type": kind,
                "param": error.param,
                "code": code,
            }
        }
    payload = msgspec.json.encode(body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(payload)).encode()),
    ]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode()))
        headers.append((b"retry-after-ms", str(math.ceil(error.retry_after_s * 1000)).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return payload, headers


def _anthropic_type(status: int) -> str:
    if status == 413:
        return "request_too_large"
    if status >= 500:
        return "overloaded_error" if status == 503 else "api_error"
    return _TYPE_OF_STATUS.get(status, "invalid_request_error")


def from_vllm(status: int, body: bytes, retry_after_s: float) -> ApiError:
    """Reads an error answer of vLLM's front end.

    Its bodies are `{"error": {message, type, param, code}}`, sometimes `{"detail": …}` or plain
    text. 501 is what it says of a parameter that the model's engine does not offer: the client
    asked for it, so it is the client's to change.
    """
    status = 400 if status in (422, 501) else status
    wait_s = retry_after_s if status in RETRYABLE else None
    try:
        content = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return ApiError(status, body.decode("utf-8", "replace")[:1000], retry_after_s=wait_s)
    error = content.get("error", content) if isinstance(content, dict) else {}
    if not isinstance(error, dict):
        error = {"message": error}
    message = str(error.get("message") or error.get("detail") or "The request failed.")
    return ApiError(status, message, error.get("param"), retry_after_s=wait_s)


def from_validation(problems: Sequence[Any]) -> ApiError:
    """Says what pydantic found wrong with a request body.

    Args:
        problems: `RequestValidationError.errors()`.
    """
    lines: dict[str, str] = {}
    for param, problem in _most_telling(problems):
        place = param or "the body"
        lines.setdefault(place, f"{place}: {problem.get('msg', 'is wrong')}{_shown_input(problem)}")
    text = "; ".join(list(lines.values())[:_MAX_PROBLEMS_SHOWN])
    first = next((place for place in lines if place != "the body"), None)
    return ApiError(400, text[:_MAX_MESSAGE_CHARS], first)


def _most_telling(problems: Sequence[Any]) -> list[tuple[str | None, Any]]:
    """Leaves out what only some branches of a union object to.

    A message that fails is tried as each kind of message, and each kind but the right one also
    objects to its role. What is really wrong is wrong in most branches.
    """
    branches: dict[str | None, set[str]] = {}
    placed = []
    for problem in problems:
        param, branch = _place_of(problem)
        branches.setdefault(param, set()).add(branch)
        placed.append((param, branch, problem))
    most = max((len(tags - {""}) for tags in branches.values()), default=0)
    return [
        (param, problem)
        for param, branch, problem in placed
        if not branch or len(branches[param] - {""}) == most
    ]


def _place_of(problem: dict[str, Any]) -> tuple[str | None, str]:
    """The client's name for the place, and the union branches that led there."""
    named = getattr(problem.get("ctx", {}).get("error"), "parameter", None)
    if isinstance(named, str):
        return named, ""
    loc = [str(part) for part in problem.get("loc", ())]
    if loc and loc[0] in ("body", "query", "path"):
        del loc[0]
    if not loc or problem.get("type") == "json_invalid":
        return None, ""
    # Fields are written in lower case, the classes of a union's branches are not.
    branch = ".".join(part for part in loc if part[:1].isupper())
    param = clean_loc_for_param(tuple(part for part in loc if not part[:1].isupper()))
    return param or None, branch


def _shown_input(problem: dict[str, Any]) -> str:
    """The value, where it is a number or a flag: text may be a prompt, and is not repeated."""
    value = problem.get("input")
    return f" (got {value!r})" if isinstance(value, bool | int | float) else ""
