"""Where a gateway's requests go between its own cell and others, step by step."""

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.cell_messages import PeerCell
from serve_app.config import LimitSettings
from serve_app.config_cell import CellMembership
from serve_app.gateway.gateway_metrics import ModelSeries
from serve_app.gateway.peers import Peers
from serve_app.gateway.roaming_client import RoamingClient
from serve_app.gateway.tickets import Ticket
from serve_app.messages import EngineId, EngineLoad, EngineStatus, Enqueue, ModelStatus, TicketId
from serve_app.metrics import Metrics
from serve_app.names import ModelName, TenantId
from serve_app.router_link import RouterLink

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TINY = ModelName("tiny")
WEST, NORTH = "http://west:1", "http://north:1"
URLS = (WEST, NORTH)
NO_ENGINE = ModelStatus("x.f", [], 0)


def status(dialect: str = "x", places: int = 4) -> ModelStatus:
    engine = EngineStatus(EngineId("e1"), "ready", "", EngineLoad(), places=places)
    return ModelStatus(f"{dialect}.f", [engine], 0)


def make_ticket(i: int = 0, tenant: str = "a", dialect: str = "x", n_runs: int = 1) -> Ticket:
    enqueue = Enqueue(TicketId(f"t{i}"), TenantId(tenant), 1.0, 0, 5, 8, dialect=dialect)
    sink: Any = SimpleNamespace(begin=lambda ticket: None)
    return Ticket([], sink, enqueue, has_grammar=False, n_runs=n_runs)


class Roaming:
    """A client of a cell, and what other cells say."""

    def __init__(self, *, only_gateways: bool = False, sleeps: bool = False) -> None:
        settings = CellMembership(
            name="east",
            bank="http://127.0.0.1:9",
            reaches_others=True,
            only_gateways=only_gateways,
        )
        self.peers = Peers(settings, "")
        self.read: list[str] = []
        self.client = RoamingClient(
            TINY,
            b"gateway",
            self._find_nothing,
            LimitSettings(),
            lambda config_id, payload: self.read.append(config_id),
            ModelSeries(Metrics(), TINY),
            lambda ref: None,
            peers=self.peers,
            sleeps=sleeps,
        )

    async def _find_nothing(self) -> Any:
        raise AssertionError("nothing is connected here")

    async def look(self) -> None:
        """Looks, as it does regularly, a second after the last time."""
        self.client._visited_s = self.client._looked_closely_s = 0.0
        self.client._look(time.monotonic())
        await asyncio.sleep(0.01)

    async def hear(self, **told: ModelStatus) -> None:
        """Takes what routers say, after having visited their cells."""
        await self.look()
        for name, each in told.items():
            client = self.client if name == "home" else self.guest(name)
            client._read_mail(each)

    def guest(self, name: str) -> Any:
        return self.client._guests[f"http://{name}:1"].client

    def where(self) -> dict[str, list[str]]:
        """The tickets of each place that has some."""
        places = {"home": self.client} | {
            url.removeprefix("http://").removesuffix(":1"): guest.client
            for url, guest in self.client._guests.items()
        }
        return {name: sorted(c._tickets) for name, c in places.items() if c._tickets}


@pytest.fixture(autouse=True)
def _nothing_is_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    async def list_cells(self: Peers) -> list[PeerCell]:
        self._cells = [PeerCell(url, 4) for url in URLS]
        return self._cells

    monkeypatch.setenv("ARRIERO_CELLS_KEY", "a key that cells share")
    monkeypatch.setattr(Peers, "list_cells", list_cells)
    monkeypatch.setattr(RouterLink, "start", lambda self: None)
    monkeypatch.setattr(RouterLink, "is_connected", True)
    monkeypatch.setattr(RouterLink, "send", lambda self, mail: None)


@pytest.fixture
async def east() -> AsyncIterator[Roaming]:
    found = Roaming()
    yield found
    found.client.close()
    await found.peers.close()


