"""Limits over HTTP: what is admitted, what is said of it, what is charged."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from serve_app.gateway.auth import hash_key
from tests.integration.conftest import CONTEXT, make_settings, write_echo
from tests.support.clients import ask, connect, post, read_error
from tests.support.platform import LocalPlatform

TENANTS = ("few", "tokens", "month", "one", "short", "free")


@pytest.fixture(scope="module")
def platform(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    settings = make_settings(
        write_echo(tiny_model),
        write_echo(tiny_model, "paced", tokens_per_s=20.0, max_num_seqs=2),
        auth={"kind": "static", "tenants": {name: [hash_key(name)] for name in TENANTS}},
        limits_by_tenant={
            "few": {"requests_per_min": 3, "models": {"paced": {"requests_per_min": 1}}},
            "tokens": {"total_tokens_per_min": 200},
            "month": {"tokens_per_month": 100},
            "one": {"concurrent_requests": 1},
            "short": {"max_output_tokens": 5},
        },
        ledger={"lease_s": 5.0},
    )
    with LocalPlatform(settings, tmp_path_factory.mktemp("limits"), n_gateways=2) as platform:
        yield platform


def complete(url: str, key: str, **fields: object) -> httpx.Response:
    body = {"model": "tiny", "prompt": [5] * 10, "max_tokens": 10} | fields
    return post(url, "/v1/completions", body, authorization=f"Bearer {key}")


def test_requests_beyond_the_limit_are_refused_by_every_gateway(platform: LocalPlatform) -> None:
    answers = [complete(platform.urls[i % 2], "few") for i in range(5)]
    assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
    assert [a.headers["x-ratelimit-remaining-requests"] for a in answers] == list("21000")
    assert {a.headers["x-ratelimit-limit-requests"] for a in answers} == {"3"}
    refused = answers[-1]
    error = read_error(refused)
    assert error["code"] == "rate_limit_exceeded"
    assert (
        "requests_per_min of tenant 'few' is 3; 3 are used and this request needs 1"
        in (error["message"])
    )
    assert 0 < int(refused.headers["retry-after-ms"]) <= 60_051
    assert int(refused.headers["retry-after"]) == -(-int(refused.headers["retry-after-ms"]) // 1000)
    # A stream is refused with a status too, and refusals of other routes carry the numbers.
    streamed = complete(platform.url, "few", stream=True)
    assert streamed.status_code == 429
    assert streamed.json() == refused.json() | {"error": streamed.json()["error"]}
    invalid = complete(platform.url, "few", max_tokens=-1)
    assert invalid.status_code == 400
    assert invalid.headers["x-ratelimit-remaining-requests"] == "0"


def test_unused_tokens_are_free_again_at_once(platform: LocalPlatform) -> None:
    # 5 prompt tokens and 90 more are set aside; each says one token and stops.
    fields = {"model": "paced", "prompt": [500] * 5, "max_tokens": 90}
    word = complete(platform.url, "free", **fields | {"max_tokens": 1}).json()["choices"][0]["text"]
    seen = []
    for _ in range(5):
        answer = complete(platform.url, "tokens", **fields, stop=[word])
        assert answer.status_code == 200, answer.text
        seen.append(int(answer.headers["x-ratelimit-remaining-tokens"]))
    assert answer.json()["usage"]["total_tokens"] == 6
    assert seen == [200 - 95 - 6 * i for i in range(5)]


def test_a_prompt_counts_once_and_each_completion_of_n(platform: LocalPlatform) -> None:
    fields = {"max_tokens": 2, "n": 3, "prompt": [[5] * 10, [5] * 7]}
    answers = [complete(platform.url, "tokens", **fields) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    first, second = (int(a.headers["x-ratelimit-remaining-tokens"]) for a in answers)
    assert first - second == 10 + 7 + 2 * 3 * 2


def test_a_request_that_never_fits_is_not_told_to_come_back(platform: LocalPlatform) -> None:
    answer = complete(platform.url, "tokens", max_tokens=300)
    assert answer.status_code == 400
    assert "retry-after" not in answer.headers
    error = read_error(answer)
    assert error["code"] == "request_exceeds_limit"
    assert "310" in error["message"]
    assert "200" in error["message"]


def test_a_used_up_budget_is_insufficient_quota(platform: LocalPlatform) -> None:
    assert complete(platform.url, "month", max_tokens=60).status_code == 200
    answer = complete(platform.url, "month", max_tokens=60)
    assert answer.status_code == 429
    assert read_error(answer)["code"] == "insufficient_quota"
    assert int(answer.headers["retry-after"]) > 0


def test_max_output_tokens_cuts_what_was_not_asked_for(platform: LocalPlatform) -> None:
    with connect(platform.url, "short") as client:
        answer = client.chat.completions.create(model="tiny", messages=ask())
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 5
    explicit = complete(platform.url, "short", max_tokens=6)
    assert explicit.status_code == 400
    assert "max_output_tokens" in read_error(explicit)["message"]


def test_a_place_is_free_when_its_stream_is_dropped(platform: LocalPlatform) -> None:
    with connect(platform.url, "one") as client:
        stream = client.completions.create(
            model="paced", prompt=[5] * 10, max_tokens=400, stream=True
        )
        next(iter(stream))
        refused = complete(platform.urls[1], "one")
        assert refused.status_code == 429
        assert "concurrent_requests" in read_error(refused)["message"]
        stream.close()
    platform.wait_until(lambda: complete(platform.url, "one").is_success, 2.0, "free")


def test_the_official_client_comes_back_when_it_is_told_to(platform: LocalPlatform) -> None:
    with connect(platform.url, "one") as holder:
        stream = holder.completions.create(
            model="paced", prompt=[5] * 10, max_tokens=20, stream=True
        )
        next(iter(stream))
        started_s = time.monotonic()
        patient = openai.OpenAI(base_url=f"{platform.url}/v1", api_key="one", max_retries=2)
        answer = patient.completions.create(model="tiny", prompt=[5] * 10, max_tokens=1)
        assert answer.usage is not None
        assert 1.0 < time.monotonic() - started_s < 12.0
        stream.close()


def test_a_deadline_ends_what_runs_and_refuses_what_would_be_late(
    platform: LocalPlatform,
) -> None:
    body = {"model": "paced", "prompt": [5] * 10, "max_tokens": CONTEXT - 20}
    keys = {"authorization": "Bearer free"}
    started_s = time.monotonic()
    answer = post(platform.url, "/v1/completions", body, **keys, **{"x-request-timeout": "0.5"})
    assert 0.4 < time.monotonic() - started_s < 2.0
    assert answer.status_code == 504
    assert read_error(answer)["code"] == "deadline_exceeded"
    assert platform.wait_until(lambda: platform.count_running() == 0, 2.0, "idle") < 2.0
    bad = post(platform.url, "/v1/completions", body, **keys, **{"x-request-timeout": "soon"})
    assert bad.status_code == 400
