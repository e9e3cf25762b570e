"""Adapters over HTTP with the echo engine: who may use which, and which version a request gets."""

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from deployments.adapter_workers import AdapterWorkers
from serve_app.keys import make_key
from serve_app.messages import AdapterRef
from tests.integration.conftest import make_settings, write_echo
from tests.support.adapters import CONFIG, WEIGHTS, make_adapter, make_family
from tests.support.platform import LocalPlatform, wait_until

ADMIN, ACME, OTHER, NARROW = (make_key() for _ in range(4))
HELLO = [{"role": "user", "content": "hello"}]
RECHECK_S = 0.3


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    make_adapter(folder / "sql", tiny_model)
    make_adapter(folder / "acme", tiny_model, seed=1)
    make_family(folder / "family", tiny_model, 6)
    make_adapter(folder / "bad", tiny_model)
    (folder / "bad" / WEIGHTS).write_bytes(b"nothing")
    make_adapter(folder / "big", tiny_model, rank=128)
    return folder


@pytest.fixture(scope="module")
def platform(
    tiny_model: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalPlatform]:
    folder = tmp_path_factory.mktemp("platform")
    settings = make_settings(
        write_echo(tiny_model, tokens_per_s=200.0, adapters={"slots": 4}, aliases=["small"]),
        write_echo(tiny_model, "plain"),
        auth={"kind": "keys"},
        tenants=[
            {"id": "operators", "keys": [{"hash": ADMIN.hash, "scopes": ["admin", "inference"]}]},
            {"id": "acme", "keys": [{"hash": ACME.hash}]},
            {"id": "other", "keys": [{"hash": OTHER.hash}]},
            {
                "id": "narrow",
                "keys": [{"hash": NARROW.hash}],
                "allowed_models": ["tiny", "tiny:team-*"],
            },
        ],
        adapters={
            "declared": [
                {"name": "sql", "base": "tiny", "source": str(adapters / "sql")},
                {
                    "name": "secret",
                    "base": "tiny",
                    "source": f"file://{adapters}/acme",
                    "tenant": "acme",
                    "aliases": ["acme-model"],
                },
                {"name": "bad", "base": "tiny", "source": str(adapters / "bad")},
                {"name": "big", "base": "tiny", "source": str(adapters / "big")},
                {"name": "gone", "base": "tiny", "source": str(adapters / "gone")},
            ],
            "families": [
                {"base": "tiny", "source": str(adapters / "family"), "prefix": "team-"},
            ],
            "recheck_s": RECHECK_S,
            "cache": {"path": str(folder / "cache"), "workers": 2},
        },
        prices={
            "tiny": {"usd_per_million_prompt_tokens": 1.0},
            "tiny:sql": {"usd_per_million_prompt_tokens": 100.0},
        },
        store={"state_dir": str(folder / "state"), "usage_batch_s": 0.05},
    )
    with LocalPlatform(settings, folder, n_gateways=2) as platform:
        yield platform


@pytest.fixture
def admin(platform: LocalPlatform) -> Iterator[httpx.Client]:
    with platform.client(ADMIN.text) as client:
        yield client


@pytest.fixture
def seen(platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch) -> list[AdapterRef | None]:
    """The adapter of each request that reached an engine."""
    refs: list[AdapterRef | None] = []
    for engine in platform.engines.values():
        assert engine._server is not None
        core = engine._server.core
        assert core is not None
        accept = core.accept

        def watch(request: Any, *rest: Any, accept: Any = accept) -> None:
            lora = request.lora_request
            refs.append(
                AdapterRef.at(lora.lora_path, id=lora.lora_int_id, name=lora.lora_name, base="tiny")
                if lora is not None
                else None
            )
            accept(request, *rest)

        monkeypatch.setattr(core, "accept", watch)
    return refs


def ask(
    platform: LocalPlatform, model: str, key: str = ACME.text, gateway: int = 0, n_tokens: int = 4
) -> httpx.Response:
    return httpx.post(
        f"{platform.urls[gateway]}/v1/chat/completions",
        json={"model": model, "messages": HELLO, "max_tokens": n_tokens},
        headers={"authorization": f"Bearer {key}"},
        timeout=30.0,
    )


