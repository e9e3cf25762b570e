import io
import re
from typing import Any

import pytest
from rich.console import Console

from serve_app.top_view import TopView, _short

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


def show(
    status: dict[str, Any], problem: str = "", *, width: int = 140, height: int | None = None
) -> str:
    console = Console(width=width, height=height, record=True, file=io.StringIO())
    console.print(TopView(status, problem, fits_screen=height is not None))
    return console.export_text()


def make_crowd(n_engines: int, n_tenants: int) -> dict[str, Any]:
    """Long names, great numbers."""
    status = make_status()
    model, tenant = status["models"][0], status["tenants"][0]
    large = {"prompt_tokens": 123_456_789, "requests": 1_234_567, "cost_usd": 12_345.6789}
    model["name"] = "llama-3.1-70b-instruct-fp8"
    model["detail"] = "no node with eight free GPUs of the type H100"
    model["engines"] = [
        ENGINE | {"id": f"engine-{model['name']}-{i:08}", "tokens_per_s": 4321.0}
        for i in range(n_engines)
    ]
    names = [f"tenant-with-a-long-name-{i:02}" for i in range(n_tenants)]
    status["tenants"] = [{**tenant, "tenant": name, **large} for name in names]
    return status


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


@pytest.mark.parametrize("width", [80, 100, 200])
def test_numbers_are_whole_at_any_width_and_names_are_cut(width: int) -> None:
    text = show(make_crowd(2, 3), width=width)
    for words in ("1.2M", "123M", "12,345.68", "4,321", "25%", "spend $"):
        assert words in text, words
    assert max(map(len, text.splitlines())) <= width
    assert ("tenant-with-a-long-name-00" in text) == (width > 80)


@pytest.mark.parametrize(("n_engines", "n_tenants"), [(1, 1), (2, 50), (30, 2), (30, 50)])
def test_screen_holds_it_and_says_what_is_left_out(n_engines: int, n_tenants: int) -> None:
    text = show(make_crowd(n_engines, n_tenants), width=80, height=24)
    assert len(text.splitlines()) <= 24
    for names, title in ((n_engines, "engines"), (n_tenants, "tenants")):
        cut = re.search(rf"^{title}, (\d+) more", text, re.MULTILINE)
        n_shown = text.count("4,321" if title == "engines" else "12,345.68")
        assert n_shown >= 1
        assert n_shown + (int(cut[1]) if cut else 0) == names


def test_engines_that_are_not_ready_come_first() -> None:
    status = make_crowd(30, 1)
    status["models"][0]["engines"][17]["state"] = "loading"
    text = show(status, width=80, height=24)
    assert "loading" in text
    assert "00000017" in text


def test_numbers_are_short() -> None:
    for value, text in ((0, "0"), (99_999, "99,999"), (123_456, "123k"), (4_560_000, "4.6M")):
        assert _short(value) == text
    assert _short(7.25e11) == "725G"
