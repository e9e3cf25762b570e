"""Adapters at run time: the admin API, `arriero adapters`, and vLLM's own routes."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from serve_app.keys import make_key
from tests.integration.conftest import make_settings, write_echo
from tests.support.adapters import WEIGHTS, make_adapter
from tests.support.platform import LocalPlatform, wait_until

ADMIN, ACME, OTHER = (make_key() for _ in range(3))
HELLO = [{"role": "user", "content": "hello"}]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    make_adapter(folder / "declared", tiny_model, seed=5)
    for i, name in enumerate(("sql", "chat", "slow", "moved")):
        make_adapter(folder / name, tiny_model, seed=i)
    return folder


@pytest.fixture(scope="module")
def platform(
    tiny_model: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalPlatform]:
    folder = tmp_path_factory.mktemp("platform")
    platform_settings = make_settings(
        write_echo(tiny_model, tokens_per_s=20.0, adapters={}, aliases=["tiny-alias"]),
        write_echo(tiny_model, "plain"),
        auth={"kind": "keys"},
        tenants=[
            {"id": "operators", "keys": [{"hash": ADMIN.hash, "scopes": ["admin"]}]},
            {"id": "acme", "keys": [{"hash": ACME.hash}]},
            {"id": "other", "keys": [{"hash": OTHER.hash}]},
        ],
        adapters={
            "declared": [
                {"name": "fixed", "base": "tiny", "source": str(adapters / "declared")},
            ],
            "families": [{"base": "tiny", "source": str(adapters), "prefix": "of-"}],
            "cache": {"path": str(folder / "cache")},
        },
        store={"state_dir": str(folder / "state")},
    )
    with LocalPlatform(platform_settings, folder, n_gateways=2) as platform:
        yield platform


@pytest.fixture
def admin(platform: LocalPlatform) -> Iterator[httpx.Client]:
    with platform.client(ADMIN.text) as client:
        yield client


@pytest.fixture
def run(platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch, run_cli: Run) -> Run:
    monkeypatch.setenv("ARRIERO_URL", platform.url)
    monkeypatch.setenv("ARRIERO_ADMIN_KEY", ADMIN.text)

    return run_cli


def ask(
    platform: LocalPlatform, model: str, key: str = ACME.text, gateway: int = 0, n_tokens: int = 2
) -> httpx.Response:
    return httpx.post(
        f"{platform.urls[gateway]}/v1/chat/completions",
        json={"model": model, "messages": HELLO, "max_tokens": n_tokens},
        headers={"authorization": f"Bearer {key}"},
        timeout=30.0,
    )


def refused(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"]


def held(platform: LocalPlatform) -> set[int]:
    """Adapters in the memory of any engine."""
    gates = [engine._gate for engine in platform.engines.values()]
    return {number for gate in gates if gate is not None for number in gate.report().in_memory}


def test_registered_adapter_is_known_everywhere_within_two_seconds_until_it_is_removed(
    platform: LocalPlatform, admin: httpx.Client, adapters: Path
) -> None:
    body = {
        "name": "sql",
        "base": "tiny",
        "source": str(adapters / "sql"),
        "tenant": "acme",
        "aliases": ["acme-sql"],
    }
    answer = admin.post("/admin/adapters", json=body)
    assert answer.status_code == 201, answer.text
    shown = answer.json()
    assert (shown["id"], shown["origin"], shown["source"]) == (
        "tiny:sql",
        "admin",
        f"file://{adapters}/sql",
    )
    assert shown["version"]["rank"] == 8
    assert shown["version"]["target_modules"] == ["q_proj", "v_proj"]
    assert admin.get("/admin/adapters/tiny:sql").json() == shown
    assert admin.get("/admin/adapters/acme-sql").json() == shown
    assert shown in admin.get("/admin/adapters", params={"tenant": "acme"}).json()["data"]
    assert refused(admin.post("/admin/adapters", json=body)) == (409, "adapter_exists")
    took_s = wait_until(lambda: ask(platform, "acme-sql", gateway=1).is_success, 5.0, "known")
    assert took_s < 2.0
    assert ask(platform, "tiny:sql", OTHER.text).status_code == 404
    assert admin.delete("/admin/adapters/acme-sql").json() == {"id": "tiny:sql", "deleted": True}
    assert refused(ask(platform, "tiny:sql")) == (404, "model_not_found")
    wait_until(lambda: ask(platform, "tiny:sql", gateway=1).status_code == 404, 2.0, "gone")
    again = admin.post("/admin/adapters", json=body).json()
    assert again["version"]["id"] == shown["version"]["id"]  # The same adapter and content.
    admin.delete("/admin/adapters/tiny:sql")


def test_request_finishes_on_an_adapter_that_is_removed_meanwhile_and_then_nothing_is_left(
    platform: LocalPlatform, admin: httpx.Client, adapters: Path
) -> None:
    on_disk = set(os.listdir(platform._folder / "cache/ready"))
    body = {"name": "slow", "base": "tiny", "source": str(adapters / "slow")}
    number = admin.post("/admin/adapters", json=body).json()["version"]["id"]
    answers: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(ask(platform, "tiny:slow", n_tokens=40))
    )
    asking.start()
    wait_until(lambda: platform.count_in_engines() > 0, 10.0, "running")
    admin.delete("/admin/adapters/tiny:slow")
    assert ask(platform, "tiny:slow").status_code == 404
    asking.join(timeout=20.0)
    assert answers[0].status_code == 200
    assert answers[0].json()["usage"]["completion_tokens"] == 40
    wait_until(lambda: number not in held(platform), 5.0, "out of memory")
    wait_until(
        lambda: set(os.listdir(platform._folder / "cache/ready")) <= on_disk, 5.0, "off the disk"
    )


def test_refresh_takes_the_new_version_at_once(
    platform: LocalPlatform, admin: httpx.Client, adapters: Path, tiny_model: Path
) -> None:
    source = str(adapters / "moved")
    first = admin.post(
        "/admin/adapters", json={"name": "moved", "base": "tiny", "source": source}
    ).json()
    assert ask(platform, "tiny:moved").status_code == 200
    assert first["version"]["id"] in held(platform)
    make_adapter(adapters / "moved", tiny_model, seed=77, rank=16)
    second = admin.post("/admin/adapters/tiny:moved/refresh").json()
    assert second["version"]["rank"] == 16
    assert second["version"]["id"] > first["version"]["id"]
    assert second["version"]["sha256"] != first["version"]["sha256"]
    assert ask(platform, "tiny:moved").status_code == 200
    assert first["version"]["id"] not in held(platform), "another took its place"
    (adapters / "moved" / WEIGHTS).write_bytes(b"broken")
    answer = admin.post("/admin/adapters/tiny:moved/refresh")
    assert refused(answer) == (400, "invalid_adapter")
    assert ask(platform, "tiny:moved").status_code == 200
    assert admin.get("/admin/adapters/tiny:moved").json() == second


def test_tenants_own_adapters_go_with_it(
    platform: LocalPlatform, admin: httpx.Client, adapters: Path
) -> None:
    admin.post("/admin/tenants", json={"id": "brief"})
    body = {"name": "own", "base": "tiny", "source": str(adapters / "sql"), "tenant": "brief"}
    assert admin.post("/admin/adapters", json=body).status_code == 201
    admin.delete("/admin/tenants/brief")
    assert refused(admin.get("/admin/adapters/tiny:own")) == (404, "adapter_not_found")


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"base": "none"}, 400, "base"),
        ({"base": "tiny-alias"}, 400, "base"),
        ({"base": "plain"}, 400, "base"),
        ({"name": "../x"}, 400, "name"),
        ({"name": "a:b"}, 400, "name"),
        ({"source": "relative/../path"}, 400, "source"),
        ({"source": "http://host/x"}, 400, "source"),
        ({"source": "/none"}, 404, "source"),
        ({"source": "s3://bucket/../x"}, 400, "source"),
        ({"tenant": "none"}, 404, "tenant"),
        ({"aliases": ["tiny"]}, 409, "aliases"),
        ({"aliases": ["a:b"]}, 400, "aliases.0"),
        ({"name": "fixed"}, 409, None),
        ({"unknown": 1}, 400, "unknown"),
    ],
)
def test_adapter_that_cannot_be_registered_is_refused(
    admin: httpx.Client, adapters: Path, changes: dict[str, Any], status: int, param: str | None
) -> None:
    body = {"name": "x", "base": "tiny", "source": str(adapters / "chat")} | changes
    answer = admin.post("/admin/adapters", json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error


odd = st.sampled_from(
    ["", "tiny", "tiny:x", "..", "/", "/etc", "/dev/zero", "\x00", "a" * 3000, "s3://", "hf://a/b@..",
     "file:///proc/self/mem", "\ud7ff", None, 1, True, [], ["x", "x"], [None], {"a": 1}]
)  # fmt: skip


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    body=st.dictionaries(
        st.sampled_from(
            ["name", "base", "source", "tenant", "aliases", "lora_name", "lora_path", "x"]
        ),
        odd,
    ),
    path=st.sampled_from(["/admin/adapters", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"]),
)
def test_no_form_makes_a_5xx(admin: httpx.Client, body: dict[str, Any], path: str) -> None:
    answer = admin.post(path, json=body)
    assert 400 <= answer.status_code < 500, (body, answer.text)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_declared_adapter_is_not_removed_here(admin: httpx.Client) -> None:
    assert refused(admin.delete("/admin/adapters/tiny:fixed")) == (409, "adapter_is_declared")
    assert refused(admin.delete("/admin/adapters/tiny:none")) == (404, "adapter_not_found")
    assert admin.get("/admin/adapters/tiny:fixed").json()["origin"] == "declared"


def test_only_an_administrator_changes_adapters(platform: LocalPlatform) -> None:
    with platform.client(ACME.text) as client:
        for method, path in (
            ("GET", "/admin/adapters"),
            ("POST", "/admin/adapters"),
            ("DELETE", "/admin/adapters/tiny:fixed"),
            ("POST", "/v1/load_lora_adapter"),
            ("POST", "/v1/unload_lora_adapter"),
        ):
            answer = client.request(method, path, json={})
            assert refused(answer) == (403, "insufficient_scope"), path


def test_clients_of_vllms_routes_are_served(
    platform: LocalPlatform, admin: httpx.Client, adapters: Path
) -> None:
    form = {"lora_name": "chat", "lora_path": str(adapters / "chat")}
    answer = admin.post("/v1/load_lora_adapter", json=form)
    assert answer.text == "Success: LoRA adapter 'chat' added successfully."
    assert ask(platform, "chat").json()["model"] == "tiny:chat"
    assert ask(platform, "tiny:chat").status_code == 200
    assert refused(admin.post("/v1/load_lora_adapter", json=form)) == (409, "adapter_exists")
    replaced = form | {"load_inplace": True, "lora_path": str(adapters / "sql")}
    assert admin.post("/v1/load_lora_adapter", json=replaced).status_code == 200
    assert admin.get("/admin/adapters/chat").json()["source"] == f"file://{adapters}/sql"
    answer = admin.post("/v1/unload_lora_adapter", json={"lora_name": "chat"})
    assert answer.text == "Success: LoRA adapter 'chat' removed successfully."
    assert ask(platform, "chat").status_code == 404
    missing = {"lora_name": "x", "lora_path": "/none"}
    assert refused(admin.post("/v1/load_lora_adapter", json=missing)) == (404, "adapter_not_found")
    assert admin.post("/v1/load_lora_adapter", json={"lora_name": "x"}).status_code == 400
    for wrong in ({"lora_name": "a b", "lora_path": "/none"}, form | {"lora_path": "http://x"}):
        answer = admin.post("/v1/load_lora_adapter", json=wrong)
        assert answer.status_code == 400
        param = "lora_path" if "http" in wrong["lora_path"] else "lora_name"
        assert answer.json()["error"]["param"] == param
        assert answer.json()["error"]["message"].startswith(f"{param}: ")


def test_adapter_in_the_place_of_a_private_one_is_private_too(
    platform: LocalPlatform, admin: httpx.Client, adapters: Path
) -> None:
    source = str(adapters / "sql")
    body = {"name": "own", "base": "tiny", "source": source, "tenant": "acme", "aliases": ["o"]}
    assert admin.post("/admin/adapters", json=body).status_code == 201
    form = {"lora_name": "own", "lora_path": str(adapters / "chat"), "load_inplace": True}
    assert admin.post("/v1/load_lora_adapter", json=form).status_code == 200
    shown = admin.get("/admin/adapters/tiny:own").json()
    assert (shown["tenant"], shown["aliases"]) == ("acme", ["o", "own"])
    assert shown["source"].endswith("/chat")
    assert ask(platform, "own").status_code == 200
    assert ask(platform, "tiny:own", OTHER.text).status_code == 404
    admin.delete("/admin/adapters/tiny:own")


def test_operator_adds_shows_and_removes_an_adapter_by_command(
    run: Run, platform: LocalPlatform, adapters: Path
) -> None:
    source = str(adapters / "sql")
    status, out, err = run(
        *("adapters", "add", "mine", "--base", "tiny", "--source", source),
        *("--tenant", "acme", "--alias", "my-sql"),
    )
    assert status == 0, err
    for words in ("tiny:mine", "my-sql", "q_proj, v_proj", "sha256", f"file://{source}"):
        assert words in out
    status, out, _ = run("adapters", "list")
    assert status == 0
    assert out.splitlines()[0].split() == ["ADAPTER", "TENANT", "RANK", "SIZE", "ORIGIN", "SOURCE"]
    assert "tiny:mine" in out
    assert "tiny:fixed" in out
    status, out, _ = run("adapters", "show", "my-sql", "--json")
    assert json.loads(out)["version"]["rank"] == 8
    assert run("adapters", "refresh", "tiny:mine")[0] == 0
    status, out, _ = run("adapters", "remove", "tiny:mine")
    assert "Removed tiny:mine" in out
    status, _, err = run("adapters", "show", "tiny:mine")
    assert status == 1
    assert "There is no adapter" in err
    status, _, err = run("adapters", "add", "x", "--source", source)
    assert "--base MODEL" in err
    status, _, err = run("adapters", "add", "tiny:x", "--base", "other", "--source", source)
    assert "another base model" in err
    status, _, err = run("adapters", "add", "tiny:x", "--source", "/none")
    assert status == 1
    assert "There is no such folder. It was looked for at 'file:///none'" in err
    assert "every machine" in err


def test_relative_source_is_not_taken_for_a_hubs_id_where_a_folder_is_meant(
    run: Run, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(adapters.parent)
    source = f"{adapters.name}/sql"
    status, _, err = run("adapters", "add", "tiny:x", "--source", source)
    assert status == 1
    assert f"must be absolute, and the same on every machine of the platform: {adapters}/sql" in err
    assert f"hf://{source}" in err


def test_member_of_a_family_is_checked_by_refresh_before_anybody_uses_it(
    run: Run, adapters: Path, tiny_model: Path
) -> None:
    status, _, err = run("adapters", "show", "tiny:of-chat")
    assert status == 1
    assert "Nobody has used 'tiny:of-chat' yet" in err
    assert "arriero adapters refresh tiny:of-chat" in err
    status, out, err = run("adapters", "refresh", "tiny:of-chat")
    assert status == 0, err
    assert "q_proj, v_proj" in out
    assert run("adapters", "show", "tiny:of-chat")[0] == 0
    status, _, err = run("adapters", "refresh", "tiny:of-nobody")
    assert status == 1
    assert "There is no such folder" in err
    status, _, err = run("adapters", "remove", "tiny:of-chat")
    assert "found in a family" in err
    assert "Remove its folder, then `arriero adapters refresh tiny:of-chat` ends it" in err


def test_member_of_a_family_ends_when_its_folder_is_gone_and_it_is_refreshed(
    run: Run, platform: LocalPlatform, adapters: Path, tiny_model: Path
) -> None:
    folder = make_adapter(adapters / "brief", tiny_model, seed=55)
    assert ask(platform, "tiny:of-brief").status_code == 200
    _, before, _ = run("adapters", "show", "tiny:of-brief", "--json")
    shutil.rmtree(folder)
    assert ask(platform, "tiny:of-brief").status_code == 200
    status, _, err = run("adapters", "refresh", "tiny:of-brief")
    assert status == 1
    assert "There is no such folder. Requests get it no more." in err
    assert ask(platform, "tiny:of-brief").status_code == 404
    number = json.loads(before)["version"]["id"]
    wait_until(lambda: number not in held(platform), 5.0, "out of memory")
    make_adapter(folder, tiny_model, seed=55)
    assert run("adapters", "refresh", "tiny:of-brief")[0] == 0
    assert run("adapters", "show", "tiny:of-brief", "--json")[1] == before
    assert ask(platform, "tiny:of-brief").status_code == 200


def test_version_of_which_no_copy_is_left_gives_way_to_what_is_at_the_source(
    platform: LocalPlatform, admin: httpx.Client, adapters: Path, tiny_model: Path
) -> None:
    folder = make_adapter(adapters / "new", tiny_model, seed=56)
    first = admin.post("/admin/adapters/tiny:of-new/refresh").json()["version"]
    make_adapter(folder, tiny_model, seed=57)
    for copy in (platform._folder / "cache/ready").iterdir():
        if json.loads((copy / "import.json").read_bytes())["version"] == first["sha256"]:
            shutil.rmtree(copy)
    answer = ask(platform, "tiny:of-new")
    assert answer.status_code == 503
    assert "not the request's fault" in answer.json()["error"]["message"]
    # Nobody waits for `recheck_s`, here a minute, to have it noticed.
    wait_until(lambda: ask(platform, "tiny:of-new").status_code == 200, 5.0, "another version")
    assert admin.get("/admin/adapters/tiny:of-new").json()["version"]["id"] > first["id"]


def test_refusals_say_what_to_do(
    run: Run, adapters: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "nan", tiny_model)
    weights = load_file(folder / WEIGHTS)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, folder / WEIGHTS)
    _, _, err = run("adapters", "add", "tiny:nan", "--source", str(folder))
    assert "not finite (NaN or infinity)" in err
    assert "Save it from a checkpoint before that" in err
    source = str(adapters / "sql")
    assert run("adapters", "add", "tiny:twice", "--source", source)[0] == 0
    _, _, err = run("adapters", "add", "tiny:twice", "--source", source)
    assert "Refresh it if its files are new, remove it first" in err
    assert run("adapters", "remove", "tiny:twice")[0] == 0
