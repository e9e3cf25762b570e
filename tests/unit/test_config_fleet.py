"""What a fleet's settings refuse, and with which words."""

from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.config_fleet import FleetSettings

_LOCAL: dict[str, Any] = {"kind": "local", "zones": [{"name": "east", "spot_usd_per_h": 1.0}]}


def _parse(**changes: Any) -> FleetSettings:
    return FleetSettings.model_validate({"target": 2, "provisioner": _LOCAL, **changes})


def test_target_may_follow_demand_up_to_a_bound() -> None:
    assert _parse(most_target=5).most_target == 5
    assert _parse().most_target is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"floor": 3}, "floor is 3 while target is 2"),
        ({"most_target": 1}, "most_target is 1 while target is 2"),
        (
            {"most_target": 3, "provisioner": {"kind": "skypilot"}},
            "name the head that the nodes join",
        ),
        ({"provisioner": {**_LOCAL, "zones": _LOCAL["zones"] * 2}}, "has 'east' twice"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        _parse(**changes)
