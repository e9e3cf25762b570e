import io
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.local_ray import Ports, RayStartError, ensure_token, ray_environment, ray_start_command
from cluster.local_state import (
    MARK,
    LocalState,
    StateError,
    find_processes,
    load_state,
    private_folder,
    stop_processes,
)
from cluster.local_watch import Watch, describe_first_key, describe_use, read_ready, read_serve

PORTS = Ports(1, 2, 3, 4, 5, 6, 7, 8, 9)
STATE = LocalState("mark", "/tmp/x", "http://127.0.0.1:1", "http://127.0.0.1:2", "a", "c.yaml")
STAND_IN = Path(__file__).parents[2] / "cluster" / "haproxy_on_loopback.sh"


def test_state_survives_saving(tmp_path: Path) -> None:
    STATE.save(tmp_path / "s.json")
    assert load_state(tmp_path / "s.json") == STATE


@pytest.mark.parametrize("content", ["", "{", "[]", '{"mark": "x"}', '{"pids": [1]}'])
def test_state_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "s.json").write_text(content)
    assert load_state(tmp_path / "s.json") is None


def test_processes_are_found_by_mark_and_descent_and_no_others_are_stopped() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    parent = [
        sys.executable,
        "-c",
        f"import subprocess; subprocess.run({sleep!r}, env={{}})",  # the child loses the mark
    ]
    other = subprocess.Popen(sleep)
    ours = subprocess.Popen(parent, env={**os.environ, MARK: "test-of-mark"})
    try:
        while len(psutil.Process(ours.pid).children()) == 0:
            pass
        assert {process.pid for process in find_processes("test-of-mark")} >= {ours.pid}
        assert stop_processes("test-of-mark") == 2
        assert other.poll() is None
        assert find_processes("test-of-mark") == []
    finally:
        other.kill()
        other.wait()
        ours.wait()


def test_private_folder_is_short_and_ours_alone(tmp_path: Path) -> None:
    folder = private_folder(tmp_path)
    try:
        assert private_folder(tmp_path) == folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        # Serve: /h/ + node id + /a, and HAProxy's temporary suffix. A socket's path has 107 bytes.
        assert len(f"{folder}/h/{'0' * 56}/a.{2**22}.tmp") <= 107
        # Ray: its session and the longest socket's name.
        assert (
            len(f"{folder}/r/session_2026-01-01_00-00-00_000000_{2**22}/sockets/plasma_store") < 107
        )
    finally:
        folder.rmdir()


def test_private_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = private_folder(tmp_path)
    folder.rmdir()
    folder.symlink_to(tmp_path)
    try:
        with pytest.raises((StateError, FileExistsError)):
            private_folder(tmp_path)
    finally:
        folder.unlink()


def test_ray_environment_keeps_authentication_on_and_forgets_other_clusters() -> None:
    user = {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "elsewhere:6379", "HOME": "/home/x"}
    found = ray_environment(user, PORTS, Path("/tmp/x"), "m", "/bin/haproxy")
    assert found["RAY_AUTH_MODE"] == "token"
    assert "RAY_ADDRESS" not in found
    assert found["HOME"] == "/home/x"
    assert found[MARK] == "m"


def test_ray_starts_on_loopback_only() -> None:
    command = ray_start_command(PORTS, Path("/tmp/x"))
    assert "--node-ip-address=127.0.0.1" in command
    assert "--dashboard-host=127.0.0.1" in command


def test_token_is_made_private_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "token"
    environ = {"RAY_AUTH_TOKEN_PATH": str(file)}
    token = ensure_token(environ)
    assert len(token) == 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    assert ensure_token(environ) == token
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_token_that_cannot_be_made_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RayStartError, match="token"):
        ensure_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "file" / "token")})


def _app(status: str, message: str = "", **deployments: Mapping[str, str]) -> dict[str, Any]:
    app = {"status": status, "message": message, "deployments": deployments}
    return {"applications": {"arriero": app}}


def test_serve_is_ready_when_the_application_runs() -> None:
    progress = read_serve(_app("RUNNING", gateway={"status": "HEALTHY"}), "arriero")
    assert progress.ready
    assert progress.parts == {"gateway": "running"}


def test_deployment_without_room_says_what_it_asks_for_and_what_to_do() -> None:
    message = (
        "Deployment 'gateway' in application 'arriero' has 1 replicas that have taken more than "
        '30s to be scheduled. Resources required for each replica: {"CPU": 1.0}, total resources '
        'available: {"CPU": 0.8}. Use `ray status` for more details.'
    )
    app = _app("DEPLOYING", gateway={"status": "UPDATING", "message": message})
    progress = read_serve(app, "arriero")
    assert not progress.failure
    said = progress.parts["gateway"]
    assert 'asks Ray for {"CPU": 1.0}, and {"CPU": 0.8} is left' in said
    assert "Lower `cpus`" in said


