"""Cells are asked whether they are ready, all at once, and one that does not answer is not."""

import httpx

from cluster.members import CellMembers
from cluster.policy.fleet import NodeId, ZoneId
from cluster.policy.reconcile import Machine, MachineState, Pulse


def _machine(name: str, state: MachineState, address: str) -> Machine:
    return Machine(NodeId(name), ZoneId("x/east/a"), "spot", state, 0.0, address=address)


def _answer(request: httpx.Request) -> httpx.Response:
    if request.url.host == "10.0.0.3":
        raise httpx.ConnectTimeout("away")
    if request.url.host == "10.0.0.1":
        return httpx.Response(200)
    return httpx.Response(503, text="no gateway")


def test_cell_that_its_cloud_takes_says_until_when() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, json={"ready": False, "leaves_s": 1_030.5})

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        machines = [_machine("f-1", "up", "10.0.0.1")]
        assert CellMembers(8000, client).observe(machines) == {NodeId("f-1"): Pulse(1_030.5)}


def test_cell_that_lacks_an_engine_answers_and_is_not_ready() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, json={"ready": False, "leaves_s": None, "models": {}})

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        pulses = CellMembers(8000, client).observe([_machine("f-1", "up", "10.0.0.1")])
        assert pulses == {NodeId("f-1"): Pulse(is_ready=False)}


def test_only_cells_that_say_that_they_are_ready_have_a_pulse() -> None:
    with httpx.Client(transport=httpx.MockTransport(_answer)) as client:
        members = CellMembers(8000, client)
        machines = [
            _machine("f-1", "up", "10.0.0.1"),
            _machine("f-2", "up", "10.0.0.2"),
            _machine("f-3", "up", "10.0.0.3"),
            _machine("f-4", "starting", "10.0.0.1"),
            _machine("f-5", "up", ""),
        ]
        assert members.observe(machines) == {NodeId("f-1"): Pulse()}
