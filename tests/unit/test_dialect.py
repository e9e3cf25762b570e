"""Requests run only on engines that understand their tokens."""

import msgspec
import pytest

from deployments.router import Router
from serve_app.config import Settings, parse_settings
from serve_app.config_model import ModelSettings
from serve_app.dialect import dialect_of, dialect_of_model, make_config_id
from serve_app.messages import (
    EngineGone,
    EngineId,
    EngineState,
    Grant,
    ModelStatus,
    Refuse,
    Requeue,
    Resume,
    RunningTicket,
)
from serve_app.names import ModelName
from serve_app.policy.breaker import MOST
from tests.support.router_post import FakeClock, FakeKeeper, FakeMailbox, enqueue, report
from tests.support.settings import write_args, write_model, write_vllm_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

A, ENGINE = b"gateway-a", b"engine-1"
TINY = ModelName("tiny")


def dialect(**args: object) -> str:
    return dialect_of_model(ModelSettings.model_validate(write_vllm_model(args)))


def test_how_an_engine_works_is_not_its_dialect() -> None:
    assert dialect(max_num_seqs=4) == dialect(enforce_eager=True) == dialect()


def test_what_tokens_mean_is_an_engines_dialect() -> None:
    other = write_vllm_model({}, source={"kind": "local", "path": "/models/other"})
    dialects = {dialect(), dialect(tokenizer="other"), dialect(max_model_len=100)}
    assert len({*dialects, dialect_of_model(ModelSettings.model_validate(other))}) == 4


def test_dialect_is_read_from_the_id_of_a_front_end() -> None:
    assert dialect_of(make_config_id("abc", "123")) == "abc"
    assert dialect_of("") == ""


class Desk:
    """A router between a gateway and engines of two dialects."""

    def __init__(self) -> None:
        self.clock, self.keeper = FakeClock(), FakeKeeper()
        self.start()
        self.router.handle(A, Resume(model=TINY))

    def start(self) -> None:
        self.post = FakeMailbox()
        settings = parse_settings(write_args(write_model()))
        self.router = Router(TINY, settings, self.post, self.clock, self.keeper)

    def report(self, engine: str, spoken: str, state: EngineState = "ready") -> None:
        config_id = make_config_id(spoken, engine)
        said = report(engine, state, model=TINY)
        self.router.handle(ENGINE, msgspec.structs.replace(said, config_id=config_id))

    def newest(self) -> str:
        """Which front end gateways are told to have."""
        mail = self.post.take(A)
        return next(m.config_id for m in reversed(mail) if isinstance(m, ModelStatus))

    def enqueue(self, ticket: str, spoken: str) -> None:
        self.router.handle(A, msgspec.structs.replace(enqueue(ticket), dialect=spoken))

    def mail(self) -> dict[str, str]:
        mail = self.post.take(A)
        granted = {str(m.ticket): str(m.engine_id) for m in mail if isinstance(m, Grant)}
        return granted | {str(m.ticket): m.kind for m in mail if isinstance(m, Refuse)}


def test_request_goes_to_an_engine_that_understands_it() -> None:
    desk = Desk()
    desk.report("old", "a")
    desk.report("new", "b")
    for i in range(2):
        desk.enqueue(f"a{i}", "a")
        desk.enqueue(f"b{i}", "b")
    assert desk.mail() == {"a0": "old", "a1": "old", "b0": "new", "b1": "new"}


def test_one_that_waits_for_another_dialect_is_passed_by() -> None:
    desk = Desk()
    desk.report("new", "b")
    desk.enqueue("a0", "a")
    desk.enqueue("b0", "b")
    assert desk.mail() == {"b0": "new"}


def test_engine_that_drains_takes_what_its_successors_do_not_understand() -> None:
    desk = Desk()
    desk.report("old", "a", "draining")
    desk.enqueue("a0", "a")
    assert desk.mail() == {}
    desk.report("new", "b")
    assert desk.mail() == {"a0": "old"}


def test_engine_that_drains_takes_nothing_that_others_understand() -> None:
    desk = Desk()
    desk.report("old", "a", "draining")
    desk.report("new", "a")
    desk.enqueue("a0", "a")
    assert desk.mail() == {"a0": "new"}


def test_engine_that_keeps_failing_is_not_skipped_for_one_of_another_dialect() -> None:
    desk = Desk()
    desk.report("old", "a")
    desk.report("new", "b")
    desk.enqueue("a0", "a")
    for _ in range(MOST + 1):
        assert desk.mail() == {"a0": "old"}
        run = RunningTicket(msgspec.structs.replace(enqueue("a0"), dialect="a"), None, 0)
        desk.router.handle(A, Requeue(run, EngineId("old")))


def test_request_that_no_engine_understands_any_more_is_refused() -> None:
    desk = Desk()
    desk.report("new", "b")
    desk.report("old", "a", "draining")
    desk.router.handle(ENGINE, EngineGone(EngineId("old")))
    desk.enqueue("a0", "a")
    for _ in range(7):
        desk.clock.pass_s(1.0)
        desk.report("new", "b")
        desk.router.look_around()
    assert desk.mail() == {"a0": "outdated"}


def test_gateways_read_for_the_newest_engine_that_serves() -> None:
    desk = Desk()
    desk.report("old", "a")
    desk.report("new", "b")
    assert desk.newest() == make_config_id("b", "new")
    desk.report("new", "b", "failed")
    assert desk.newest() == make_config_id("a", "old")


def test_next_router_knows_the_dialect_of_what_runs() -> None:
    desk = Desk()
    desk.report("old", "a")
    desk.enqueue("a0", "a")
    assert desk.mail() == {"a0": "old"}
    desk.keeper.save(msgspec.msgpack.encode(desk.router.state()))
    desk.start()
    read = msgspec.structs.replace(enqueue("a0"), dialect="a")
    desk.router.handle(A, Resume([], [RunningTicket(read, EngineId("old"), 1)], model=TINY))
    desk.report("new", "b")
    desk.router.handle(A, Requeue(RunningTicket(read, None, 1), EngineId("old")))
    assert desk.mail() == {}
    desk.report("old-too", "a")
    assert desk.mail() == {"a0": "old-too"}


def without_tiny() -> Settings:
    return parse_settings(write_args(write_model("other", domain=TINY)))


def test_engine_of_a_model_that_is_served_no_more_takes_what_still_comes() -> None:
    desk = Desk()
    desk.report("old", "a", "draining")
    desk.enqueue("a0", "a")
    assert desk.mail() == {}
    desk.router.configure(without_tiny())
    assert desk.mail() == {"a0": "old"}


def test_request_for_a_model_that_is_served_no_more_is_refused() -> None:
    desk = Desk()
    desk.enqueue("a0", "a")
    desk.router.configure(without_tiny())
    desk.clock.pass_s(6.0)
    desk.router.look_around()
    assert desk.mail() == {"a0": "outdated"}