def test_serve_is_not_ready_before_it_knows_the_application() -> None:
    progress = read_serve({}, "arriero")
    assert not progress.ready
    assert not progress.failure


@pytest.mark.parametrize(
    ("details", "words"),
    [
        (_app("DEPLOY_FAILED", "models[0].name: wrong"), "models[0].name: wrong"),
        (_app("DEPLOYING", engine={"status": "DEPLOY_FAILED", "message": "boom"}), "engine: boom"),
        (
            _app("DEPLOYING", engine={"status": "UPDATING", "message": "failed to start 1 times"}),
            "engine: failed to start",
        ),
    ],
)
def test_serve_failure_is_reported_at_once(details: dict[str, Any], words: str) -> None:
    assert words in read_serve(details, "arriero").failure


def test_ready_answer_is_put_into_words() -> None:
    models = {
        "a": {"ready": True, "state": "ready", "detail": ""},
        "b": {"ready": False, "state": "loading", "detail": "loading the weights"},
    }
    progress = read_ready({"ready": False, "models": models})
    assert not progress.ready
    assert progress.parts == {"model a": "ready", "model b": "loading (loading the weights)"}


def test_ready_answer_of_a_failed_model_is_a_failure() -> None:
    models = {"a": {"ready": False, "state": "failed", "detail": "no such file"}}
    assert read_ready({"ready": False, "models": models}).failure == "model a: no such file"


def test_watch_says_each_change_once() -> None:
    out = io.StringIO()
    watch = Watch(out)
    watch.say_changes({"a": "starting"})
    watch.say_changes({"a": "starting"})
    watch.say_changes({"a": "running"})
    assert [line.split("] ")[1] for line in out.getvalue().splitlines()] == [
        "a: starting",
        "a: running",
    ]


def test_who_needs_a_key_is_told_how_to_make_one_in_this_platforms_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = describe_first_key("http://127.0.0.1:1", str(tmp_path / "my keys.yaml"), Path("state"))
    [command] = [line for line in text.splitlines() if "--bootstrap" in line]
    said = "printf '%s\n' $ARRIERO_STATE_DIR "
    shown = subprocess.run(
        ["/bin/sh", "-c", command.replace(" /", f" ; {said}/", 1)], capture_output=True, text=True
    ).stdout.splitlines()
    assert shown[0] == "state"
    assert shown[-1] == "my keys.yaml"


def test_description_has_a_command_that_a_shell_takes() -> None:
    text = describe_use("http://127.0.0.1:1", "m", "Paris.")
    curl = next(line for line in text.splitlines() if line.strip().startswith("curl"))
    words = subprocess.run(
        ["/bin/sh", "-c", curl.replace("curl", "printf '%s\\n'", 1)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert words[0] == "http://127.0.0.1:1/v1/chat/completions"
    assert words[-1].startswith('{"model": "m"')


def test_haproxy_stand_in_moves_open_listeners_to_loopback_only(tmp_path: Path) -> None:
    config = tmp_path / "c"
    config.write_text(
        "    bind :9101\n  bind *:8404\n    bind 127.0.0.1:8000\n    bind 10.0.0.1:5\n"
    )
    environ = {**os.environ, "ARRIERO_HAPROXY": "/bin/echo"}
    command = [str(STAND_IN), "-db", "-f", str(config), "-sf", "12"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["-db", "-f", str(config), "-sf", "12"]
    assert config.read_text().split() == [
        *("bind", "127.0.0.1:9101"),
        *("bind", "127.0.0.1:8404"),
        *("bind", "127.0.0.1:8000"),
        *("bind", "10.0.0.1:5"),
    ]


def test_port_is_not_free_while_somebody_listens() -> None:
    from cluster.machine import choose_free_port, is_port_free

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_port_free("127.0.0.1", port)
        assert choose_free_port("127.0.0.1", port, port) is None


def test_memory_heeds_the_limit_of_the_container(tmp_path: Path) -> None:
    from cluster.machine import observe_available_memory_bytes

    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   1000 kB\n")
    assert observe_available_memory_bytes(tmp_path, tmp_path) == 1000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert observe_available_memory_bytes(tmp_path, tmp_path) == 1000 * 1024
    (tmp_path / "memory.max").write_text("1005\n")
    assert observe_available_memory_bytes(tmp_path, tmp_path) == 1000


def test_stand_in_takes_splicing_of_requests_out_and_nothing_else(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    kept = "defaults\n    option abortonclose\n    option splice-response\n"
    config.write_text(kept + "    option splice-request\n")
    environ = {**os.environ, "ARRIERO_HAPROXY": shutil.which("true") or "true"}
    subprocess.run([str(STAND_IN), "-f", str(config)], env=environ, check=True)
    assert config.read_text() == kept