def error_of(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


def list_page(platform: LocalPlatform, key: str, **query: Any) -> dict[str, Any]:
    answer = httpx.get(
        f"{platform.url}/v1/models",
        headers={"authorization": f"Bearer {key}"},
        params=query,
        timeout=30.0,
    )
    page: dict[str, Any] = answer.json()
    return page


def list_models(platform: LocalPlatform, key: str) -> list[dict[str, Any]]:
    page = list_page(platform, key)
    assert not page["has_more"]
    cards: list[dict[str, Any]] = page["data"]
    return cards


# --- using them ---------------------------------------------------------------------------------


def test_request_reaches_the_engine_with_its_adapter(
    platform: LocalPlatform, seen: list[AdapterRef | None], adapters: Path
) -> None:
    for model in ("tiny:sql", "tiny", "tiny:secret", "acme-model"):
        answer = ask(platform, model)
        assert answer.status_code == 200, answer.text
        expected = "tiny:secret" if model == "acme-model" else model
        assert answer.json()["model"] == expected
    sql, none, secret, alias = seen
    assert none is None
    assert sql is not None
    assert secret is not None
    assert secret == alias
    assert (sql.name, sql.source) == ("tiny:sql", f"file://{adapters}/sql")
    assert len(sql.version) == 64
    assert 0 < sql.id != secret.id > 0


def test_both_gateways_give_a_version_the_same_id(
    platform: LocalPlatform, seen: list[AdapterRef | None]
) -> None:
    for gateway in (0, 1, 0, 1):
        assert ask(platform, "tiny:team-a00001", gateway=gateway).status_code == 200
    assert len(set(seen)) == 1


def test_streams_and_completions_name_the_adapter_too(platform: LocalPlatform) -> None:
    client = openai.OpenAI(base_url=f"{platform.url}/v1", api_key=ACME.text)
    chunks = list(
        client.completions.create(model="tiny:sql", prompt="hello", max_tokens=4, stream=True)
    )
    assert {chunk.model for chunk in chunks} == {"tiny:sql"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 2}),
        ("/v1/completions", {"prompt": "hello", "max_tokens": 2}),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 2}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 2}),
        ("/v1/messages/count_tokens", {"messages": HELLO}),
        ("/tokenize", {"prompt": "hello"}),
        ("/detokenize", {"tokens": [1, 2, 3]}),
    ],
)
@pytest.mark.parametrize("model", ["tiny:sql", "small:sql"])
def test_every_path_takes_an_adapter(
    platform: LocalPlatform,
    seen: list[AdapterRef | None],
    path: str,
    body: dict[str, Any],
    model: str,
) -> None:
    headers = {"authorization": f"Bearer {ACME.text}"}
    answer = httpx.post(
        f"{platform.url}{path}", json=body | {"model": model}, headers=headers, timeout=30.0
    )
    assert answer.status_code == 200, answer.text
    assert [ref.name for ref in seen if ref is not None] == ["tiny:sql"] * len(seen)
    assert answer.json().get("model") in (None, "tiny:sql")
    unknown = body | {"model": "tiny:nobody"}
    answer = httpx.post(f"{platform.url}{path}", json=unknown, headers=headers, timeout=30.0)
    assert answer.status_code == 404


def test_tenant_that_makes_up_names_leaves_others_their_turn(platform: LocalPlatform) -> None:
    with ThreadPoolExecutor(40) as pool:
        many = [pool.submit(ask, platform, f"tiny:team-no{i}", NARROW.text) for i in range(120)]
        assert ask(platform, "tiny:team-a00004", OTHER.text).status_code == 200
        answers = [answer.result() for answer in many]
    assert {answer.status_code for answer in answers} <= {404, 503}
    assert 404 in {answer.status_code for answer in answers}


def test_usage_is_recorded_with_the_adapter_and_its_price(
    platform: LocalPlatform, admin: httpx.Client
) -> None:
    for name in ("tiny:team-a00002", "tiny:sql"):
        assert ask(platform, name, OTHER.text).status_code == 200

    def rows() -> dict[str, Any]:
        query = {"tenant": "other", "by": "adapter"}
        found = admin.get("/admin/usage", params=query).json()["data"]
        return {row["adapter"]: row for row in found}

    wait_until(lambda: {"tiny:team-a00002", "tiny:sql"} <= rows().keys(), 10.0, "used")
    cheap, dear = rows()["tiny:team-a00002"], rows()["tiny:sql"]
    assert cheap["cost_usd"] == pytest.approx(cheap["prompt_tokens"] * 1e-6)
    assert dear["cost_usd"] == pytest.approx(dear["prompt_tokens"] * 1e-4)


def test_adapter_of_another_tenant_is_like_one_that_does_not_exist(
    platform: LocalPlatform,
) -> None:
    answers = [ask(platform, name, OTHER.text) for name in ("tiny:secret", "tiny:nobody")]
    texts = [error_of(answer)[2] for answer in answers]
    assert [error_of(answer)[:2] for answer in answers] == [(404, "model_not_found")] * 2
    assert texts[0].replace("secret", "nobody") == texts[1]
    assert error_of(ask(platform, "acme-model", OTHER.text))[:2] == (404, "model_not_found")


def test_tenants_list_of_models_holds_for_adapters(platform: LocalPlatform) -> None:
    assert ask(platform, "tiny:team-a00000", NARROW.text).status_code == 200
    for name in ("tiny:sql", "tiny:secret"):
        assert error_of(ask(platform, name, NARROW.text))[:2] == (404, "model_not_found")


