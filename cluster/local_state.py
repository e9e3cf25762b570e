"""What `up` started on this machine, and how to find and stop exactly that.

Every process that `up` starts inherits a mark in its environment, a random word that is also in the
state file. A process belongs to us when it has the mark or descends from one that has: so a process
id that the system has given to somebody else is never taken for ours, and no name is ever matched.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

MARK = "ARRIERO_SESSION"
_GRACE_S = 3.0


class StateError(Exception):
    """The state on disk cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class LocalState:
    """One platform on this machine, from before its first process starts."""

    mark: str
    folder: str
    """Short, private folder for Ray's and HAProxy's files and sockets."""
    url: str
    """Where the platform answers."""
    dashboard_url: str
    ray_address: str
    config: str
    """The deployed config file."""
    config_digest: str = ""
    """Digest of the config file that was deployed last; empty before the first deployment."""
    app_name: str = ""
    model: str = ""
    """The config's first model, which is asked the first question."""
    needs_key: bool = False

    def save(self, file: Path) -> None:
        """Write the state; a reader sees the old or the new one."""
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n")
        partial.replace(file)


def load_state(file: Path) -> LocalState | None:
    """Return the saved state, or None when nothing was started, or the file is not readable."""
    try:
        return LocalState(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def new_mark() -> str:
    """Return a word that no other process has in its environment."""
    return secrets.token_hex(16)


def private_folder(state_file: Path) -> Path:
    """Return one platform's own folder for sockets, making it when it is missing.

    Its path is short, as a socket's path may have 107 bytes and Ray and Serve append up to 80.

    Raises:
        StateError: The folder is somebody else's.
    """
    key = hashlib.sha256(f"{getpass.getuser()}\0{state_file}".encode()).hexdigest()[:8]
    # Not $TMPDIR, which may be long (macOS, batch systems).
    base = Path("/tmp") if os.access("/tmp", os.W_OK) else Path(tempfile.gettempdir())  # noqa: S108 - see below
    folder = base / f"arr-{os.getuid()}-{key}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise StateError(f"{folder} belongs to another user; remove it and run the command again.")
    folder.chmod(0o700)
    return folder


def find_processes(mark: str) -> list[psutil.Process]:
    """Return the processes that carry the mark, and all that descend from them."""
    marked = [process for process in psutil.process_iter() if _has_mark(process, mark)]
    found = {process.pid: process for process in marked}
    for process in marked:
        try:
            found.update({child.pid: child for child in process.children(recursive=True)})
        except psutil.Error:
            continue
    found.pop(os.getpid(), None)
    return list(found.values())


def stop_processes(mark: str) -> int:
    """Stop every process with the mark, the unwilling ones by force; return how many there were.

    Raises:
        StateError: A process would not end.
    """
    # Ray's processes react to each other's end; terminating all at once keeps it quiet and quick.
    stopped: dict[int, psutil.Process] = {}
    for signal_name, grace_s in (("terminate", _GRACE_S), ("kill", 5.0), ("kill", 5.0)):
        processes = find_processes(mark)
        stopped.update({process.pid: process for process in processes})
        alive = [process for process in stopped.values() if process.is_running()]
        _signal(alive, signal_name)
        psutil.wait_procs(alive, timeout=grace_s)
        if not find_processes(mark):
            return len(stopped)
    left = ", ".join(str(process.pid) for process in find_processes(mark))
    raise StateError(f"These processes do not end: {left}. Look at them with `ps`; then try again.")


def _signal(processes: Sequence[psutil.Process], name: str) -> None:
    for process in processes:
        try:
            getattr(process, name)()  # psutil checks that the id is still the same process
        except psutil.Error:
            continue


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False
