"""Limits over HTTP: what is admitted, what is said of it, what is charged."""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.keys import hash_key
from tests.integration.conftest import CONTEXT, make_settings, write_echo
from tests.support.clients import ask, connect, post, read_error
from tests.support.platform import LocalPlatform

TENANTS = ("few", "tokens", "month", "one", "short", "free", "billed")
TERMS: dict[str, Any] = {
    "few": {"limits": {"requests_per_min": 3, "models": {"paced": {"requests_per_min": 1}}}},
    "tokens": {"limits": {"total_tokens_per_min": 200}},
    "month": {"budgets": {"tokens_per_month": 100}},
    "one": {"limits": {"concurrent_requests": 1}},
    "short": {"limits": {"max_output_tokens": 5}},
    "billed": {"limits": {"total_tokens_per_min": 100_000}},
}
ADMIN = {"authorization": "Bearer admin"}


@pytest.fixture(scope="module")
def platform(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    folder = tmp_path_factory.mktemp("limits")
    settings = make_settings(
        write_echo(tiny_model),
        write_echo(tiny_model, "paced", tokens_per_s=20.0, max_num_seqs=2),
        auth={"kind": "keys"},
        tenants=[
            {"id": name, "keys": [{"hash": hash_key(name)}], **TERMS.get(name, {})}
            for name in TENANTS
        ]
        + [{"id": "operators", "keys": [{"hash": hash_key("admin"), "scopes": ["admin"]}]}],
        prices={
            "tiny": {"usd_per_million_prompt_tokens": 2.0, "usd_per_million_completion_tokens": 8.0}
        },
        ledger={"lease_s": 5.0, "wait_s": 0.5},
        store={"state_dir": str(folder), "usage_batch_s": 0.05},
    )
    with LocalPlatform(settings, folder, n_gateways=2) as platform:
        yield platform


def complete(url: str, key: str, **fields: object) -> httpx.Response:
    body = {"model": "tiny", "prompt": [5] * 10, "max_tokens": 10} | fields
    return post(url, "/v1/completions", body, authorization=f"Bearer {key}")


@contextlib.contextmanager
def stream(url: str, key: str, **fields: object) -> Iterator[Iterator[str]]:
    """The rest of a stream that has begun; it is dropped at the end."""
    body = {"model": "paced", "prompt": [5] * 10, "stream": True} | fields
    headers = {"authorization": f"Bearer {key}"}
    address = f"{url}/v1/completions"
    with httpx.stream("POST", address, json=body, headers=headers, timeout=60.0) as answer:
        lines = answer.iter_lines()
        next(lines)
        yield lines


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
        patient = connect(platform.url, "one").with_options(max_retries=2)
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


def test_a_queue_too_long_for_a_deadline_is_refused_at_once(platform: LocalPlatform) -> None:
    fields = {"model": "paced", "prompt": [5] * 10, "max_tokens": 30}
    assert complete(platform.url, "free", **fields).is_success
    with ThreadPoolExecutor(12) as pool:
        others = [pool.submit(complete, platform.url, "free", **fields) for _ in range(12)]
        # The router says how many wait about once a second.
        platform.wait_until(lambda: platform.count_waiting() > 2, 5.0, "waiting")
        started_s = time.monotonic()
        keys = {"authorization": "Bearer free", "x-request-timeout": "0.5"}
        late = post(platform.url, "/v1/completions", fields, **keys)
        assert time.monotonic() - started_s < 0.4
        assert late.status_code == 503
        assert read_error(late)["code"] == "deadline_exceeded"
        assert int(late.headers["retry-after"]) >= 1
        assert all(other.result().is_success for other in others)


def test_a_changed_limit_holds_on_every_gateway_within_two_seconds(
    platform: LocalPlatform,
) -> None:
    with httpx.Client(base_url=platform.url, headers=ADMIN, timeout=30.0) as admin:
        assert admin.post("/admin/tenants", json={"id": "new"}).status_code == 201
        key = admin.post("/admin/keys", json={"tenant": "new"}).json()["key"]
        platform.wait_until(lambda: complete(platform.urls[1], key).is_success, 5.0, "known")
        assert "x-ratelimit-limit-requests" not in complete(platform.url, key).headers
        with stream(platform.url, key, max_tokens=200) as lines:
            admin.patch("/admin/tenants/new", json={"limits": {"requests_per_min": 2}})
            time.sleep(2.0)
            # What began before there was a limit does not count.
            answers = [complete(platform.urls[i % 2], key) for i in range(4)]
            assert [a.status_code for a in answers] == [200, 200, 429, 429]
            admin.patch("/admin/tenants/new", json={"limits": {"requests_per_min": 4}})
            time.sleep(2.0)
            answers = [complete(platform.urls[i % 2], key) for i in range(4)]
            assert [a.status_code for a in answers] == [200, 200, 429, 429]
            admin.patch("/admin/tenants/new", json={"limits": {"requests_per_min": None}})
            time.sleep(2.0)
            assert [complete(url, key).status_code for url in platform.urls] == [200, 200]
            assert "data: [DONE]" in list(lines)


def test_a_limit_of_one_key_binds_that_key(platform: LocalPlatform) -> None:
    with httpx.Client(base_url=platform.url, headers=ADMIN, timeout=30.0) as admin:
        admin.post("/admin/tenants", json={"id": "keyed"})
        forms = [{"tenant": "keyed", "limits": {"requests_per_min": 1}}, {"tenant": "keyed"}]
        tight, loose = (admin.post("/admin/keys", json=form).json()["key"] for form in forms)
    time.sleep(2.0)
    statuses = [complete(url, tight).status_code for url in platform.urls]
    assert statuses == [200, 429]
    assert complete(platform.url, loose).is_success


def test_usage_records_say_what_the_ledger_counted(platform: LocalPlatform) -> None:
    keys = {"authorization": "Bearer billed"}
    known = {"prompt": [500] * 10}
    word = complete(platform.url, "free", **known, max_tokens=1).json()["choices"][0]["text"]
    answers = [
        complete(platform.url, "billed", max_tokens=7, n=2),
        complete(platform.url, "billed", **known, max_tokens=90, stop=[word]),
    ]
    said = sum(answer.json()["usage"]["completion_tokens"] for answer in answers)
    assert complete(platform.url, "billed", max_tokens=-1).status_code == 400
    with stream(platform.url, "billed", max_tokens=200):
        pass

    def totals() -> dict[str, Any]:
        rows = httpx.get(f"{platform.url}/v1/usage", headers=keys, timeout=10.0).json()["data"]
        names = ("requests", "prompt_tokens", "completion_tokens", "cost_usd")
        return {name: sum(row[name] for row in rows) for name in names}

    def used() -> int:
        look = complete(platform.url, "billed", max_tokens=-1)
        return 100_000 - int(look.headers["x-ratelimit-remaining-tokens"])

    platform.wait_until(lambda: platform.count_running() == 0, 5.0, "idle")
    platform.wait_until(lambda: totals()["requests"] == 3, 5.0, "recorded")
    sums = totals()
    assert sums["prompt_tokens"] == 30
    assert used() == sums["prompt_tokens"] + sums["completion_tokens"]
    assert sums["cost_usd"] == pytest.approx((20 * 2.0 + said * 8.0) / 1e6)


def test_without_the_ledger_nobody_with_a_limit_begins_and_others_do(
    tiny_model: Path, tmp_path: Path
) -> None:
    settings = make_settings(
        write_echo(tiny_model),
        auth={"kind": "keys"},
        tenants=[
            {"id": name, "keys": [{"hash": hash_key(name)}], **TERMS.get(name, {})}
            for name in ("few", "free")
        ],
        ledger={"wait_s": 0.5},
        store={"state_dir": str(tmp_path)},
    )
    with LocalPlatform(settings, tmp_path, ledger_in_process=True) as platform:
        platform.wait_until(lambda: complete(platform.url, "few").is_success, 30.0, "up")
        platform.kill_ledger()
        refused = complete(platform.url, "few")
        assert refused.status_code == 503
        assert read_error(refused)["code"] == "service_unavailable"
        assert int(refused.headers["retry-after"]) >= 1
        assert complete(platform.url, "free").is_success
        platform.start_ledger()
        platform.wait_until(lambda: complete(platform.url, "few").is_success, 30.0, "back")
        # What was counted before it was killed still counts; what was refused does not.
        assert complete(platform.url, "few").headers["x-ratelimit-remaining-requests"] == "0"