@pytest.mark.parametrize(
    ("name", "status", "code", "words"),
    [
        ("tiny:bad", 400, "invalid_adapter", "no safetensors file"),
        ("tiny:big", 400, "invalid_adapter", "is 128 while the engine takes at most 64"),
        ("tiny:gone", 404, "adapter_not_found", "There is no such folder"),
        ("tiny:team-none", 404, "model_not_found", "does not exist"),
        ("tiny:team-..", 404, "model_not_found", "does not exist"),
        ("tiny:team-../sql", 404, "model_not_found", "does not exist"),
        ("plain:sql", 404, "model_not_found", "does not exist"),
        ("tiny:", 404, "model_not_found", "does not exist"),
        (":sql", 404, "model_not_found", "does not exist"),
    ],
)
def test_adapter_that_cannot_be_served_is_refused_with_the_reason(
    platform: LocalPlatform, name: str, status: int, code: str, words: str
) -> None:
    for _ in range(2):
        found = error_of(ask(platform, name))
        assert found[:2] == (status, code), found
        assert words in found[2]
    assert ask(platform, "tiny:sql").status_code == 200


def test_new_version_at_the_source_gets_another_id_and_the_old_one_keeps_its_own(
    platform: LocalPlatform, seen: list[AdapterRef | None], adapters: Path, tiny_model: Path
) -> None:
    folder = adapters / "family/a00005"
    assert ask(platform, "tiny:team-a00005").status_code == 200
    for name in (CONFIG, WEIGHTS):
        (folder / name).unlink()
    make_adapter(folder, tiny_model, seed=99)

    def is_new() -> bool:
        assert ask(platform, "tiny:team-a00005").status_code == 200
        return seen[-1] != seen[0]

    time.sleep(RECHECK_S)
    wait_until(is_new, 10.0, "another version")
    old, new = seen[0], seen[-1]
    assert old is not None
    assert new is not None
    assert old.id != new.id
    assert old.place != new.place
    (folder / WEIGHTS).write_bytes(b"broken")
    time.sleep(2 * RECHECK_S)
    for _ in range(3):  # A bad new version does no harm to the good old one.
        assert ask(platform, "tiny:team-a00005").status_code == 200
        assert seen[-1] == new
        time.sleep(RECHECK_S)


def test_request_does_not_wait_for_its_adapter_longer_than_it_says(
    platform: LocalPlatform, adapters: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: Any) -> Any:
        await asyncio.sleep(60.0)

    monkeypatch.setattr(AdapterWorkers, "do", hang)
    make_adapter(adapters / "family/slow", tiny_model)
    answer = httpx.post(
        f"{platform.url}/v1/chat/completions",
        json={"model": "tiny:team-slow", "messages": HELLO},
        headers={"authorization": f"Bearer {ACME.text}", "x-request-timeout": "0.5"},
        timeout=10.0,
    )
    assert error_of(answer)[:2] == (504, "deadline_exceeded")


# --- listing them -------------------------------------------------------------------------------


def test_models_lists_the_adapters_that_a_tenant_may_use(platform: LocalPlatform) -> None:
    assert ask(platform, "tiny:team-a00003").status_code == 200
    of_acme = {card["id"]: card for card in list_models(platform, ACME.text)}
    of_other = {card["id"] for card in list_models(platform, OTHER.text)}
    of_narrow = {card["id"] for card in list_models(platform, NARROW.text)}
    assert {"tiny", "tiny:sql", "tiny:secret", "acme-model", "tiny:team-a00003"} <= set(of_acme)
    assert "tiny:team-none" not in of_acme  # Known once it is used.
    assert not {"tiny:secret", "acme-model"} & of_other
    assert "tiny:sql" not in of_narrow
    assert "tiny:team-a00003" in of_narrow
    card = of_acme["tiny:team-a00003"]
    assert (card["parent"], card["root"]) == ("tiny", "tiny:team-a00003")
    assert card["adapter"]["rank"] == 64
    assert card["adapter"]["target_modules"] == ["q_proj", "v_proj"]
    assert of_acme["tiny"]["parent"] is None
    assert str(platform._folder) not in str(of_acme)


def test_list_of_adapters_comes_in_pages(platform: LocalPlatform) -> None:
    everything = [c["id"] for c in list_models(platform, ACME.text) if c["parent"]]
    found, has_more = [""], True
    while has_more:
        page = list_page(platform, ACME.text, limit=1, after=found[-1])
        found += [card["id"] for card in page["data"] if card["parent"]]
        has_more = page["has_more"]
    assert found[1:] == everything
    assert "acme-model" in everything  # An alias, behind which a page begins.


def test_one_adapter_is_shown_to_those_who_may_use_it(platform: LocalPlatform) -> None:
    for name, key, status in (
        ("tiny:sql", ACME, 200),
        ("tiny:secret", ACME, 200),
        ("acme-model", ACME, 200),
        ("small:sql", ACME, 200),
        ("tiny:secret", OTHER, 404),
        ("tiny:none", ACME, 404),
        ("tiny:team-none", ACME, 404),
    ):
        answer = httpx.get(
            f"{platform.url}/v1/models/{name}", headers={"authorization": f"Bearer {key.text}"}
        )
        assert answer.status_code == status, name


def test_nothing_half_made_is_left(platform: LocalPlatform) -> None:
    assert os.listdir(platform._folder / "cache/staging") == []
