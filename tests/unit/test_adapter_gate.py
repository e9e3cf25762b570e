"""The gate before the core: a cold adapter's request waits alone, and every one ends once."""

import asyncio
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason

from deployments.adapter_gate import AdapterGate
from deployments.echo_adapters import AdapterPace
from deployments.echo_core import EchoCore
from deployments.engine_metrics import AdapterSeries
from serve_app.errors import AdapterRefusedError
from serve_app.messages import AdapterRef, Standing
from serve_app.metrics import Metrics
from serve_app.names import ModelName, TenantId
from serve_app.policy.adapter_tier import Held, choose_victim
from tests.support.adapters import CONFIG, WEIGHTS, write_facts

STALL_S = 0.25
"""What the fake core says that steps waited for each errand."""


class FakeFiles:
    """Brings a folder when the test says so; counts what is held."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_there: dict[int, asyncio.Event] = {}
        self.refused: set[int] = set()
        self.holds: dict[int, int] = {}
        self.n_ensured = 0
        self.on_ensure: dict[int, Callable[[], object]] = {}
        """What happens before so many have been ensured."""
        self.forgotten: list[int] = []
        self.is_closed = False

    async def ensure(self, ref: AdapterRef) -> Path:
        self.n_ensured += 1
        self.on_ensure.get(self.n_ensured, lambda: None)()
        if ref.id in self.is_there:
            await self.is_there[ref.id].wait()
        if ref.id in self.refused:
            raise AdapterRefusedError("it holds a pickle.")
        self.holds[ref.id] = self.holds.get(ref.id, 0) + 1
        return self.folder

    def release(self, ref: AdapterRef) -> None:
        self.holds[ref.id] -= 1

    async def forget(self, ref: AdapterRef) -> None:
        if not self.holds.get(ref.id):
            self.forgotten.append(ref.id)

    async def warm_up(self) -> None:
        self.is_warm = True

    async def close(self) -> None:
        self.is_closed = True


class FakeCore(EchoCore):
    """Takes note; its requests end when the test says so."""

    def __init__(self, capacity: int) -> None:
        self.pace = AdapterPace(slots=capacity, capacity=capacity)
        self.accepted: dict[str, EngineCoreRequest] = {}
        self.aborted: list[str] = []
        self.held: dict[int, str] = {}

    def accept(
        self, request: EngineCoreRequest, standing: Standing, produced: Sequence[int] = ()
    ) -> None:
        lora = request.lora_request
        assert lora is None or lora.lora_int_id in self.held
        self.accepted[request.request_id] = request

    def abort(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for request_id in request_ids:
            self.accepted.pop(request_id, None)

    def counts(self) -> tuple[int, int, float]:
        return len(self.accepted), 0, 0.0

    @property
    def adapter_slots(self) -> int:
        return self.pace.slots

    @property
    def adapter_capacity(self) -> int:
        return self.pace.capacity

    def active_adapters(self) -> set[int]:
        return set()

    def hold_adapter(self, adapter_id: int, path: str) -> Future[float]:
        done: Future[float] = Future()
        if len(self.held) >= self.pace.capacity:
            done.set_exception(RuntimeError("full"))
            return done
        self.held[adapter_id] = path
        done.set_result(STALL_S)
        return done

    def activate_adapter(self, adapter_id: int) -> Future[float]:
        done: Future[float] = Future()
        if adapter_id in self.held:
            done.set_result(STALL_S)
        else:
            done.set_exception(KeyError(adapter_id))
        return done

    def drop_adapter(self, adapter_id: int) -> Future[float]:
        using = [r.lora_request for r in self.accepted.values() if r.lora_request is not None]
        assert adapter_id not in {lora.lora_int_id for lora in using}, "it is in use"
        del self.held[adapter_id]
        done: Future[float] = Future()
        done.set_result(STALL_S)
        return done


class Stand:
    """A gate between a fake store and a fake core."""

    def __init__(
        self, folder: Path, capacity: int = 2, timeout_s: float = 5.0, floor: int = 0
    ) -> None:
        self.outputs: dict[str, EngineCoreOutput] = {}
        self.files = FakeFiles(folder)
        self.core = FakeCore(capacity)
        loop = asyncio.get_running_loop()
        self.metrics = Metrics()
        series = AdapterSeries(ModelName("m"), self.metrics)
        self.gate = AdapterGate(self._take, self.files, loop, floor, timeout_s, series)
        self.gate.attach(self.core)

    def _take(self, client: int, outputs: EngineCoreOutputs) -> None:
        self.outputs |= {output.request_id: output for output in outputs.outputs}

    def send(self, name: str, adapter: int = 0, tenant: str = "a") -> None:
        place = f"file:///adapters/{adapter}#{adapter:064}"
        self.gate.accept(
            EngineCoreRequest(
                request_id=name,
                prompt_token_ids=[5],
                mm_features=None,
                sampling_params=SamplingParams(),
                pooling_params=None,
                arrival_time=0.0,
                lora_request=LoRARequest("m:sql", adapter, place, "m") if adapter else None,
                cache_salt=None,
                data_parallel_rank=None,
            ),
            Standing(TenantId(tenant), 0, 0, 0),
        )

    def end(self, name: str) -> None:
        """The core says a request's last word."""
        del self.core.accepted[name]
        last = EngineCoreOutput(name, [7], finish_reason=FinishReason.STOP)
        self.gate.emit(0, EngineCoreOutputs(outputs=[last]))

    async def until(self, name: str) -> None:
        """Waits until a request has reached the core or its end."""
        for _ in range(500):
            if name in self.core.accepted or name in self.outputs:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{name} is neither in the core nor at its end")


