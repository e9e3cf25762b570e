from hypothesis import given
from hypothesis import strategies as st

from serve_app.deployment_names import GATEWAY, engine_of, router_of
from serve_app.names import ModelName

_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,20}", fullmatch=True).map(ModelName)


def test_simple_names_stay_readable() -> None:
    assert engine_of(ModelName("smollm2-135m")) == "engine-smollm2-135m"
    assert router_of(ModelName("org/model")).startswith("router-org-model-")


@given(_NAMES, _NAMES)
def test_different_models_have_different_deployments(one: ModelName, other: ModelName) -> None:
    names = {engine_of(one), router_of(one), engine_of(other), router_of(other), GATEWAY}
    assert len(names) == (3 if one == other else 5)


@given(_NAMES)
def test_names_hold_nothing_that_serve_gives_a_meaning(name: ModelName) -> None:
    assert not set(engine_of(name)) & set("/#_: ")
