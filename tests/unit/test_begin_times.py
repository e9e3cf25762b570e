import pytest
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    FinishReason,
)

from deployments.absences import Absences
from deployments.begin_times import BeginTimes
from serve_app.engine_frames import read_times, write_times
from serve_app.messages import EngineTimes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def begin(name: str, queued_s: float, begun_s: float) -> EngineCoreOutput:
    events = [
        EngineCoreEvent(EngineCoreEventType.QUEUED, queued_s),
        EngineCoreEvent(EngineCoreEventType.SCHEDULED, begun_s),
        EngineCoreEvent(EngineCoreEventType.PREEMPTED, begun_s + 1.0),
        EngineCoreEvent(EngineCoreEventType.SCHEDULED, begun_s + 2.0),
    ]
    return EngineCoreOutput(name, [1], events=events)


def test_times_are_told_once_with_the_first_output() -> None:
    times = BeginTimes(lambda: 10.0)
    times.take("base", has_adapter=False)
    times.take("sql", has_adapter=True)
    step = EngineCoreOutputs(outputs=[begin("base", 11.0, 12.0), begin("sql", 14.0, 15.0)])
    step.timestamp = 20.0
    assert times.read(step) == {
        "base": EngineTimes(0.0, 1.0, 8.0),
        "sql": EngineTimes(4.0, 1.0, 5.0),
    }
    assert times.read(step) == {}


def test_request_that_never_began_has_no_times() -> None:
    times = BeginTimes()
    times.take("bad", has_adapter=False)
    times.take("gone", has_adapter=False)
    times.forget("gone")
    failed = EngineCoreOutput("bad", [], finish_reason=FinishReason.ERROR)
    assert times.read(EngineCoreOutputs(outputs=[failed, begin("gone", 1.0, 2.0)])) == {}


def test_frame_says_what_was_written_and_is_empty_when_nothing_was() -> None:
    times = {"a": EngineTimes(1.0, 2.0, 3.0)}
    assert read_times(write_times(times)) == times
    assert write_times({}) == b""
    assert read_times(b"") == {}


def test_adapter_is_waited_for_from_the_turn_on_by_all_that_want_it() -> None:
    absences = Absences()
    absences.begin(7, 10.0)
    absences.begin(7, 11.0)  # The same absence, seen again.
    absences.end(7, 14.0)
    assert absences.overlap_s(7, 5.0, 20.0) == 4.0
    assert absences.overlap_s(7, 12.0, 20.0) == 2.0
    assert absences.overlap_s(7, 15.0, 20.0) == 0.0
    assert absences.overlap_s(8, 0.0, 20.0) == 0.0
    absences.begin(7, 30.0)
    assert absences.overlap_s(7, 5.0, 31.0) == 1.0