def make_ref(adapter_id: int) -> AdapterRef:
    version = f"{adapter_id:064}"
    source = f"file:///adapters/{adapter_id}"
    return AdapterRef(adapter_id, "m:sql", ModelName("m"), version, source)


async def test_cold_request_waits_alone(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    stand.files.is_there[1] = asyncio.Event()
    stand.send("cold", adapter=1)
    stand.send("warm", adapter=2)
    stand.send("base")
    await stand.until("warm")
    await stand.until("base")
    assert "cold" not in stand.core.accepted
    assert stand.gate.counts()[1] == 1
    stand.files.is_there[1].set()
    await stand.until("cold")
    assert stand.gate.counts()[1] == 0


async def test_one_fetch_serves_all_who_wait(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    for name in ("r1", "r2", "r3"):
        stand.send(name, adapter=1)
    for name in ("r1", "r2", "r3"):
        await stand.until(name)
    assert stand.files.n_ensured == 1


async def test_two_versions_of_one_name_are_told_apart_in_the_core(tmp_path: Path) -> None:
    # vLLM compares LoRA requests by their names alone.
    stand = Stand(tmp_path)
    stand.send("old", adapter=1)
    stand.send("new", adapter=2)
    await stand.until("old")
    await stand.until("new")
    old, new = (stand.core.accepted[name].lora_request for name in ("old", "new"))
    assert old is not None
    assert new is not None
    assert old.lora_name != new.lora_name
    assert old.lora_path == str(tmp_path)


async def test_failure_ends_its_own_requests_and_says_why(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    stand.files.refused.add(1)
    stand.send("bad", adapter=1)
    stand.send("good", adapter=2)
    await stand.until("bad")
    await stand.until("good")
    assert stand.outputs["bad"].finish_reason == FinishReason.ERROR
    reason = str(stand.outputs["bad"].stop_reason)
    assert reason == "The adapter 'm:sql' could not be loaded: it holds a pickle."
    assert stand.gate.report().failures == {1: "it holds a pickle."}
    assert "good" not in stand.outputs


async def test_failure_in_the_core_gives_the_files_back(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    refused: Future[float] = Future()
    refused.set_exception(ValueError("q_proj is for 8 inputs"))
    stand.core.hold_adapter = lambda adapter_id, path: refused  # type: ignore[method-assign]
    stand.send("bad", adapter=1)
    await stand.until("bad")
    assert "not the request's fault" in str(stand.outputs["bad"].stop_reason)
    assert stand.gate.report().failures == {1: "q_proj is for 8 inputs"}
    assert stand.files.holds == {1: 0}


async def test_late_adapter_ends_in_an_error(tmp_path: Path) -> None:
    stand = Stand(tmp_path, timeout_s=0.05)
    stand.files.is_there[1] = asyncio.Event()
    stand.send("late", adapter=1)
    await stand.until("late")
    assert "not loaded within 0.05 s" in str(stand.outputs["late"].stop_reason)
    stand.files.is_there[1].set()


@pytest.mark.parametrize("is_there", [True, False])
async def test_aborted_request_never_runs_on(tmp_path: Path, is_there: bool) -> None:
    stand = Stand(tmp_path)
    stand.files.is_there[1] = asyncio.Event()
    if is_there:
        stand.files.is_there[1].set()
    stand.send("r", adapter=1)
    if is_there:
        await stand.until("r")
    stand.gate.abort(["r"])
    stand.files.is_there[1].set()
    stand.send("next", adapter=1)
    await stand.until("next")
    assert "r" not in stand.core.accepted
    assert "r" not in stand.outputs


async def test_adapter_in_use_stays_until_its_request_ends(tmp_path: Path) -> None:
    stand = Stand(tmp_path, capacity=1)
    stand.send("r1", adapter=1)
    await stand.until("r1")
    stand.send("r2", adapter=2)
    await asyncio.sleep(0.1)
    assert set(stand.core.held) == {1}
    stand.end("r1")
    await stand.until("r2")
    assert set(stand.core.held) == {2}
    assert stand.files.holds == {1: 0, 2: 1}


async def test_tenant_that_waits_for_room_holds_up_nobody_who_has_some(tmp_path: Path) -> None:
    stand = Stand(tmp_path, capacity=3, floor=1)
    for name, adapter, tenant in (("a1", 1, "a"), ("a2", 2, "a"), ("b3", 3, "b")):
        stand.send(name, adapter, tenant)
        await stand.until(name)
    stand.end("b3")
    stand.send("a4", 4, "a")
    await asyncio.sleep(0.05)
    stand.send("b5", 5, "b")
    await stand.until("b5")
    assert set(stand.core.held) == {1, 2, 5}
    stand.end("a1")
    await stand.until("a4")
    assert set(stand.core.held) == {2, 4, 5}


async def test_deleted_adapter_makes_room_for_who_waits(tmp_path: Path) -> None:
    stand = Stand(tmp_path, capacity=2, floor=1)
    for name, adapter, tenant in (("a1", 1, "a"), ("b2", 2, "b")):
        stand.send(name, adapter, tenant)
        await stand.until(name)
    stand.end("b2")
    stand.send("a3", 3, "a")
    await asyncio.sleep(0.05)
    assert set(stand.core.held) == {1, 2}, "the floor keeps it for the other tenant"
    stand.gate.drop([make_ref(2)])
    await stand.until("a3")
    assert set(stand.core.held) == {1, 3}


async def test_request_that_comes_as_its_adapter_is_pushed_out_brings_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = Stand(tmp_path, capacity=1)
    stand.send("before", adapter=1)
    await stand.until("before")
    stand.end("before")
    await asyncio.sleep(0.01)

    def choose(*args: Any) -> Held | None:
        stand.send("just then", adapter=1)
        return choose_victim(*args)

    monkeypatch.setattr("deployments.adapter_tier.choose_victim", choose)
    stand.send("other", adapter=2)
    await stand.until("other")
    monkeypatch.undo()
    assert set(stand.core.accepted) == {"other"}
    stand.end("other")
    await stand.until("just then")
    assert set(stand.core.held) == {1}


async def test_prepared_adapter_is_in_memory_before_a_request(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    stand.gate.prepare(make_ref(1), TenantId("a"))
    for _ in range(100):
        if stand.gate.report().in_memory == [1]:
            break
        await asyncio.sleep(0.01)
    stand.send("r", adapter=1)
    await stand.until("r")
    assert stand.files.n_ensured == 1


@pytest.mark.parametrize("is_mended", [True, False])
async def test_damaged_copy_is_brought_anew_once(tmp_path: Path, is_mended: bool) -> None:
    stand = Stand(tmp_path)
    (tmp_path / CONFIG).write_text("{}")
    (tmp_path / WEIGHTS).write_bytes(b"weights")
    write_facts(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"damaged")
    if is_mended:
        stand.files.on_ensure[2] = lambda: (tmp_path / WEIGHTS).write_bytes(b"weights")
    stand.send("r", adapter=1)
    await stand.until("r")
    assert stand.files.n_ensured == 2
    assert stand.files.forgotten == [1]
    assert stand.files.holds == {1: 1 if is_mended else 0}
    if is_mended:
        assert "r" in stand.core.accepted
    else:
        assert stand.outputs["r"].finish_reason == FinishReason.ERROR
        assert "not the request's fault" in str(stand.outputs["r"].stop_reason)


async def test_loads_are_counted_with_what_steps_waited(tmp_path: Path) -> None:
    stand = Stand(tmp_path, capacity=1)
    for name, adapter in (("r1", 1), ("r2", 2), ("r3", 1)):
        stand.send(name, adapter)
        await stand.until(name)
        stand.end(name)
        await asyncio.sleep(0.01)
    tally = stand.gate.report().tally
    assert (tally.loads, tally.evictions) == (3, 2)
    assert tally.stall_s == 3 * 2 * STALL_S, "holding and activating"


async def test_deleted_adapter_goes_when_its_last_request_ends(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    stand.send("r1", adapter=1)
    await stand.until("r1")
    stand.gate.drop([make_ref(1), make_ref(99)])
    await asyncio.sleep(0.05)
    assert 1 in stand.core.held
    stand.end("r1")
    for _ in range(100):
        if not stand.core.held:
            break
        await asyncio.sleep(0.01)
    assert not stand.core.held
    assert stand.gate.report().in_memory == []
    assert stand.files.holds == {1: 0}
    await asyncio.sleep(0.01)
    assert stand.files.forgotten == [99, 1], "what was never here is on the disk, perhaps"


async def test_closing_ends_what_is_under_way(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    stand.files.is_there[1] = asyncio.Event()
    stand.send("r", adapter=1)
    await asyncio.sleep(0.05)
    await stand.gate.close()
    await asyncio.sleep(0.05)
    assert stand.files.is_closed
    assert stand.core.held == {}
    assert stand.core.accepted == {}


@pytest.mark.parametrize("seed", range(8))
async def test_memory_keeps_its_bounds_and_every_request_ends_once(
    tmp_path: Path, seed: int
) -> None:
    # The core refuses one adapter too many, requests whose adapter is not held, and the loss of
    # one in use; so a request that gets to its end saw none of these.
    rng = random.Random(seed)
    stand = Stand(tmp_path, capacity=3)
    sent, aborted, ended = set(), set(), set()
    for number in range(300):
        match rng.choice(["send", "send", "send", "end", "abort", "drop", "break", "wait"]):
            case "send":
                sent.add(name := f"r{number}")
                stand.send(name, adapter=rng.randint(0, 9), tenant=rng.choice("abc"))
            case "end" if stand.core.accepted:
                ended.add(name := rng.choice(sorted(stand.core.accepted)))
                stand.end(name)
            case "abort" if sent:
                name = rng.choice(sorted(sent))
                if name not in ended and name not in stand.outputs:
                    aborted.add(name)
                    stand.gate.abort([name])
            case "drop":
                stand.gate.drop([make_ref(rng.randint(1, 9))])
            case "break":
                stand.files.refused ^= {rng.randint(1, 9)}
            case _:
                await asyncio.sleep(0.002)
        assert len(stand.core.held) <= 3
    for _ in range(2000):
        for name in list(stand.core.accepted):
            ended.add(name)
            stand.end(name)
        if sent == aborted | ended | stand.outputs.keys():
            break
        await asyncio.sleep(0.005)
    failed = {n for n, o in stand.outputs.items() if o.finish_reason == FinishReason.ERROR}
    assert sent == aborted | ended | failed
    assert not ended & failed
    assert not (ended | failed) & aborted
    await asyncio.sleep(0.1)
    assert stand.gate.counts()[1] == 0
    held = {adapter for adapter, count in stand.files.holds.items() if count}
    assert held == set(stand.core.held), "files are held for what is in memory, and no more"
