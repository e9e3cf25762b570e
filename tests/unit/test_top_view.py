import io
from typing import Any

from rich.console import Console

from serve_app.top_view import draw

ENGINE = {
    "id": "engine-1",
    "state": "ready",
    "detail": "",
    "running": 3,
    "waiting": 1,
    "kv_usage": 0.25,
    "tokens_per_s": 41.5,
}


def make_status(**changes: Any) -> dict[str, Any]:
    model = {
        "name": "llama",
        "state": "ready",
        "detail": "",
        "domain": "llama",
        "waiting": 7,
        "running": 3,
        "tokens_per_s": 41.5,
        "engines": [ENGINE],
    }
    tenant = {
        "tenant": "a[b]",
        "weight": 2.0,
        "waiting": 7,
        "running": 3,
        "lag": 120.0,
        "requests": 1234,
        "failed": 1,
        "prompt_tokens": 10_000,
        "completion_tokens": 5,
        "cost_usd": 1.25,
    }
    status = {
        "version": "0.1",
        "time_s": 1_700_000_000.0,
        "ready": True,
        "store": "ok",
        "store_problem": "",
        "totals": {
            "waiting": 7,
            "running": 3,
            "tokens_per_s": 41.5,
            "requests": 1234,
            "tokens": 10_005,
            "cost_usd": 1.25,
        },
        "models": [model],
        "domains": [{"name": "llama", "gap": 55.0, "bound": 900.0, "tenants_waiting": 2}],
        "tenants": [tenant],
    }
    return status | changes


def show(status: dict[str, Any], problem: str = "") -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(draw(status, problem))
    return console.export_text()


def test_everything_an_operator_looks_for_is_there() -> None:
    text = show(make_status())
    for words in ("llama", "engine-1", "25%", "a[b]", "1,234", "10,005", "1.2500", "55", "900"):
        assert words in text, words
    assert "2023-11-14 22:13:20 UTC" in text


def test_problems_stand_out_and_nothing_is_no_error() -> None:
    text = show(make_status(store_problem="the disk is full", tenants=[]), "it does not answer")
    assert "the disk is full" in text
    assert "it does not answer" in text
    assert "tenants: none" in text
