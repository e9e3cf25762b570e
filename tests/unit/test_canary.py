import pytest

from serve_app.config import parse_settings
from serve_app.errors import ConfigError
from serve_app.gateway.canary import CanaryTurns
from serve_app.names import ModelName
from tests.support.settings import write_args, write_model

TINY = ModelName("tiny")


@pytest.mark.parametrize(("percent", "n"), [(0.0, 0), (10.0, 100), (33.0, 330), (100.0, 1000)])
def test_canary_gets_its_part_exactly(percent: float, n: int) -> None:
    turns = CanaryTurns()
    assert sum(turns.is_next(TINY, percent) for _ in range(1000)) == n


def test_canary_gets_its_part_evenly() -> None:
    turns = CanaryTurns()
    tried = [i for i in range(100) if turns.is_next(TINY, 25.0)]
    assert tried == list(range(3, 100, 4))


def test_canary_is_a_version_of_its_own_in_the_models_domain() -> None:
    engine = {"kind": "echo", "max_num_seqs": 3}
    canary = {"percent": 5.0, "engine": engine, "replicas": {"min": 2, "max": 2}}
    settings = parse_settings(write_args(write_model(aliases=["small"], canary=canary)))
    model, version = settings.versions
    assert (version.name, version.domain_name) == ("tiny/canary", "tiny")
    assert version.engine.kind == "echo"
    assert version.engine.max_num_seqs == 3
    assert version.replicas.min == 2
    assert (version.source, version.aliases) == (model.source, ())


def test_canary_that_contradicts_itself_is_refused() -> None:
    canary = {"percent": 5.0, "engine": {"kind": "vllm", "args": {"gpu_memory_utilization": 0.5}}}
    with pytest.raises(ConfigError, match=r"canary: engine.args.gpu_memory_utilization is 0.5"):
        parse_settings(write_args(write_model(canary=canary)))


def test_canary_and_another_model_cannot_have_one_name() -> None:
    taken = write_model("tiny/canary")
    with pytest.raises(ConfigError, match="'tiny/canary'"):
        parse_settings(write_args(write_model(canary={"percent": 5.0}), taken))
