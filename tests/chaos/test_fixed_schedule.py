"""A short storm, always the same; `make chaos` makes long ones."""

from pathlib import Path

import pytest

from tests.chaos.storm import ride_out, storm_over

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_promises_hold_after_each_event_of_a_fixed_storm(tmp_path: Path) -> None:
    with storm_over(tmp_path, seed=1) as storm:
        events = [
            storm.kill_engine,
            storm.leave_a_stream,
            storm.kill_router,
            storm.drain_engine,
            storm.kill_engine,
            storm.kill_all_engines,
            storm.stop_engine_for_a_while,
            storm.hang_engine,
        ]
        ride_out(storm, events, between_s=1.0)
