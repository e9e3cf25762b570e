"""Tenants, keys and usage over HTTP, with two gateways on one store."""

import csv
import io
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from serve_app.keys import make_key
from serve_app.messages import EngineId, Standing
from serve_app.usage import UsageRecord
from tests.integration.conftest import make_settings, write_echo
from tests.support.platform import LocalPlatform, wait_until
from tests.support.usage import make_record

ADMIN = make_key()
DECLARED = make_key()
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def platform(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    folder = tmp_path_factory.mktemp("accounts")
    settings = make_settings(
        write_echo(tiny_model, aliases=["tiny-alias"]),
        write_echo(tiny_model, "paced", tokens_per_s=20.0),
        auth={"kind": "keys"},
        tenants=[
            {"id": "operators", "keys": [{"hash": ADMIN.hash, "scopes": ["admin"]}]},
            {"id": "declared", "weight": 2.0, "keys": [{"hash": DECLARED.hash}]},
        ],
        store={"state_dir": str(folder / "state"), "usage_batch_s": 0.05},
    )
    with LocalPlatform(settings, folder, n_gateways=2) as platform:
        yield platform


@pytest.fixture
def admin(platform: LocalPlatform) -> Iterator[httpx.Client]:
    with make_client(platform.url, ADMIN.text) as client:
        yield client


def make_client(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30.0)


def make_tenant(admin: httpx.Client, tenant_id: str, **terms: Any) -> None:
    answer = admin.post("/admin/tenants", json={"id": tenant_id, **terms})
    assert answer.status_code == 201, answer.text


def make_tenant_key(admin: httpx.Client, tenant_id: str, **form: Any) -> dict[str, Any]:
    answer = admin.post("/admin/keys", json={"tenant": tenant_id, **form})
    assert answer.status_code == 201, answer.text
    key: dict[str, Any] = answer.json()
    return key


def ask(url: str, key: str, model: str = "tiny") -> httpx.Response:
    body = {"model": model, "messages": HELLO, "max_tokens": 4}
    with make_client(url, key) as client:
        return client.post("/v1/chat/completions", json=body)


def refused(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    assert float(answer.headers["x-arriero-gateway-ms"]) >= 0.0
    return answer.status_code, error["code"]


# --- keys ---------------------------------------------------------------------------------------


def test_request_without_a_key_that_works_is_refused(platform: LocalPlatform) -> None:
    for key in ("sk-arriero-wrong", DECLARED.hash, DECLARED.text[:-1], DECLARED.text + "x"):
        assert refused(ask(platform.url, key)) == (401, "invalid_api_key")
    for path in ("/v1/models", "/v1/usage", "/admin/tenants", "/nothing"):
        assert refused(httpx.get(platform.url + path)) == (401, "invalid_api_key")


def test_declared_key_works_with_the_official_client(platform: LocalPlatform) -> None:
    client = openai.OpenAI(base_url=f"{platform.url}/v1", api_key=DECLARED.text)
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=4,
    )
    assert answer.usage is not None


def test_key_works_on_every_gateway_within_two_seconds_and_not_after_it_is_revoked(
    platform: LocalPlatform, admin: httpx.Client
) -> None:
    make_tenant(admin, "quick")
    key = make_tenant_key(admin, "quick", name="laptop")
    assert ask(platform.urls[0], key["key"]).status_code == 200
    assert wait_until(lambda: ask(platform.urls[1], key["key"]).is_success, 5.0, "known") < 2.0
    answer = admin.post(f"/admin/keys/{key['id']}/revoke")
    assert answer.json()["state"] == "revoked"
    assert refused(ask(platform.urls[0], key["key"])) == (401, "invalid_api_key")
    took_s = wait_until(lambda: not ask(platform.urls[1], key["key"]).is_success, 5.0, "revoked")
    assert took_s < 2.0


def test_stream_goes_on_when_its_key_is_revoked(
    platform: LocalPlatform, admin: httpx.Client
) -> None:
    make_tenant(admin, "streamer")
    key = make_tenant_key(admin, "streamer")
    body = {"model": "paced", "messages": HELLO, "max_tokens": 40, "stream": True}
    with make_client(platform.url, key["key"]) as client:
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            admin.post(f"/admin/keys/{key['id']}/revoke")
            admin.patch("/admin/tenants/streamer", json={"weight": 5.0})
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert client.get("/v1/models").status_code == 401


def test_key_is_shown_once(admin: httpx.Client) -> None:
    make_tenant(admin, "once")
    key = make_tenant_key(admin, "once")
    text = key["key"]
    assert text.startswith("sk-arriero-")
    assert key["prefix"] == text.removeprefix("sk-arriero-")[:8]
    for path in ("/admin/keys", "/admin/keys?tenant=once", f"/admin/keys/{key['id']}"):
        shown = admin.get(path).text
        assert key["id"] in shown
        assert text not in shown
    assert "hash" not in admin.get("/admin/keys").text


def test_rotated_key_has_a_successor(platform: LocalPlatform, admin: httpx.Client) -> None:
    make_tenant(admin, "rotating")
    old = make_tenant_key(admin, "rotating", name="ci", limits={"requests_per_min": 3})
    new = admin.post(f"/admin/keys/{old['id']}/rotate", json={"grace_s": 3600}).json()
    assert (new["tenant"], new["name"], new["limits"]["requests_per_min"]) == ("rotating", "ci", 3)
    for key in (old, new):
        assert ask(platform.url, key["key"]).status_code == 200
    admin.post(f"/admin/keys/{new['id']}/rotate", json={})
    assert ask(platform.url, new["key"]).status_code == 401


def test_expired_key_is_refused(platform: LocalPlatform, admin: httpx.Client) -> None:
    make_tenant(admin, "brief")
    key = make_tenant_key(admin, "brief", expires_in_s=1.0)
    assert ask(platform.url, key["key"]).status_code == 200
    time.sleep(1.1)
    assert refused(ask(platform.url, key["key"])) == (401, "invalid_api_key")
    assert admin.get(f"/admin/keys/{key['id']}").json()["state"] == "expired"


def test_key_can_do_what_its_scopes_say(platform: LocalPlatform, admin: httpx.Client) -> None:
    assert refused(ask(platform.url, ADMIN.text)) == (403, "insufficient_scope")
    with make_client(platform.url, DECLARED.text) as client:
        for method, path in (
            ("GET", "/admin/tenants"),
            ("POST", "/admin/keys"),
            ("GET", "/admin/usage"),
            ("GET", "/admin/nothing"),
        ):
            assert refused(client.request(method, path)) == (403, "insufficient_scope")
    make_tenant(admin, "both")
    key = make_tenant_key(admin, "both", scopes=["admin", "inference"])
    assert ask(platform.url, key["key"]).status_code == 200
    with make_client(platform.url, key["key"]) as client:
        assert client.get("/admin/tenants").status_code == 200


# --- tenants ------------------------------------------------------------------------------------


def test_tenant_is_made_changed_and_deleted(platform: LocalPlatform, admin: httpx.Client) -> None:
    make_tenant(admin, "life", limits={"requests_per_min": 5, "concurrent_requests": 2})
    key = make_tenant_key(admin, "life")
    changed = admin.patch(
        "/admin/tenants/life",
        json={"weight": 3, "limits": {"requests_per_min": None, "total_tokens_per_min": 9}},
    ).json()
    assert changed["weight"] == 3
    limits = {name: bound for name, bound in changed["limits"].items() if bound}
    assert limits == {"concurrent_requests": 2, "total_tokens_per_min": 9}
    assert admin.get("/admin/tenants/life").json() == changed
    assert changed in admin.get("/admin/tenants").json()["data"]
    assert admin.delete("/admin/tenants/life").json() == {"id": "life", "deleted": True}
    assert refused(admin.get("/admin/tenants/life")) == (404, "tenant_not_found")
    assert ask(platform.url, key["key"]).status_code == 401
    make_tenant(admin, "life")
    assert ask(platform.url, key["key"]).status_code == 401


def test_declared_tenant_is_shown_and_not_changed(admin: httpx.Client) -> None:
    shown = admin.get("/admin/tenants/declared").json()
    assert (shown["source"], shown["weight"]) == ("declared", 2.0)
    assert "keys" not in shown
    for answer in (
        admin.patch("/admin/tenants/declared", json={"weight": 9}),
        admin.delete("/admin/tenants/declared"),
        admin.post("/admin/tenants", json={"id": "declared"}),
    ):
        assert refused(answer) == (409, "tenant_is_declared")
        assert "declared in the config file" in answer.json()["error"]["message"]
    (key,) = admin.get("/admin/keys?tenant=declared").json()["data"]
    for action in ("revoke", "rotate"):
        answer = admin.post(f"/admin/keys/{key['id']}/{action}", json={})
        assert refused(answer) == (409, "key_is_declared")


def test_declared_tenant_gets_more_keys(platform: LocalPlatform, admin: httpx.Client) -> None:
    key = make_tenant_key(admin, "declared")
    assert ask(platform.url, key["key"]).status_code == 200
    admin.post(f"/admin/keys/{key['id']}/revoke")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "/admin/tenants", {"id": "a b"}, 400, "id"),
        ("POST", "/admin/tenants", {"id": "x", "weight": -1}, 400, "weight"),
        ("POST", "/admin/tenants", {"id": "x", "wieght": 1}, 400, "wieght"),
        ("POST", "/admin/tenants", {"id": "x", "limits": {"rpm": 1}}, 400, "limits.rpm"),
        ("POST", "/admin/tenants", [], 400, None),
        ("PATCH", "/admin/tenants/none", {}, 404, None),
        ("PATCH", "/admin/tenants/declared", {"id": "other"}, 400, "id"),
        ("DELETE", "/admin/tenants/none", None, 404, None),
        ("GET", "/admin/tenants/%00", None, 404, None),
        ("POST", "/admin/keys", {"tenant": "none"}, 404, None),
        ("POST", "/admin/keys", {"tenant": "declared", "scopes": ["root"]}, 400, "scopes.0"),
        ("POST", "/admin/keys", {"tenant": "declared", "scopes": []}, 400, "scopes"),
        (
            "POST",
            "/admin/keys",
            {"tenant": "declared", "expires_s": 1, "expires_in_s": 1},
            400,
            None,
        ),
        ("GET", "/admin/keys/%00", None, 404, None),
        ("POST", "/admin/keys/key-none/revoke", None, 404, None),
        ("POST", "/admin/keys/key-none/rotate", {}, 404, None),
        ("GET", "/admin/keys?tenant=none", None, 404, None),
        ("GET", "/admin/usage?from=yesterday", None, 400, "from"),
        ("GET", "/admin/usage?from=2026-02-01&to=2026-01-01", None, 400, "from"),
        ("GET", "/admin/usage?by=hour", None, 400, "by"),
        ("GET", "/admin/usage?format=xml", None, 400, "format"),
    ],
)
def test_admin_request_is_refused_in_openais_form(
    admin: httpx.Client, method: str, path: str, body: Any, status: int, param: str | None
) -> None:
    answer = admin.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error


