"""A node's cache of adapters: its bound, its locks, and what a death leaves of it."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.adapter_cache import AdapterCache, Hold
from serve_app.errors import AdapterAwayError, AdapterRefusedError

MAX_BYTES = 1000


def publish(cache: AdapterCache, key: str, n_bytes: int) -> None:
    cache.publish(key, b"{}", b"{}", n_bytes, [b"x" * n_bytes])


def whole(folder: Path) -> list[str]:
    """Adapters that can be seen; each must have all its files at their full length."""
    keys = sorted(os.listdir(folder / "ready"))
    for key in keys:
        sizes = {p.name: p.stat().st_size for p in (folder / "ready" / key).iterdir()}
        assert sizes == {
            "adapter_config.json": 2,
            "import.json": 2,
            "adapter_model.safetensors": int(key.partition("-")[2]),
        }
    return keys


steps = st.lists(
    st.tuples(
        st.sampled_from(["publish", "hold", "release", "discard"]),
        st.integers(0, 7),
        st.sampled_from([1, 200, 300, 450, 990]),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=60)
@given(steps)
def test_bound_is_kept_and_what_is_held_stays(steps: list[tuple[str, int, int]]) -> None:
    folder = Path(tempfile.mkdtemp())
    # Two objects on one folder, as two processes have it.
    caches = [AdapterCache(folder, MAX_BYTES) for _ in range(2)]
    held: list[tuple[str, Hold]] = []
    try:
        for what, i, n_bytes in steps:
            cache, key = caches[i % 2], f"{i}-{n_bytes}"
            if what == "publish":
                try:
                    publish(cache, key, n_bytes)
                    assert key in whole(folder)
                except AdapterAwayError:
                    assert held
            elif what == "hold":
                hold = cache.hold(key)
                assert (hold is not None) == (key in whole(folder))
                held += [(key, hold)] if hold is not None else []
            elif what == "release" and held:
                held.pop(i % len(held))[1].release()
            elif what == "discard":
                assert cache.discard(key) <= (key not in {name for name, _ in held})
            assert cache.n_bytes() <= MAX_BYTES
            assert {name for name, _ in held} <= set(whole(folder))
            assert os.listdir(folder / "staging") == []
    finally:
        for _, hold in held:
            hold.release()
        shutil.rmtree(folder)


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterAwayError, match=r"adapters.cache.path.*Not a directory"):
        AdapterCache(tmp_path / "file/cache", MAX_BYTES)


def test_longest_unused_goes_first(tmp_path: Path) -> None:
    cache = AdapterCache(tmp_path, MAX_BYTES)
    for name in "abc":
        publish(cache, f"{name}-300", 300)
        os.utime(tmp_path / "ready" / f"{name}-300", ns=(0, ord(name)))
    hold = cache.hold("a-300")
    assert hold is not None
    hold.release()  # Used just now.
    publish(cache, "d-300", 300)
    assert whole(tmp_path) == ["a-300", "c-300", "d-300"]


def test_what_is_larger_than_everything_removes_nothing(tmp_path: Path) -> None:
    cache = AdapterCache(tmp_path, MAX_BYTES)
    publish(cache, "a-300", 300)
    with pytest.raises(AdapterRefusedError, match=r"whole cache.*may take 1000"):
        publish(cache, "b-2000", 2000)
    assert whole(tmp_path) == ["a-300"]


def test_what_is_put_down_before_it_is_read_takes_room_like_an_adapter(tmp_path: Path) -> None:
    cache = AdapterCache(tmp_path, MAX_BYTES)
    publish(cache, "a-600", 600)
    held = cache.hold("a-600")
    assert held is not None
    with cache.scratch() as scratch:
        with pytest.raises(AdapterAwayError, match="full of adapters in use"):
            scratch(500)
        held.release()
        assert scratch(500).is_dir()
        assert whole(tmp_path) == []
        with pytest.raises(AdapterAwayError, match="full of adapters in use"):
            publish(cache, "b-600", 600)
    assert cache.n_bytes() == 0
    publish(cache, "b-600", 600)
    assert os.listdir(tmp_path / "staging") == []


def test_full_disk_is_said_clearly_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = AdapterCache(tmp_path, MAX_BYTES)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(AdapterAwayError, match=r"disk .* is full"):
            publish(cache, "a-300", 300)
    assert os.listdir(tmp_path / "staging") == whole(tmp_path) == []
    publish(cache, "a-300", 300)


def test_weights_that_turn_out_bad_leave_nothing(tmp_path: Path) -> None:
    cache = AdapterCache(tmp_path, MAX_BYTES)

    def parts() -> Iterable[bytes]:
        yield b"x"
        raise AdapterRefusedError("not finite")

    with pytest.raises(AdapterRefusedError, match="not finite"):
        cache.publish("a-300", b"{}", b"{}", 300, parts())
    assert os.listdir(tmp_path / "staging") == whole(tmp_path) == []


_DIE = """
import os, pathlib, shutil, signal, sys
from deployments.adapter_cache import AdapterCache
left = int(sys.argv[2])
def mortal(work):
    def do(*args, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*args, **options)
    return do
cache = AdapterCache(pathlib.Path(sys.argv[1]), 1000)
for where, names in (
    (os, "open close posix_fallocate utime"),
    (pathlib.Path, "rename mkdir unlink open write_text"),
    (shutil, "rmtree"),
):
    for name in names.split():
        setattr(where, name, mortal(getattr(where, name)))
cache.publish("b-600", b"{}", b"{}", 600, [b"x" * 300, b"x" * 300])
print("done")
"""


@pytest.mark.slow
def test_death_at_any_point_leaves_nothing_half_made(tmp_path: Path) -> None:
    for at in range(1, 200):
        cache = AdapterCache(tmp_path, MAX_BYTES)
        publish(cache, "a-600", 600)  # It has to go for the other to come.
        command = [sys.executable, "-c", _DIE, str(tmp_path), str(at)]
        result = subprocess.run(command, capture_output=True, timeout=30, cwd=Path.cwd())
        seen = whole(tmp_path)
        assert seen in ([], ["a-600"], ["b-600"]), (at, seen)
        publish(cache, "c-900", 900)  # Whatever was left is in nobody's way.
        assert whole(tmp_path) == ["c-900"]
        assert os.listdir(tmp_path / "staging") == []
        if result.returncode == 0:
            assert at > 20
            return
        assert result.returncode == -9, result.stderr.decode()
    raise AssertionError("it never got to the end")
