import json

import pytest

from serve_app.gateway.error_body import ApiError, from_vllm, render

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "invalid_request_error", None),
        (401, "authentication_error", "invalid_api_key"),
        (403, "permission_error", None),
        (404, "not_found_error", "not_found"),
        (405, "invalid_request_error", "method_not_allowed"),
        (413, "invalid_request_error", "request_too_large"),
        (429, "rate_limit_error", "rate_limit_exceeded"),
        (500, "server_error", None),
        (503, "overloaded_error", "service_unavailable"),
    ],
)
def test_status_decides_type_and_code(status: int, kind: str, code: str | None) -> None:
    payload, _ = render(ApiError(status, "No."), "/v1/completions")
    assert json.loads(payload) == {
        "error": {"message": "No.", "type": kind, "param": None, "code": code}
    }


def test_own_code_and_parameter_are_kept() -> None:
    payload, _ = render(ApiError(404, "No.", "model", "model_not_found"), "/v1/completions")
    error = json.loads(payload)["error"]
    assert (error["param"], error["code"]) == ("model", "model_not_found")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_anthropic_path_has_anthropics_form(status: int, kind: str) -> None:
    payload, _ = render(ApiError(status, "No."), "/v1/messages")
    assert json.loads(payload) == {"type": "error", "error": {"type": kind, "message": "No."}}


def test_retry_after_is_whole_seconds_and_at_least_one() -> None:
    for wait_s, shown in ((0.1, b"1"), (1.0, b"1"), (1.1, b"2"), (7.0, b"7")):
        _, headers = render(ApiError(503, "Later.", retry_after_s=wait_s), "/")
        assert dict(headers)[b"retry-after"] == shown


def test_401_says_how_to_send_a_key() -> None:
    _, headers = render(ApiError(401, "Who?"), "/")
    assert dict(headers)[b"www-authenticate"] == b"Bearer"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"error": {"message": "m", "param": "p"}}, (400, "m", "p", None)),
        (422, {"error": {"message": "m"}}, (400, "m", None, None)),
        (501, {"error": {"message": "m"}}, (400, "m", None, None)),
        (404, {"detail": "d"}, (404, "d", None, None)),
        (503, {"error": {"message": "m"}}, (503, "m", None, 3.0)),
        (429, {"error": {"message": "m"}}, (429, "m", None, 3.0)),
        (400, {"error": "text"}, (400, "text", None, None)),
        (400, [], (400, "The request failed.", None, None)),
    ],
)
def test_error_of_vllm_is_read(
    status: int, body: object, expected: tuple[int, str, str | None, float | None]
) -> None:
    error = from_vllm(status, json.dumps(body).encode(), retry_after_s=3.0)
    assert (error.status, error.message, error.param, error.retry_after_s) == expected


def test_error_of_vllm_in_plain_text_is_read() -> None:
    assert from_vllm(400, b"plain \xff text", 1.0).message == "plain \ufffd text"
