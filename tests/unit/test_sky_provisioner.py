"""What the SkyPilot provisioner makes of its bridge's answers, and says where there is none."""

import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.provisioner import FleetSetupError, ProvisionerAwayError
from cluster.sky_provisioner import SkyBridge, SkyProvisioner

_OFFER = {"zone": "aws/us-east-1/us-east-1a", "cloud": "aws", "region": "aws/us-east-1"}


class _Bridge(SkyBridge):
    """Answers what it was given."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(Path("/opt/sky/bin/python"), Path("sky.log"))
        self.answer = answer

    def ask(self, do: str, **question: Any) -> Any:
        return self.answer


def _provisioner(**answer: Any) -> SkyProvisioner:
    told = {"offers": [], "left_out": [], "unset": [], **answer}
    return SkyProvisioner("f", Path("cell.yaml"), {}, _Bridge(told), ["H100:8"])


def test_clouds_that_are_left_out_are_named_with_the_command() -> None:
    provisioner = _provisioner(offers=[_OFFER | {"spot": 1.0}], left_out=["azure", "gcp"])
    [offer] = provisioner.list_offers()
    assert (offer.spot_usd_per_h, offer.on_demand_usd_per_h) == (1.0, None)
    [remark] = provisioner.remarks()
    assert "azure, gcp" in remark
    assert "`/opt/sky/bin/sky check azure gcp`" in remark


def test_secrets_without_a_value_are_named_before_anything_is_launched() -> None:
    provisioner = _provisioner(offers=[_OFFER | {"spot": 1.0}], unset=["RAY_AUTH_TOKEN"])
    provisioner.list_offers()
    assert "RAY_AUTH_TOKEN" in provisioner.remarks()[0]


def test_kinds_that_nobody_sells_are_an_error_that_names_them() -> None:
    with pytest.raises(FleetSetupError, match="takes only H100:8") as error:
        _provisioner(left_out=["azure"]).list_offers()
    assert "sky check azure" in str(error.value)


def test_python_without_skypilot_is_told_with_the_command(tmp_path: Path) -> None:
    # This one has Ray and vLLM, and so never SkyPilot.
    bridge = SkyBridge(Path(sys.executable), tmp_path / "sky.log")
    with pytest.raises(FleetSetupError, match="make sky"):
        bridge.ask("machines", fleet="f")
    bridge.close()


def test_process_that_dies_is_one_to_be_asked_again(tmp_path: Path) -> None:
    bridge = SkyBridge(Path("/bin/false"), tmp_path / "sky.log")
    for _ in range(2):
        with pytest.raises(ProvisionerAwayError, match="SkyPilot does not answer"):
            bridge.ask("machines", fleet="f")