def test_admin_api_is_in_the_openapi_document(platform: LocalPlatform) -> None:
    paths = httpx.get(f"{platform.url}/openapi.json", timeout=30.0).json()["paths"]
    for path in ("/admin/tenants", "/admin/keys/{key_id}/rotate", "/admin/usage", "/v1/usage"):
        assert path in paths
    assert "422" not in paths["/admin/keys"]["post"]["responses"]


# --- models -------------------------------------------------------------------------------------


def test_tenant_sees_and_uses_its_models_only(platform: LocalPlatform, admin: httpx.Client) -> None:
    make_tenant(admin, "narrow", allowed_models=["tiny"])
    key = make_tenant_key(admin, "narrow")["key"]
    with make_client(platform.url, key) as client:
        assert [card["id"] for card in client.get("/v1/models").json()["data"]] == [
            "tiny",
            "tiny-alias",
        ]
        assert client.get("/v1/models/tiny").status_code == 200
        assert refused(client.get("/v1/models/paced")) == (404, "model_not_found")
    assert ask(platform.url, key, "tiny-alias").status_code == 200
    not_mine, not_there = ask(platform.url, key, "paced"), ask(platform.url, key, "nothing")
    assert refused(not_mine) == refused(not_there) == (404, "model_not_found")
    text = not_mine.json()["error"]["message"]
    assert text == not_there.json()["error"]["message"].replace("nothing", "paced")


