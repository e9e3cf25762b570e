"""Every file under sky/, parsed by SkyPilot and planned by its optimiser."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.policy.fleet import NodeId
from cluster.provisioner import FleetSetupError
from cluster.sky_provisioner import SkyBridge, SkyProvisioner
from tests.support.sky_environment import ROOT, ensure_sky, make_home, plan_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FILES = sorted((ROOT / "sky").glob("*.yaml"))


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_home(tmp_path_factory.mktemp("sky-home"))


@pytest.fixture(scope="module")
def planned(environ: dict[str, str]) -> tuple[dict[str, dict[str, Any]], str]:
    ensure_sky()
    plans, output = plan_files(FILES, environ)
    return dict(zip([file.stem for file in FILES], plans, strict=True)), output


def test_all_files_of_the_platform_are_there() -> None:
    assert [file.stem for file in FILES] == [
        "cell",
        "controller",
        "dev-cpu",
        "service",
        "workers",
    ]


def test_optimiser_prints_a_plan_for_every_file(
    planned: tuple[dict[str, dict[str, Any]], str],
) -> None:
    plans, output = planned
    assert set(plans) == {file.stem for file in FILES}
    assert output.count("CHOSEN") == len(FILES)


@pytest.mark.parametrize("name", ["cell", "workers", "service"])
def test_gpu_files_take_the_cheapest_spot_node(
    planned: tuple[dict[str, dict[str, Any]], str], name: str
) -> None:
    plan = planned[0][name]
    assert plan["use_spot"]
    assert plan["accelerators"] == {"A100-80GB": 8}
    assert plan["usd_per_h"] == 8.0  # us-west-2 in the test's catalogue


def test_cell_may_be_of_many_kinds_and_opens_one_port(
    planned: tuple[dict[str, dict[str, Any]], str],
) -> None:
    plan = planned[0]["cell"]
    assert plan["choices"] >= 10
    assert plan["ports"] == ["8000"]


def test_service_is_probed_where_the_platform_says_that_it_is_ready(
    planned: tuple[dict[str, dict[str, Any]], str],
) -> None:
    plan = planned[0]["service"]
    assert plan["readiness_path"] == "/ready"
    assert plan["spot_placer"] == "dynamic_fallback"


def test_trial_machine_costs_cents_and_opens_no_port(
    planned: tuple[dict[str, dict[str, Any]], str],
) -> None:
    plans = planned[0]
    assert plans["dev-cpu"]["use_spot"]
    assert plans["dev-cpu"]["usd_per_h"] < 0.1
    assert plans["dev-cpu"]["ports"] is None


def test_controller_is_no_spot_machine_and_opens_no_port(
    planned: tuple[dict[str, dict[str, Any]], str],
) -> None:
    plan = planned[0]["controller"]
    assert not plan["use_spot"]
    assert plan["accelerators"] is None
    assert plan["ports"] is None


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_secret_has_a_value_in_a_file(file: Path) -> None:
    secrets = yaml.safe_load(file.read_text()).get("secrets", {})
    assert all(not value for value in secrets.values())


@pytest.mark.usefixtures("planned")  # makes three clouds known
def test_clouds_and_secrets_that_a_fleet_lacks_are_told_before_anything_is_launched(
    environ: dict[str, str], tmp_path: Path
) -> None:
    bridge = SkyBridge(ensure_sky(), tmp_path / "sky.log", environ)
    cells = SkyProvisioner("f", ROOT / "sky" / "cell.yaml", {}, bridge)
    workers = SkyProvisioner("f", ROOT / "sky" / "workers.yaml", {}, bridge)
    try:
        offers = cells.list_offers()
        assert {offer.cloud for offer in offers} == {"aws", "gcp", "lambda"}
        left_out, unset = cells.remarks()
        assert "azure, nebius" in left_out
        assert "RAY_AUTH_TOKEN" in unset
        with pytest.raises(FleetSetupError, match="asks for the secret RAY_AUTH_TOKEN"):
            cells.launch(NodeId("f-1"), offers[0].zone, "spot")
        with pytest.raises(FleetSetupError, match=r"set fleet\.provisioner\.ray_head"):
            workers.list_offers()
    finally:
        bridge.close()
