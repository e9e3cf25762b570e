"""Bad input and bad times: what a client is told."""

import socket
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from serve_app.keys import hash_key
from tests.integration.conftest import CONTEXT, make_settings, write_echo
from tests.support.clients import ask, connect, post, read_error
from tests.support.platform import LocalPlatform

KEY = "sk-arriero-test"


def test_unknown_model_is_404_and_lists_the_known(echo_platform: LocalPlatform) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        connect(echo_platform.url).chat.completions.create(model="gpt-9", messages=ask())
    message = str(caught.value)
    assert "gpt-9" in message
    assert "paced, tiny, tiny-alias" in message
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_missing_model_is_400_where_there_are_several(echo_platform: LocalPlatform) -> None:
    response = post(echo_platform.url, "/v1/chat/completions", {"messages": ask()})
    assert response.status_code == 400
    assert read_error(response)["param"] == "model"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b'{"model": "tiny",}'])
def test_malformed_json_is_400(echo_platform: LocalPlatform, body: bytes) -> None:
    response = post(echo_platform.url, "/v1/chat/completions", body)
    assert response.status_code == 400
    assert "JSON" in read_error(response)["message"]


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("temperature", "hot"),
        ("temperature", -1),
        ("top_p", 3),
        ("max_tokens", "many"),
        ("max_tokens", -4),
        ("n", 0),
        ("n", "two"),
        ("messages", "hi"),
        ("messages", None),
        ("stream", "maybe"),
        ("presence_penalty", 99),
        ("logit_bias", {"1": "x"}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"49152": 1}),
        ("stop", 5),
        ("tools", "hammer"),
        ("seed", "x"),
        ("seed", 2**64),
        ("stream_interval", 2**64),
        ("response_format", {"type": "poem"}),
        ("structured_outputs", 5),
        ("min_tokens", 2**70),
    ],
)
def test_wrong_parameter_is_400_and_named(
    echo_platform: LocalPlatform, parameter: str, value: Any
) -> None:
    body = {"model": "tiny", "messages": ask(), "max_tokens": 4, parameter: value}
    response = post(echo_platform.url, "/v1/chat/completions", body)
    error = read_error(response)
    assert response.status_code == 400, response.text
    assert parameter in (error["param"] or "") + error["message"], error
    assert error["type"] == "invalid_request_error"


def test_too_long_prompt_is_400_with_both_numbers(echo_platform: LocalPlatform) -> None:
    body = {"model": "tiny", "prompt": [5] * (CONTEXT + 100), "max_tokens": 4}
    response = post(echo_platform.url, "/v1/completions", body)
    assert response.status_code == 400
    message = read_error(response)["message"]
    assert str(CONTEXT) in message
    assert str(CONTEXT + 100) in message


def test_too_large_body_is_413_when_it_is_announced(echo_platform: LocalPlatform) -> None:
    response = httpx.post(f"{echo_platform.url}/v1/completions", content=b" " * (1 << 21))
    assert response.status_code == 413
    assert "1048576" in read_error(response)["message"]


def test_too_large_body_is_413_before_it_is_read_whole(echo_platform: LocalPlatform) -> None:
    url = httpx.URL(echo_platform.url)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {url.host}\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with socket.create_connection((url.host, url.port or 0), timeout=10.0) as connection:
        connection.sendall(head.encode())
        # A little more than is allowed, and never the end.
        for _ in range(17):
            connection.sendall(chunk)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_unknown_path_and_method_have_the_error_body(echo_platform: LocalPlatform) -> None:
    missing = httpx.get(f"{echo_platform.url}/v1/nothing")
    assert missing.status_code == 404
    read_error(missing)
    wrong = httpx.get(f"{echo_platform.url}/v1/chat/completions")
    assert wrong.status_code == 405
    read_error(wrong)


@pytest.mark.parametrize("path", ["/metrics", "/load", "/server_info"])
def test_vllm_routes_that_are_not_for_clients_are_404(
    echo_platform: LocalPlatform, path: str
) -> None:
    assert httpx.get(echo_platform.url + path).status_code == 404
    assert post(echo_platform.url, path, {"model": "tiny"}).status_code == 404


def test_embeddings_of_a_model_that_cannot_are_400(echo_platform: LocalPlatform) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        connect(echo_platform.url).embeddings.create(model="tiny", input="hi")
    assert "'tiny' cannot serve" in str(caught.value)


def test_anthropic_errors_keep_anthropic_form(echo_platform: LocalPlatform) -> None:
    response = post(echo_platform.url, "/v1/messages", {"model": "tiny", "messages": "hi"})
    assert response.status_code == 400
    assert response.json()["type"] == "error"
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_loading_model_is_503_with_retry_after(tiny_model: Path, tmp_path: Path) -> None:
    settings = make_settings(write_echo(tiny_model))
    with LocalPlatform(settings, tmp_path, n_engines=0, is_waiting=False) as platform:
        response = post(platform.url, "/v1/completions", {"model": "tiny", "prompt": "hi"})
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        error = read_error(response)
        assert error["code"] == "model_not_ready"
        assert "loading" in error["message"]
        ready = httpx.get(f"{platform.url}/ready")
        assert ready.status_code == 503
        assert httpx.get(f"{platform.url}/health").status_code == 200


@pytest.fixture(scope="module")
def keyed_platform(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    tenant = {"id": "team-a", "keys": [{"hash": hash_key(KEY)}]}
    settings = make_settings(write_echo(tiny_model), auth={"kind": "keys"}, tenants=[tenant])
    with LocalPlatform(settings, tmp_path_factory.mktemp("keyed")) as platform:
        yield platform


@pytest.mark.parametrize("key", ["wrong", KEY + "x", KEY[:-1], "Bearer " + KEY, hash_key(KEY)])
def test_wrong_key_is_401(keyed_platform: LocalPlatform, key: str) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        connect(keyed_platform.url, key).completions.create(model="tiny", prompt="hi")
    assert key not in str(caught.value)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/tokenize", "/nothing"])
def test_missing_key_is_401_on_every_path(keyed_platform: LocalPlatform, path: str) -> None:
    response = post(keyed_platform.url, path, {"model": "tiny", "prompt": "hi"})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert httpx.get(keyed_platform.url + path).status_code == 401


def test_right_key_is_served(keyed_platform: LocalPlatform) -> None:
    answer = connect(keyed_platform.url, KEY).completions.create(
        model="tiny", prompt="One two", max_tokens=2
    )
    assert answer.choices[0].text == "One two"


def test_right_key_in_anthropics_header_is_served(keyed_platform: LocalPlatform) -> None:
    body = {"model": "tiny", "messages": ask(), "max_tokens": 2}
    response = post(keyed_platform.url, "/v1/messages", body, **{"x-api-key": KEY})
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/version"])
def test_state_needs_no_key(keyed_platform: LocalPlatform, path: str) -> None:
    assert httpx.get(keyed_platform.url + path).status_code == 200


def test_cell_that_ends_is_not_ready_and_says_until_when(echo_platform: LocalPlatform) -> None:
    server = echo_platform._gateways[0]
    assert httpx.get(server.url + "/ready").json()["leaves_s"] is None
    server.gateway.leaves_s = 1_030.5
    try:
        answer = httpx.get(server.url + "/ready")
        assert (answer.status_code, answer.json()["leaves_s"]) == (503, 1_030.5)
    finally:
        server.gateway.leaves_s = None


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
def test_nobody_changes_adapters_while_keys_are_off(
    echo_platform: LocalPlatform, path: str
) -> None:
    assert post(echo_platform.url, path, {"lora_name": "x"}).status_code == 403
