"""What routing by residency is for, in simulation: fewer loads than routing that knows less."""

import pytest

from bench.adapter_routing import BUILDS, simulate
from bench.adapter_routings import OURS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("kind", BUILDS)
@pytest.mark.parametrize("n_engines", [2, 4])
def test_residency_loads_far_less_and_keeps_engines_even(kind: str, n_engines: int) -> None:
    found = {
        name: simulate(name, n_engines, BUILDS[kind], 0.6, 400, seed=1)
        for name in (OURS, "least loaded")
    }
    ours, other = found[OURS], found["least loaded"]
    assert ours.loads_per_1000 < 0.8 * other.loads_per_1000
    assert ours.balance <= 1.3
    assert ours.tokens_per_s > other.tokens_per_s
