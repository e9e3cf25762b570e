"""The composition root, without Ray running."""

from typing import Any

import pytest
from ray.serve.exceptions import RayServeException

from serve_app import main
from serve_app.deployment_names import engine_of
from serve_app.names import ModelName
from tests.support.settings import write_args, write_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def find_deployments(args: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def walk(application: Any) -> None:
        deployment = application._bound_deployment
        found[deployment.name] = deployment
        for argument in deployment.init_args:
            if hasattr(argument, "_bound_deployment"):
                walk(argument)

    walk(main.build(args))
    return found


def build_versions(args: dict[str, Any]) -> dict[str, str]:
    """The version of each deployment: what has another one is restarted."""
    return {name: d._deployment_config.version for name, d in find_deployments(args).items()}


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    old, new = build_versions(before), build_versions(after)
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


A, B = write_model("a"), write_model("b")


def test_same_settings_restart_nothing() -> None:
    assert changed(write_args(A, B), write_args(A, B)) == set()


def test_engine_setting_restarts_that_models_engines_only() -> None:
    other = write_model("b", engine={"kind": "echo", "max_num_seqs": 3})
    assert changed(write_args(A, B), write_args(A, other)) == {"engine-b"}


def test_new_model_restarts_nothing_else() -> None:
    assert changed(write_args(A), write_args(A, B)) == {"engine-b", "router-b"}


@pytest.mark.parametrize(
    "section",
    [
        {"limits": {"max_waiting": 3}},
        {"gateway": {"max_body_bytes": 4096, "request_timeout_s": 60.0}},
        {"prices": {"a": {"usd_per_million_prompt_tokens": 1.0}}},
        {"tenants": [{"id": "anonymous", "limits": {"requests_per_min": 5}}]},
    ],
)
def test_settings_that_apply_at_run_time_restart_nothing(section: dict[str, Any]) -> None:
    assert changed(write_args(A), write_args(A, **section)) == set()


def test_settings_of_the_ledger_restart_it_alone() -> None:
    assert changed(write_args(A), write_args(A, ledger={"lease_s": 60.0})) == {"ledger"}


@pytest.mark.parametrize(
    "changes",
    [
        {"replicas": {"min": 2, "max": 2}},
        {"replicas": {"min": 0, "max": 2}, "autoscaling": {"sleep_after_s": 5.0}},
        {"rollout": {"surge_percent": 0}},
        {"aliases": ["c"]},
        {"front_end": {}},
        {"ttft_objective_s": 1.0},
    ],
)
def test_settings_that_engines_do_not_see_do_not_restart_them(changes: dict[str, Any]) -> None:
    assert changed(write_args(A), write_args(A | changes)) == set()


def test_canary_has_engines_of_its_own_and_restarts_none() -> None:
    engine = engine_of(ModelName("a/canary"))
    assert changed(write_args(A), write_args(A | {"canary": {"percent": 5.0}})) == {engine}


def test_serve_asks_how_many_engines_where_the_number_is_not_fixed() -> None:
    model = write_model("a", replicas={"min": 0, "max": 3}, rollout={"surge_percent": 50})
    config = find_deployments(write_args(model, B))["engine-a"]._deployment_config
    numbers = config.autoscaling_config
    assert numbers is not None
    assert (numbers.min_replicas, numbers.max_replicas) == (0, 3)
    assert numbers.policy.policy_kwargs["model"] == "a"
    assert config.max_surge_percent == 50
    fixed = find_deployments(write_args(model, B))["engine-b"]._deployment_config
    assert (fixed.num_replicas, fixed.autoscaling_config) == (1, None)


def test_serve_always_learns_anew_whom_it_scales_and_restarts_none() -> None:
    args = write_args(write_model("a", replicas={"min": 0, "max": 3}), B)
    assert changed(args, args) == set()
    first, second = (
        {name: d._deployment_config for name, d in find_deployments(args).items()} for _ in "12"
    )
    assert {name for name in first if first[name] != second[name]} == {"engine-a"}


def test_invalid_settings_are_refused_with_the_fields_path() -> None:
    with pytest.raises(RayServeException) as caught:
        main.build(write_args(write_model("a", engine={"kind": "echo", "max_num_seqs": 0})))
    assert "models[0].engine.max_num_seqs" in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3"])
def test_open_host_without_keys_is_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "_http_host", lambda: host)
    with pytest.raises(RayServeException) as caught:
        main.build(write_args(A))
    assert host in str(caught.value)
    assert "auth.kind" in str(caught.value)
