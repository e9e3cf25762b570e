"""Every answer says where the time to its first token went, and the parts add up."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.messages import EngineId
from tests.integration.conftest import make_settings, write_echo
from tests.support.adapters import make_adapter
from tests.support.clients import ask, connect, connect_anthropic, post, read_events
from tests.support.platform import LocalPlatform

PARTS = ("gateway", "queue", "router", "adapter-load", "engine-ttft")
ASK = {"x-arriero-timings": "true"}


@pytest.fixture
def platform(tiny_model: Path, tmp_path: Path) -> Iterator[LocalPlatform]:
    """One place in the batch, so that the second request waits for the first."""
    entry = write_echo(tiny_model, tokens_per_s=50.0, max_num_seqs=1)
    settings = make_settings(entry, limits={"max_running_per_engine": 1})
    with LocalPlatform(settings, tmp_path) as platform:
        yield platform


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": ask(), "max_tokens": 25} | changes


def read_ms(headers: Mapping[str, str]) -> dict[str, float]:
    return {name: float(headers[f"x-arriero-{name}-ms"]) for name in PARTS}


def check_sum(headers: Mapping[str, str]) -> None:
    # Each of the six is rounded to a tenth.
    total = float(headers["x-arriero-ttft-ms"])
    assert sum(read_ms(headers).values()) == pytest.approx(total, abs=0.35)


def test_parts_add_up_to_the_time_to_the_first_token(platform: LocalPlatform) -> None:
    for path, own in (
        ("/v1/chat/completions", body()),
        ("/v1/completions", body(prompt=["One two", "three"])),
        ("/v1/chat/completions", body(n=3)),
    ):
        since_s = time.monotonic()
        answer = post(platform.url, path, own)
        took_ms = (time.monotonic() - since_s) * 1000
        assert answer.status_code == 200
        check_sum(answer.headers)
        assert 0.0 < float(answer.headers["x-arriero-ttft-ms"]) < took_ms
        assert answer.headers["x-arriero-engine"].startswith("engine-")
        assert answer.headers["x-arriero-migrations"] == "0"
        assert answer.headers["x-request-id"]


def test_wait_for_another_request_is_the_queues(platform: LocalPlatform) -> None:
    with httpx.Client(timeout=30.0) as client:
        url = f"{platform.url}/v1/chat/completions"
        with client.stream("POST", url, json=body(stream=True, max_tokens=50)) as first:
            lines = first.iter_lines()
            next(lines)
            second = post(platform.url, "/v1/chat/completions", body())
            assert list(lines)
    check_sum(second.headers)
    parts = read_ms(second.headers)
    assert parts["queue"] > 500.0  # 50 tokens take a second.
    assert max(parts, key=lambda name: parts[name]) == "queue"
    assert float(first.headers["x-arriero-queue-ms"]) < 100.0


def test_stream_says_it_with_its_first_byte_and_stays_openais(platform: LocalPlatform) -> None:
    url = f"{platform.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body(stream=True), timeout=30.0) as answer:
        check_sum(answer.headers)
        text = answer.read().decode()
    assert all("arriero" not in event for event in read_events(text))


def test_openais_client_reads_the_last_chunk_where_it_asks(platform: LocalPlatform) -> None:
    stream = connect(platform.url).chat.completions.create(
        model="tiny", messages=ask(), max_tokens=5, stream=True, extra_headers=ASK
    )
    chunks = list(stream)
    assert not chunks[-1].choices
    assert chunks[-1].id == chunks[0].id
    timings = chunks[-1].model_dump()["arriero"]
    headers = stream.response.headers
    assert timings["ttft_ms"] == float(headers["x-arriero-ttft-ms"])
    assert timings["request_id"] == headers["x-request-id"]
    assert timings["migrations"] == 0
    assert all("arriero" not in chunk.model_dump() for chunk in chunks[:-1])


def test_clients_of_named_events_pass_the_last_one_over_or_show_it(
    platform: LocalPlatform,
) -> None:
    events = list(
        connect(platform.url).responses.create(
            model="tiny", input="One two", max_output_tokens=5, stream=True, extra_headers=ASK
        )
    )
    assert [event.type for event in events][-2:] == ["response.completed", "arriero.timings"]
    with connect_anthropic(platform.url).messages.stream(
        model="tiny", messages=ask(), max_tokens=5, extra_headers=ASK
    ) as stream:
        assert stream.get_final_message().content


def test_refusal_says_how_far_it_came(platform: LocalPlatform) -> None:
    answer = post(platform.url, "/v1/chat/completions", body(temperature=-1))
    assert answer.status_code == 400
    assert float(answer.headers["x-arriero-gateway-ms"]) > 0.0
    assert "x-arriero-ttft-ms" not in answer.headers


@pytest.mark.slow
def test_move_to_another_engine_is_counted(tiny_model: Path, tmp_path: Path) -> None:
    settings = make_settings(write_echo(tiny_model, tokens_per_s=20.0))
    with LocalPlatform(settings, tmp_path, engines_in_processes=True, n_engines=1) as platform:
        request = body(stream=True, max_tokens=40)
        url = f"{platform.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=request, headers=ASK, timeout=60.0) as answer:
            lines = answer.iter_lines()
            next(lines)
            platform.add_engine(platform.settings.models[0].name)
            platform.wait_until(
                lambda: sum(e["state"] == "ready" for e in platform.list_engines()) == 2,
                30.0,
                "another",
            )
            platform.kill_engine(EngineId("engine-1"))
            events = [line for line in lines if line.startswith("data: {")]
    last = json.loads(events[-1].removeprefix("data: "))["arriero"]
    assert (last["migrations"], last["engine"]) == (1, "engine-2")
    assert answer.headers["x-arriero-migrations"] == "0"
    assert last["ttft_ms"] == float(answer.headers["x-arriero-ttft-ms"])


def test_cold_adapter_is_the_adapters_load(tiny_model: Path, tmp_path: Path) -> None:
    make_adapter(tmp_path / "sql", tiny_model)
    entry = write_echo(tiny_model, adapters={"slots": 2})
    entry["engine"]["adapter_load_s"] = 0.6
    settings = make_settings(
        entry,
        adapters={
            "declared": [{"name": "sql", "base": "tiny", "source": str(tmp_path / "sql")}],
            "cache": {"path": str(tmp_path / "cache"), "workers": 1},
        },
        store={"state_dir": str(tmp_path / "state")},
    )
    with LocalPlatform(settings, tmp_path) as platform:
        cold, warm = (
            post(platform.url, "/v1/chat/completions", body(model="tiny:sql")).headers
            for _ in range(2)
        )
    for headers in (cold, warm):
        check_sum(headers)
    assert 500.0 < read_ms(cold)["adapter-load"] < float(cold["x-arriero-ttft-ms"])
    assert read_ms(cold)["queue"] < 100.0
    assert read_ms(warm)["adapter-load"] < 50.0