@pytest.fixture
async def gate() -> AsyncIterator[Roaming]:
    found = Roaming(only_gateways=True)
    yield found
    found.client.close()
    await found.peers.close()


async def test_requests_leave_when_the_last_engine_is_gone_and_come_home(east: Roaming) -> None:
    await east.hear(home=status())
    east.client.begin(make_ticket())
    await east.look()
    assert east.where() == {"home": ["t0"]}
    assert not east.client._guests
    await east.hear(home=NO_ENGINE)
    await east.look()
    await east.hear(west=status())
    await east.look()
    assert east.where() == {"west": ["t0"]}
    await east.hear(west=NO_ENGINE, home=status())
    await east.look()
    assert east.where() == {"home": ["t0"]}


async def test_what_a_sleeping_model_has_not_begun_wakes_it_where_it_is() -> None:
    east = Roaming(sleeps=True)
    await east.hear(home=NO_ENGINE)
    east.client.begin(make_ticket(0, n_runs=0))
    east.client.begin(make_ticket(1, n_runs=1))
    await east.look()
    await east.hear(west=status())
    await east.look()
    assert east.where() == {"home": ["t0"], "west": ["t1"]}
    east.client.close()
    await east.peers.close()


async def test_what_new_engines_do_not_understand_goes_where_it_is_understood(
    east: Roaming,
) -> None:
    await east.hear(home=status("y"))
    east.client.begin(make_ticket(0, dialect="x"))
    east.client.begin(make_ticket(1, dialect="y"))
    await east.look()
    await east.hear(west=status("x"), north=status("y"))
    await east.look()
    assert east.where() == {"home": ["t1"], "west": ["t0"]}


async def test_requests_out_of_reach_wait_at_home_for_another_cell(gate: Roaming) -> None:
    await gate.look()
    await gate.hear(west=status())
    gate.client.begin(make_ticket(n_runs=0))
    assert gate.where() == {"west": ["t0"]}
    west = gate.guest("west")
    ticket = west._tickets[TicketId("t0")]
    west.engines._lose(EngineId("e1"))
    west.release(ticket)
    gate.client._place(ticket)
    assert gate.where() == {"home": ["t0"]}
    await gate.hear(west=status(), north=status())
    await gate.look()
    assert gate.where() == {"north": ["t0"]}


async def test_a_burst_of_one_tenant_fills_one_cell_and_then_the_next(gate: Roaming) -> None:
    await gate.look()
    await gate.hear(west=status(), north=status())
    for i in range(8):
        gate.client.begin(make_ticket(i, n_runs=0))
    assert sorted(len(tickets) for tickets in gate.where().values()) == [4, 4]


async def test_a_cell_that_leaves_gets_nothing_new_while_another_is_there(gate: Roaming) -> None:
    await gate.look()
    await gate.hear(west=status(), north=status())
    gate.peers._cells = [PeerCell(NORTH, 4)]
    for i in range(6):
        gate.client.begin(make_ticket(i, n_runs=0))
    assert list(gate.where()) == ["north"]
    gate.peers._cells = []
    gate.client.begin(make_ticket(7, tenant="b", n_runs=0))
    assert "home" not in gate.where()


async def test_a_cell_of_gateways_reads_as_its_cells_do(gate: Roaming) -> None:
    await gate.look()
    for name, dialect in (("west", "x"), ("north", "y")):
        gate.client._guests[f"http://{name}:1"].front_end = (f"{dialect}.f", b"")
    await gate.hear(west=status("x"))
    await gate.look()
    await gate.hear(west=status("x"), north=status("y"))
    await gate.look()
    assert gate.read == ["x.f"]
    assert [engine.state for engine in gate.client.status.engines] == ["ready", "ready"]
    await gate.hear(west=NO_ENGINE, north=status("y"))
    await gate.look()
    assert gate.read == ["x.f", "y.f"]
