"""A short storm over a fleet, always the same; `make chaos-fleet` makes long ones."""

from pathlib import Path

import pytest

from tests.chaos.fleet_storm import fleet_storm_over, ride_out

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_reclaims_fail_no_request_and_capacity_comes_back_by_itself(tmp_path: Path) -> None:
    with fleet_storm_over(tmp_path, seed=1, scale=0.1) as storm:
        with storm.load():
            # With notice, without, and while the controller is killed.
            ride_out(storm, [12.0, 0.0, 3.0], kills=lambda i: i == 1)
        storm.check()
        assert storm.n_answers > 0
