import pytest

from deployments.demand import DemandMeter
from deployments.ticket import Ticket
from serve_app.messages import EngineId
from serve_app.names import ModelName, TenantId
from serve_app.policy.fairness_options import Cost
from serve_app.policy.routing import EngineView
from serve_app.policy.scaling import Look

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def ticket(since_s: float, engine: str | None = None) -> Ticket:
    engine_id = None if engine is None else EngineId(engine)
    made = Ticket(b"g", TenantId("a"), engine_id, since_s, ModelName("tiny"))
    made.prompt_tokens, made.max_tokens = 100, 50
    return made


def view(in_flight: int) -> EngineView:
    return EngineView(EngineId("e"), is_ready=True, in_flight=in_flight, room=4)


def look(meter: DemandMeter, now_s: float, *tickets: Ticket) -> Look:
    return meter.look(now_s, tickets, [], start_s=0.0)


def test_work_is_prompts_and_what_answers_are_expected_to_have() -> None:
    meter = DemandMeter(Cost(), 2.0)
    meter.note_arrival(ticket(0.0))
    assert look(meter, 0.0).arrived == 100 + 2 * 50
    meter.note_end(10)
    meter.note_arrival(ticket(0.0))
    found = look(meter, 1.0, ticket(0.0), ticket(0.0, "e1"))
    assert (found.arrived, found.waiting, found.n_requests) == (120, 120, 2)
    assert look(meter, 2.0).arrived == 0


def test_prompt_is_done_with_the_first_token() -> None:
    meter, running = DemandMeter(Cost(), 2.0), ticket(0.0, "e1")
    meter.note_tokens(running, 1, 1.0)
    running.completion_tokens = 1
    meter.note_tokens(running, 3, 2.0)
    found = look(meter, 2.0, running)
    assert (found.done, found.n_first_tokens, found.n_late) == (108, 1, 0)


def test_engine_is_as_full_as_its_batch_or_its_cache() -> None:
    meter = DemandMeter(Cost(), 2.0)
    engines = [(view(1), 0.5), (view(3), 0.5), (view(9), 0.5)]
    assert meter.look(0.0, [], engines, 0.0).fill == 0.5 + 0.75 + 1.0


def test_late_is_who_has_a_token_too_late_or_none_yet() -> None:
    meter = DemandMeter(Cost(), 2.0)
    meter.note_tokens(ticket(0.0, "e1"), 1, 3.0)
    assert look(meter, 3.0, ticket(0.0), ticket(0.0)).n_late == 2


def test_sleep_makes_nobody_late() -> None:
    meter = DemandMeter(Cost(), 2.0)
    meter.awake_since_s = 30.0
    meter.note_tokens(ticket(0.0, "e1"), 1, 31.0)
    assert look(meter, 31.0, ticket(0.0)).n_late == 0
    meter.note_tokens(ticket(0.0, "e1"), 1, 33.0)
    assert look(meter, 33.0, ticket(0.0)).n_late == 2
