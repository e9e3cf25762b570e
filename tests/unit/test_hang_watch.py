from deployments.hang_watch import HangWatch


def look(
    watch: HangWatch, since_s: int, until_s: int, last_step_s: float, *, is_busy: bool = True
) -> list[int]:
    """Looks each second; returns when the core was said to have hung."""
    return [
        now
        for now in range(since_s, until_s)
        if watch.has_hung(float(now), last_step_s, is_busy=is_busy)
    ]


def test_core_that_steps_has_not_hung() -> None:
    watch = HangWatch(10.0)
    assert not any(watch.has_hung(now, now - 9.0, is_busy=True) for now in range(100))


def test_core_that_is_idle_has_not_hung_however_long() -> None:
    assert look(HangWatch(10.0), 0, 100, 0.0, is_busy=False) == []


def test_idle_time_does_not_count_when_work_comes() -> None:
    watch = HangWatch(10.0)
    assert look(watch, 50, 101, 0.0, is_busy=False) == []
    assert look(watch, 101, 113, 0.0) == [111, 112]


def test_core_that_is_busy_when_first_seen_gets_its_time() -> None:
    assert look(HangWatch(10.0), 100, 112, 0.0) == [111]


def test_time_in_which_the_process_stood_still_does_not_count() -> None:
    watch = HangWatch(10.0)
    assert look(watch, 100, 105, 100.0) == []
    # It was stopped, or its machine was: by now it may be about to step.
    assert look(watch, 900, 911, 100.0) == []
    assert look(watch, 911, 912, 100.0) == [911]
