"""The controller against a cloud in memory: what it does, and what a death at each call leaves."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.controller import Controller, Step
from cluster.fleet_book import DOWN, FleetBook
from cluster.fleet_cells import read_cells
from cluster.fleet_tables import state_of
from cluster.policy.demand import Demand
from cluster.policy.fleet import Market, NodeId, Reclaimed, Refusal, ZoneId
from cluster.policy.reconcile import Machine, Pulse
from cluster.provisioner import FleetError, FleetSetupError
from serve_app.config_fleet import FleetSettings
from tests.support.fake_fleet import OFFERS, START_S, FakeCloud, KilledError

_PERIOD_S = 10.0


def _settings(**changes: Any) -> FleetSettings:
    zones = [{"name": "unused", "spot_usd_per_h": 1.0}]
    return FleetSettings.model_validate(
        {
            "name": "f",
            "target": 3,
            "start_up_s": START_S,
            "period_s": _PERIOD_S,
            "drain_s": 30.0,
            "provisioner": {"kind": "local", "zones": zones},
            **changes,
        }
    )


class _World:
    def __init__(self, folder: Path, **changes: Any) -> None:
        self.cloud = FakeCloud()
        self.folder = folder
        self.settings = _settings(**changes)
        self.told: list[str] = []
        self.controller = self.start()

    def start(self) -> Controller:
        self.controller = Controller(
            self.settings,
            self.cloud,
            self.cloud,
            FleetBook(self.folder),
            self.told.append,
            lambda: self.cloud.now_s,
        )
        return self.controller

    def step(self, n: int = 1) -> Step:
        for _ in range(n):
            self.cloud.now_s += _PERIOD_S
            self.cloud.take_due()
            step = self.controller.step()
        return step

    def settle(self) -> Step:
        return self.step(15)


@pytest.fixture
def world(tmp_path: Path) -> _World:
    return _World(tmp_path)


def test_fleet_reaches_its_target_and_stays(world: _World) -> None:
    step = world.settle()
    assert len(world.cloud.serving()) >= 3
    before = set(world.cloud.ever)
    world.step(20)
    assert set(world.cloud.ever) == before
    assert {e.id for e in step.entries} == world.cloud.paid()
    assert sum(entry.usd_per_h for entry in step.entries) > 0


def test_node_that_is_taken_is_replaced_and_told_of(world: _World) -> None:
    world.settle()
    node = sorted(world.cloud.serving())[0]
    world.cloud.take(node)
    step = world.step()
    assert any(isinstance(news, Reclaimed) for news in step.happenings)
    world.settle()
    assert len(world.cloud.serving()) >= 3
    assert node not in world.cloud.ever[3:]


def test_replacement_is_asked_for_at_the_notice_not_at_the_death(tmp_path: Path) -> None:
    world = _World(tmp_path, most_spare=0)
    world.settle()
    n_before = len(world.cloud.ever)
    node = sorted(world.cloud.serving())[0]
    world.cloud.take(node, notice_s=120.0)
    world.step()
    assert node in world.cloud.machines
    assert len(world.cloud.ever) > n_before


def test_refusals_send_the_next_launch_elsewhere_and_cost_nothing(world: _World) -> None:
    for offer in OFFERS[:2]:
        world.cloud.room[offer.zone] = 0
    world.settle()
    zones = {m.zone for m in world.cloud.machines.values()}
    assert zones == {OFFERS[2].zone}
    assert len(world.cloud.serving()) >= 3
    assert any("refused" in line and "stock" in line for line in world.told)


def test_missing_credentials_are_told_with_the_command(world: _World) -> None:
    world.cloud.refusal = "credentials"
    world.cloud.room = {OFFERS[0].zone: 0, OFFERS[1].zone: 0}
    world.settle()
    assert any("sky check x" in line for line in world.told)


def test_budget_is_kept(tmp_path: Path) -> None:
    world = _World(tmp_path, budget={"usd_per_h": 2.2, "shed_first": "on-demand"})
    for _ in range(60):
        step = world.step()
        assert sum(e.usd_per_h for e in step.entries if e.leaves_s is None) <= 2.2
    assert world.cloud.serving()


def test_node_that_never_serves_is_replaced(tmp_path: Path) -> None:
    world = _World(tmp_path, give_up_s=100.0)
    dead = NodeId("f-1")
    observe = world.cloud.observe
    world.cloud.observe = lambda machines: {  # type: ignore[method-assign]  # one node stays dumb
        node: pulse for node, pulse in observe(machines).items() if node != dead
    }
    world.settle()
    assert dead not in world.cloud.machines
    assert len(world.cloud.serving()) >= 3


def test_node_whose_engine_starts_anew_is_kept(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.settle()
    node, observe = min(world.cloud.serving()), world.cloud.observe
    monkeypatch.setattr(
        world.cloud, "observe", lambda machines: {**observe(machines), node: Pulse(is_ready=False)}
    )
    step = world.step(4)
    assert node in world.cloud.machines
    assert state_of(next(e for e in step.entries if e.id == node)) == "is not ready"
    monkeypatch.setattr(world.cloud, "observe", observe)
    world.step(10)
    assert node in world.cloud.serving()


def test_drained_node_leaves_and_another_comes(world: _World) -> None:
    world.settle()
    node = sorted(world.cloud.serving())[0]
    FleetBook(world.folder).order(node, 30.0)
    world.settle()
    assert node not in world.cloud.machines
    assert len(world.cloud.serving()) >= 3
    assert FleetBook(world.folder).orders() == {}


def test_fronts_are_told_that_a_node_leaves_before_it_ends(world: _World) -> None:
    step = world.settle()
    for name, machine in world.cloud.machines.items():
        world.cloud.machines[name] = replace(machine, address=f"10.0.0.{name[-1]}")
    world.step()
    node = step.entries[0].id
    told = {cell.name: cell for cell in read_cells(world.folder)}
    assert told.keys() == world.cloud.paid()
    assert not any(cell.leaves for cell in told.values())
    assert told[node].address == f"10.0.0.{node[-1]}"
    seen: list[bool] = []

    def look() -> None:
        if node in world.cloud.machines:
            seen.extend(cell.leaves for cell in read_cells(world.folder) if cell.name == node)

    FleetBook(world.folder).order(node, 0.0)
    world.cloud.before_call = look
    while node in world.cloud.machines:
        world.step()
    assert seen[-1]  # when the cloud was asked to end it
    world.cloud.before_call = lambda: None
    world.step()
    assert node not in {cell.name for cell in read_cells(world.folder)}


def test_look_from_beside_does_not_take_an_order_for_a_reclaim(world: _World) -> None:
    world.settle()
    node, observe = min(world.cloud.serving()), world.cloud.observe
    beside = Controller(
        world.settings, world.cloud, world.cloud, FleetBook(world.folder), world.told.append
    )
    FleetBook(world.folder).order(node, 30.0)

    def order_meanwhile(machines: Sequence[Machine]) -> Mapping[NodeId, Pulse]:
        world.cloud.observe = observe  # type: ignore[method-assign]  # once
        world.step()
        return observe(machines)

    world.cloud.observe = order_meanwhile  # type: ignore[method-assign]
    [seen] = [entry for entry in beside.look().entries if entry.id == node]
    assert seen.leaves_s is not None
    assert not seen.is_taken


def test_down_ends_everything(world: _World) -> None:
    world.settle()
    FleetBook(world.folder).order(DOWN, 30.0)
    world.settle()
    assert world.cloud.paid() == set()
    assert FleetBook(world.folder).load().entries == ()
    assert len(FleetBook(world.folder).read_ended()) == len(world.cloud.ever)


def test_nodes_are_found_again_without_the_book(world: _World) -> None:
    world.settle()
    before = world.cloud.paid()
    (world.folder / "book.json").unlink()
    world.start()
    step = world.step()
    assert {entry.id for entry in step.entries} >= before
    assert all(entry.usd_per_h > 0 for entry in step.entries)
    world.settle()
    assert before <= world.cloud.paid()


def test_what_the_policy_learned_outlives_the_controller(world: _World) -> None:
    world.settle()
    for node in sorted(world.cloud.serving())[:1]:
        zone = world.cloud.machines[node].zone
        world.cloud.take(node)
    world.step()
    world.start()
    world.step()
    policy = world.controller._keeper._policy
    assert policy is not None
    rates = policy._survival.estimate_rates_per_h(world.cloud.now_s)
    others = [rate for name, rate in rates.items() if name.split("/")[0] != zone.split("/")[0]]
    assert rates[zone] > max(others)


def test_prices_of_an_hour_ago_do_where_there_are_none_now(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.settle()
    monkeypatch.setattr(world.cloud, "list_offers", _raise(FleetSetupError("no cloud")))
    world.cloud.now_s += 4000.0
    world.cloud.take(min(world.cloud.serving()))
    world.settle()
    assert len(world.cloud.serving()) >= 3
    assert sum("prices are not known now: no cloud" in line for line in world.told) == 1


def test_nodes_end_where_no_prices_are_known(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.settle()
    monkeypatch.setattr(world.cloud, "list_offers", _raise(FleetSetupError("no cloud")))
    world.start()
    with pytest.raises(FleetSetupError):
        world.step()
    FleetBook(world.folder).order(DOWN, 30.0)
    world.settle()
    assert world.cloud.paid() == set()


def test_what_goes_missing_later_does_not_leave_nodes_alone(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, n_tries = world.cloud.launch, 0

    def fail(node: NodeId, zone: ZoneId, market: Market) -> None:
        nonlocal n_tries
        n_tries += 1
        raise FleetSetupError("the zone is sold no more")

    def sleep(seconds: float) -> None:
        world.cloud.now_s += seconds
        if n_tries == 0:
            world.cloud.launch = fail  # type: ignore[method-assign]  # from the second step on
            world.cloud.take(min(world.cloud.machines))
        elif n_tries > 1:
            world.cloud.launch = launch  # type: ignore[method-assign]  # and again as it was

    monkeypatch.setattr("time.sleep", sleep)
    world.controller.run(lambda step: n_tries > 1 and len(world.cloud.serving()) >= 3)
    assert any("sold no more" in line for line in world.told)


def test_what_is_missing_from_the_start_ends_the_run(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.cloud, "launch", _raise(FleetSetupError("no token")))
    with pytest.raises(FleetSetupError, match="no token"):
        world.controller.run()
    assert FleetBook(world.folder).load().entries == ()  # nothing was asked for


@pytest.mark.parametrize("refusal", ["credentials", "quota"])
def test_what_people_mend_is_asked_for_again_by_the_next_controller(
    world: _World, refusal: Refusal
) -> None:
    world.cloud.refusal = refusal
    world.cloud.room = {offer.zone: 0 for offer in OFFERS}
    world.settle()
    world.cloud.room = {}
    world.settle()
    assert world.cloud.paid() == set()
    world.start()
    world.settle()
    assert len(world.cloud.serving()) >= 3


def test_full_disk_stops_no_controller_and_nothing_is_done_meanwhile(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_full, n_sleeps = True, 0

    def save(book: FleetBook, content: Any) -> None:
        if is_full:
            raise FleetError("no space left")
        plain(book, content)

    def sleep(seconds: float) -> None:
        nonlocal is_full, n_sleeps
        world.cloud.now_s += seconds
        n_sleeps += 1
        assert not (is_full and world.cloud.ever)
        is_full = n_sleeps < 5

    plain = FleetBook.save
    monkeypatch.setattr(FleetBook, "save", save)
    monkeypatch.setattr("time.sleep", sleep)
    world.controller.run(lambda step: len(world.cloud.serving()) >= 3)
    assert world.told.count("nothing is done now: no space left") == 1


def test_remarks_on_offers_are_told_once(world: _World) -> None:
    world.cloud.said = ("left out: azure",)
    world.settle()
    assert world.told.count("left out: azure") == 1


def _raise(error: Exception) -> Callable[..., Any]:
    def fail(*args: object) -> None:
        raise error

    return fail


def test_second_controller_is_told_that_the_fleet_is_held(tmp_path: Path) -> None:
    first, second = FleetBook(tmp_path), FleetBook(tmp_path)
    with first.hold() as is_mine, second.hold() as is_theirs:
        assert (is_mine, is_theirs) == (True, False)
    with second.hold() as is_theirs:
        assert is_theirs


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_any_call_leaks_and_doubles_nothing(tmp_path: Path, seed: int) -> None:
    """Kills before and after each effect on the cloud, and between writes of the book."""
    rng = random.Random(seed)
    world = _World(tmp_path)
    kill = _Killer(rng, 0.12)
    world.cloud.before_call = kill
    save = FleetBook.save

    for _ in range(120):
        world.cloud.now_s += _PERIOD_S
        world.cloud.take_due()
        if world.cloud.serving() and rng.random() < 0.05:
            victim = rng.choice(sorted(world.cloud.serving()))
            world.cloud.take(victim, rng.choice([0.0, 30.0, 120.0]))
        if rng.random() < 0.05:
            world.cloud.room[rng.choice(OFFERS).zone] = rng.choice([0, 1, 5])
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(FleetBook, "save", _killing(save, kill))
                world.controller.step()
        except KilledError:
            world.start()
        assert len(world.cloud.ever) == len(set(world.cloud.ever))
        assert len(world.cloud.paid()) <= 3 + world.settings.most_spare + 3 + 3
    world.cloud.before_call = lambda: None
    world.cloud.room = {ZoneId(offer.zone): 10 for offer in OFFERS}
    world.step(60)
    assert kill.n_kills > 10
    assert len(world.cloud.serving()) >= 3
    assert {entry.id for entry in FleetBook(tmp_path).load().entries} == world.cloud.paid()
    assert len(world.cloud.paid()) <= 3 + world.settings.most_spare


class _Killer:
    def __init__(self, rng: random.Random, chance: float) -> None:
        self._rng = rng
        self._chance = chance
        self.n_kills = 0

    def __call__(self) -> None:
        if self._rng.random() < self._chance:
            self.n_kills += 1
            raise KilledError


def _killing(save: Callable[..., None], kill: _Killer) -> Callable[..., None]:
    def killed(book: FleetBook, content: Any) -> None:
        kill()
        save(book, content)
        kill()

    return killed


def _wait_for(n: int, working: set[NodeId] | None = None) -> Demand:
    return Demand(({"GPU": 1.0},) * n, (), frozenset(working or ()), {"GPU": 1.0})


def test_target_follows_what_waits_and_falls_when_it_has_long_been_idle(tmp_path: Path) -> None:
    world = _World(tmp_path, target=1, most_target=4, idle_s=300.0, most_spare=0)
    world.settle()
    n_at_first = len(world.cloud.serving())
    world.cloud.wanted = _wait_for(2, {NodeId("f-1")})
    assert world.settle().target == 3
    assert len(world.cloud.serving()) >= 3
    world.cloud.wanted = _wait_for(9, world.cloud.serving())
    assert world.settle().target == 4
    busy = max(world.cloud.serving())
    world.cloud.wanted = _wait_for(0, {busy})
    assert world.step(10).target == 4
    assert world.step(200).target == 1
    assert busy in world.cloud.serving()
    assert len(world.cloud.serving()) <= n_at_first
    assert any("target is 1" in line for line in world.told)


def test_next_controller_keeps_the_target_for_a_while(tmp_path: Path) -> None:
    world = _World(tmp_path, target=1, most_target=4, idle_s=300.0, most_spare=1)
    world.cloud.wanted = _wait_for(2)
    world.settle()
    n_nodes = len(world.cloud.paid())
    world.cloud.wanted = _wait_for(0)
    for _ in range(5):
        world.start()
        assert world.step(2).target == 2
    assert len(world.cloud.paid()) == n_nodes


def test_node_that_has_drained_away_unseen_is_taken_and_released_at_once(world: _World) -> None:
    world.settle()
    node = min(world.cloud.serving())
    world.cloud.drained.add(node)
    step = world.step()
    assert any(isinstance(news, Reclaimed) for news in step.happenings)
    assert node not in world.cloud.paid()
