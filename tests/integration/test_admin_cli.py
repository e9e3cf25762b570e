"""`arriero tenants`, `keys` and `usage` against a running platform."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from serve_app import cli
from tests.integration.conftest import make_settings, write_echo
from tests.support.platform import LocalPlatform

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def platform(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    folder = tmp_path_factory.mktemp("cli")
    args = {
        "models": [write_echo(tiny_model)],
        "auth": {"kind": "keys"},
        "store": {"state_dir": str(folder / "state")},
    }
    app = {"name": "arriero", "import_path": "serve_app.main:build", "args": args}
    (folder / "config.yaml").write_text(yaml.safe_dump({"applications": [app]}))
    settings = make_settings(*args.pop("models"), **args)  # type: ignore[arg-type]
    with LocalPlatform(settings, folder) as platform:
        yield platform


@pytest.fixture
def run(platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch, run_cli: Run) -> Run:
    monkeypatch.setenv("ARRIERO_URL", platform.url)
    config = str(platform._folder / "config.yaml")
    status, out, _ = run_cli("keys", "create", "--bootstrap", config, "--json")
    assert status == 0
    key = json.loads(out)
    assert (key["tenant"], key["scopes"]) == ("operators", ["admin"])
    monkeypatch.setenv("ARRIERO_ADMIN_KEY", key["key"])
    platform.wait_until(lambda: run_cli("tenants", "list")[0] == 0, 5.0, "known")
    return run_cli


def test_operator_gets_from_the_first_key_to_a_tenants_usage(
    run: Run, platform: LocalPlatform
) -> None:
    status, out, _ = run(
        *("tenants", "create", "search", "--weight", "2", "--requests-per-min", "600"),
        *("--usd-per-month", "50.5", "--allow-model", "tiny", "--own-prefix-cache"),
    )
    assert status == 0
    assert "requests_per_min=600" in out
    status, out, _ = run("tenants", "update", "search", "--requests-per-min", "none", "--tier", "1")
    assert status == 0
    assert "limits             none" in out
    assert "usd_per_month=50.5" in out
    status, out, _ = run("tenants", "list")
    assert "search" in out
    assert "2" in out.splitlines()[2]

    status, out, _ = run(
        *("keys", "create", "--tenant", "search", "--name", "ci", "--expires", "90d"),
        *("--requests-per-min", "60"),
    )
    assert status == 0
    text = out.splitlines()[-1].strip()
    answer = httpx.post(
        f"{platform.url}/v1/completions",
        json={"model": "tiny", "prompt": "hello", "max_tokens": 2},
        headers={"authorization": f"Bearer {text}"},
    )
    assert answer.status_code == 200, answer.text
    status, out, _ = run("keys", "list", "--tenant", "search", "--json")
    (key,) = json.loads(out)["data"]
    assert key["limits"]["requests_per_min"] == 60
    status, out, _ = run("keys", "rotate", key["id"], "--grace", "1h")
    assert text not in out
    status, out, _ = run("keys", "revoke", key["id"])
    assert out == f"Revoked {key['id']}.\n"
    status, out, _ = run("keys", "list")
    assert "revoked" in out
    assert text not in out
    status, out, _ = run("usage", "--by", "day,tenant")
    assert status == 0
    assert out.startswith("DAY")
    status, out, _ = run("usage", "--csv")
    assert out.startswith("tenant,model,requests")
    status, out, _ = run("tenants", "delete", "search")
    assert out == "Deleted search; its keys work no more.\n"
    assert run("tenants", "show", "search")[0] == 1


def test_what_is_refused_is_told_on_standard_error(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = run("tenants", "show", "nobody")
    assert (status, out) == (1, "")
    assert err.startswith("There is no tenant 'nobody'.")
    monkeypatch.setenv("ARRIERO_ADMIN_KEY", "sk-arriero-wrong")
    status, _, err = run("keys", "list")
    assert status == 1
    assert "unknown, expired or revoked" in err
    assert "sk-arriero-wrong" not in err
    status, _, err = run("keys", "list", "--url", "http://127.0.0.1:9")
    assert status == 1
    assert "does not answer" in err
    monkeypatch.delenv("ARRIERO_ADMIN_KEY")
    assert "ARRIERO_ADMIN_KEY is not set" in run("keys", "list")[2]
    assert "--tenant is missing" in run("keys", "create")[2]


def test_key_and_hash_for_the_config_file_belong_together(run: Run) -> None:
    from serve_app.keys import hash_key

    made = json.loads(run("keys", "hash", "--json")[1])
    assert hash_key(made["key"]) == made["hash"]


@pytest.mark.parametrize("command", ["tenants", "keys", "usage"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert "examples:" in capsys.readouterr().out
