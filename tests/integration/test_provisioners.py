"""What the controller may rely on: of the cloud in memory that its own tests use, of real Ray nodes
of this machine, and of SkyPilot before moto's AWS.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.local_nodes import LocalNodeShape, LocalProvisioner, LocalZone
from cluster.local_ray import node_environment
from cluster.local_state import new_mark, stop_processes
from cluster.policy.fleet import NodeId, ZoneId
from cluster.policy.reconcile import Machine
from cluster.provisioner import FleetSetupError, Provisioner
from cluster.sky_provisioner import SkyBridge, SkyProvisioner
from tests.support.fake_fleet import FakeCloud
from tests.support.moto_cloud import list_instances
from tests.support.sky_cloud import SkyCloud, run_sky_cloud

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_TASK = """\
resources:
  any_of:
    - {infra: aws, cpus: 2, use_spot: true}
run: echo hello
"""


@dataclass(frozen=True)
class Subject:
    """One provisioner, and what its world is told.

    Attributes:
        provisioner: Under test.
        again: Makes another one, as after a death.
        close_zone: Makes a zone refuse.
        count_paid: Counts what is paid for, by its world.
    """

    provisioner: Provisioner
    again: Callable[[], Provisioner]
    close_zone: Callable[[ZoneId], None]
    count_paid: Callable[[], int]


def _memory() -> Iterator[Subject]:
    cloud = FakeCloud()

    def close_zone(zone: ZoneId) -> None:
        cloud.room[zone] = 0

    yield Subject(cloud, lambda: cloud, close_zone, lambda: len(cloud.paid()))


def _local() -> Iterator[Subject]:
    """Nodes that look for a head in vain: they start, and nobody asks what they do then."""
    folder, mark = Path(tempfile.mkdtemp(prefix="ln-", dir="/tmp")), new_mark()
    zones = [LocalZone("east", 1.0, 3.0, 2), LocalZone("west", 1.2, 3.1, 2)]

    def make() -> LocalProvisioner:
        environ = node_environment(os.environ, mark)
        shape = LocalNodeShape(start_s=0.5)
        return LocalProvisioner("f", zones, shape, "127.0.0.1:1", folder, folder / "n", environ)

    provisioner = make()
    try:
        yield Subject(
            provisioner,
            make,
            lambda zone: provisioner.set_room(zone, 0),
            lambda: len({name for name, _ in provisioner._processes()}),
        )
    finally:
        stop_processes(mark)
        shutil.rmtree(folder, ignore_errors=True)


def _sky() -> Iterator[Subject]:
    with run_sky_cloud() as cloud:
        task = cloud.folder / "tasks" / "task.yaml"
        task.parent.mkdir()
        task.write_text(_TASK)

        def make() -> SkyProvisioner:
            bridge = SkyBridge(cloud.python, cloud.folder / "bridge.log", cloud.environ)
            return SkyProvisioner("f", task, {}, bridge)

        provisioner = make()
        try:
            yield Subject(
                provisioner,
                make,
                lambda zone: _close(cloud, zone),
                lambda: len(list_instances(cloud.endpoint)),
            )
        finally:
            provisioner.close()


def _close(cloud: SkyCloud, zone: ZoneId) -> None:
    cloud.set_short(zone.rpartition("/")[2], "out-of-stock", True)


_OPT_IN = pytest.mark.skipif(
    not os.environ.get("ARRIERO_SKY_CLOUD"),
    reason="SkyPilot's API server and launches take three minutes: make test-clouds",
)


_WORLDS = {"memory": _memory, "local": _local, "skypilot": _sky}


@pytest.fixture(scope="module", params=["memory", "local", pytest.param("skypilot", marks=_OPT_IN)])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    yield from _WORLDS[request.param]()


def _wait(subject: Subject, node: NodeId, is_so: Callable[[Machine | None], bool]) -> None:
    give_up_s = time.monotonic() + 120.0
    while True:
        machines = {machine.id: machine for machine in subject.provisioner.list_machines()}
        if is_so(machines.get(node)):
            return
        assert time.monotonic() < give_up_s, machines
        time.sleep(0.5)


def test_offers_have_prices_and_zones(subject: Subject) -> None:
    offers = subject.provisioner.list_offers()
    assert len(offers) >= 2
    assert len({offer.zone for offer in offers}) == len(offers)
    for offer in offers:
        assert offer.spot_usd_per_h is not None
        assert offer.on_demand_usd_per_h is not None
        assert 0 < offer.spot_usd_per_h < offer.on_demand_usd_per_h
        assert offer.zone.startswith(f"{offer.cloud}/")
        assert subject.provisioner.describe_kind(offer.zone, "spot")


def test_machine_is_listed_once_however_often_it_is_asked_for(subject: Subject) -> None:
    node, zone = NodeId("f-1"), subject.provisioner.list_offers()[0].zone
    for _ in range(2):
        subject.provisioner.launch(node, zone, "spot")
    # SkyPilot's launch has no place before its turn has come.
    _wait(subject, node, lambda machine: machine is not None and bool(machine.zone))
    _wait(subject, node, lambda machine: subject.count_paid() > 0)
    [machine] = subject.provisioner.list_machines()
    assert (machine.zone, machine.market) == (zone, "spot")
    assert machine.state in ("starting", "up")
    assert subject.count_paid() == 1


def test_machine_outlives_who_asked_for_it(subject: Subject) -> None:
    subject.provisioner.close()
    other = subject.again()
    try:
        assert [machine.id for machine in other.list_machines()] == ["f-1"]
    finally:
        other.close()
    assert subject.count_paid() == 1


def test_refusal_is_told_with_its_kind_and_costs_nothing(subject: Subject) -> None:
    node, zone = NodeId("f-2"), subject.provisioner.list_offers()[1].zone
    subject.close_zone(zone)
    subject.provisioner.launch(node, zone, "spot")
    seen: list[Machine] = []

    def is_refused(machine: Machine | None) -> bool:
        seen[:] = [machine] if machine is not None else []
        return machine is not None and machine.state == "refused"

    _wait(subject, node, is_refused)
    assert seen[0].refusal == "stock", seen[0].text
    assert subject.count_paid() == 1


def test_ended_machine_is_gone_and_ending_again_is_no_error(subject: Subject) -> None:
    for _ in range(2):
        subject.provisioner.end(NodeId("f-1"))
        subject.provisioner.end(NodeId("f-2"))
    _wait(subject, NodeId("f-1"), lambda machine: machine is None or machine.state == "refused")
    _wait(subject, NodeId("f-1"), lambda machine: subject.count_paid() == 0)


def test_missing_skypilot_is_said_with_the_command(tmp_path: Path) -> None:
    bridge = SkyBridge(tmp_path / "python", tmp_path / "log")
    with pytest.raises(FleetSetupError, match="make sky"):
        bridge.ask("offers")
