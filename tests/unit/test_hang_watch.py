from deployments.hang_watch import HangWatch


def test_core_that_steps_has_not_hung() -> None:
    watch = HangWatch(10.0)
    assert not any(watch.has_hung(now, now - 9.0, is_busy=True) for now in range(100))


def test_core_that_is_idle_has_not_hung_however_long() -> None:
    watch = HangWatch(10.0)
    assert not any(watch.has_hung(now, 0.0, is_busy=False) for now in range(100))


def test_idle_time_does_not_count_when_work_comes() -> None:
    watch = HangWatch(10.0)
    assert not watch.has_hung(100.0, 0.0, is_busy=False)
    assert not watch.has_hung(110.0, 0.0, is_busy=True)
    assert watch.has_hung(110.1, 0.0, is_busy=True)


def test_core_that_is_busy_when_first_seen_gets_its_time() -> None:
    watch = HangWatch(10.0)
    assert not watch.has_hung(100.0, 0.0, is_busy=True)
    assert watch.has_hung(111.0, 0.0, is_busy=True)
