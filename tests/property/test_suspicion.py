from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.suspicion import Record, is_suspect, may_go_on

MOST = st.integers(1, 6)
EVENTS = st.lists(st.sampled_from(["death", "absent", "token"]), max_size=60)


def live(events: list[str], max_strikes: int, max_losses: int) -> list[Record]:
    """What a request goes through until it is stopped; the last record may be its end."""
    records = [Record()]
    for event in events:
        if event == "token":
            records.append(records[-1].with_token())
            continue
        records.append(records[-1].with_death(was_there=event == "death"))
        if not may_go_on(records[-1], max_strikes, max_losses):
            break
    return records


@given(EVENTS, MOST, MOST)
def test_strikes_out_in_time(events: list[str], max_strikes: int, max_losses: int) -> None:
    records = live(events, max_strikes, max_losses)
    deaths = sum(b.losses > a.losses for a, b in pairwise(records))
    assert deaths <= max_losses
    assert all(record.strikes <= max_strikes for record in records)
    for record in records[:-1]:
        assert may_go_on(record, max_strikes, max_losses)


@given(st.integers(0, 40), st.integers(2, 6), MOST)
def test_bystander_goes_on(n_deaths: int, max_strikes: int, max_losses: int) -> None:
    events = ["death", "token"] * n_deaths
    assert live(events, max_strikes, max_losses)[-1].losses == min(n_deaths, max_losses)


@given(EVENTS, st.integers(2, 6))
def test_last_try_is_alone(events: list[str], max_strikes: int) -> None:
    records = live(events, max_strikes, 1000)
    if records[-1].strikes >= max_strikes:
        assert is_suspect(records[-2].strikes, max_strikes)
    assert not is_suspect(0, max_strikes)


@given(EVENTS, MOST)
def test_absent_is_no_suspect(events: list[str], max_strikes: int) -> None:
    present = [event for event in events if event != "absent"]
    with_absent = live(events, max_strikes, 1000)[-1]
    assert with_absent.strikes == live(present, max_strikes, 1000)[-1].strikes
    assert live(["absent"] * 7, max_strikes, 1000)[-1] == Record(strikes=0, losses=7)