# --- identity -----------------------------------------------------------------------------------


def test_client_cannot_say_its_priority_cache_or_tenant(
    platform: LocalPlatform, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    charged: set[str] = set()
    for engine in platform.engines.values():
        assert engine._core is not None
        accept = engine._core.accept

        def watch(request: Any, standing: Standing, produced: Any, accept: Any = accept) -> None:
            seen.append(request)
            charged.add(standing.tenant)
            accept(request, standing, produced)

        monkeypatch.setattr(engine._core, "accept", watch)
    make_tenant(admin, "own-cache", has_own_prefix_cache=True)
    own = make_tenant_key(admin, "own-cache")["key"]
    wishes = {
        "model": "tiny",
        "max_tokens": 2,
        "priority": -100,
        "cache_salt": "declared",
        "vllm_xargs": {"kv_transfer_params": "x", "session_id": "s"},
        "kv_transfer_params": {"do_remote_prefill": True, "remote_prefill_cached_tokens": 999},
        "user": "operators",
        "n": 2,
    }
    headers = {
        "x-arriero-tenant": "operators",
        "x-data-parallel-rank": "0",
        "x-vllm-priority": "-5",
        "x-session-id": "s",
    }
    for key in (own, DECLARED.text):
        with make_client(platform.url, key) as client:
            for path, body in (
                ("/v1/chat/completions", {**wishes, "messages": HELLO}),
                ("/v1/completions", {**wishes, "prompt": "hello"}),
            ):
                answer = client.post(path, json=body, headers=headers)
                assert answer.status_code == 200, answer.text
                assert "999" not in answer.text
    assert len(seen) == 8
    assert charged == {"own-cache", "declared"}
    for request in seen:
        assert request.priority == 0
        assert request.session_id is None
        assert request.sampling_params.extra_args is None
        assert request.data_parallel_rank is None
    salts = [request.cache_salt for request in seen]
    assert len(set(salts[:4])) == 1
    assert salts[0].startswith("own-cache@")
    assert salts[4:] == [None] * 4


# --- usage --------------------------------------------------------------------------------------


def record(platform: LocalPlatform, *records: UsageRecord) -> None:
    async def do() -> None:
        recorder = platform._gateways[0].gateway.accounts.recorder
        for each in records:
            assert await recorder.record(each)

    platform.run(do())


def test_usage_is_reported_to_administrators_and_to_its_tenant(
    platform: LocalPlatform, admin: httpx.Client
) -> None:
    record(
        platform,
        make_record(tenant_id="declared"),
        make_record(tenant_id="declared", outcome="failed"),
        make_record(tenant_id="someone-else"),
    )
    path = "/admin/usage?from=2023-11-14&to=2023-11-14"
    wait_until(lambda: len(admin.get(path).json()["data"]) == 2, 5.0, "stored")
    first, _ = admin.get(path).json()["data"]
    assert first == {
        "day": "2023-11-14",
        "tenant": "declared",
        "model": "tiny",
        "adapter": "",
        "requests": 2,
        "failed": 1,
        "cancelled": 0,
        "prompt_tokens": 20,
        "cached_tokens": 0,
        "completion_tokens": 10,
        "cost_usd": 0.002,
    }
    rows = list(csv.DictReader(io.StringIO(admin.get(f"{path}&by=tenant&format=csv").text)))
    assert [(row["tenant"], row["requests"]) for row in rows] == [
        ("declared", "2"),
        ("someone-else", "1"),
    ]
    with make_client(platform.url, DECLARED.text) as client:
        own = client.get("/v1/usage?from=2023-11-14&to=2023-11-14&tenant=someone-else&by=tenant")
    assert [row["tenant"] for row in own.json()["data"]] == ["declared"]


# --- hostile ------------------------------------------------------------------------------------


def test_no_key_or_hash_is_in_any_answer_or_log(
    platform: LocalPlatform, admin: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    loggers = [logging.getLogger(name) for name in ("serve_app", "deployments")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    make_tenant(admin, "hostile")
    key = make_tenant_key(admin, "hostile")
    secrets = {key["key"], ADMIN.text, ADMIN.hash, DECLARED.hash, "sk-arriero-guess"}
    answers = []
    try:
        for secret in secrets:
            body = {"model": secret, "messages": HELLO, secret: secret}
            tries = [
                lambda c, s=secret, b=body: c.post("/v1/chat/completions", json=b),
                lambda c, s=secret, b=body: c.post("/admin/tenants", json={"id": "x", "limits": s}),
                lambda c, s=secret, b=body: c.post("/admin/keys", json={"tenant": "x", "key": s}),
                lambda c, s=secret, b=body: c.post("/admin/keys", json={"tenant": {s: s}}),
            ]
            for text in (secret, f"{secret} {secret}", f"\t{secret}"):
                with make_client(platform.url, text) as client:
                    answers += [attempt(client) for attempt in tries]  # type: ignore[no-untyped-call]
            for headers in (
                {"authorization": f"Basic {secret}"},
                {"x-api-key": secret + "x"},
                {"authorization": f"Bearer {secret}" * 50},
            ):
                answers.append(httpx.get(f"{platform.url}/v1/models", headers=headers))
    finally:
        for logger in loggers:
            logger.removeHandler(caplog.handler)
    assert all(answer.status_code < 500 for answer in answers)
    hidden = secrets - {"sk-arriero-guess"}
    for secret in hidden:
        assert secret not in caplog.text
    for answer in answers:
        # Only what the client itself wrote into `model` or a field's name may come back to it.
        assert ADMIN.hash not in answer.text or ADMIN.hash in str(answer.request.content)


def test_engine_is_not_restarted_by_a_change_of_tenants(
    platform: LocalPlatform, admin: httpx.Client
) -> None:
    before: list[EngineId] = list(platform.engines)
    make_tenant(admin, "late")
    assert list(platform.engines) == before
    assert platform.ready()["ready"]
