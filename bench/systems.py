"""What every measured system has: a way to start and to end it, and to see that it answers.

`bench.bare_vllm`, `bench.arriero_system` and `bench.peer_systems` are the systems.
"""

import http.client
import json
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any, Protocol

from bench.processes import ProcessGroup

MODEL_NAME = "smollm2-135m"
ENGINE_ARGS: dict[str, Any] = {
    "dtype": "bfloat16",
    "max_model_len": 4096,
    "max_num_seqs": 32,
    "enforce_eager": True,
}
KV_CACHE_GIB = 1
VLLM_ENV = {"VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB), "VLLM_NO_USAGE_STATS": "1"}
READY_S = 300.0
PROBE_S = 10.0
_POLL_S = 1.0


class NotRunningError(RuntimeError):
    """A measured system could not be started or has died; the text has the end of its log."""


class System(Protocol):
    """One measured server."""

    name: str
    base_url: str
    processes: ProcessGroup

    def start(self) -> None:
        """Starts it; does not wait."""

    def is_ready(self) -> bool:
        """Whether it would answer a request."""

    def log_tail(self) -> str:
        """The end of what it has written."""

    def stop(self) -> None:
        """Ends all of it and removes its files."""


def wait_ready(system: System) -> float:
    """Returns after how many seconds a system was ready.

    Raises:
        NotRunningError: It ended or took too long.
    """
    started_s = time.monotonic()
    while not system.is_ready():
        waited_s = time.monotonic() - started_s
        code = system.processes.failure_code
        if code is not None or waited_s > READY_S:
            what = (
                f"ended with code {code}" if code is not None else f"not ready in {waited_s:.0f} s"
            )
            raise NotRunningError(f"{system.name}: {what}.\n{system.log_tail()}")
        time.sleep(_POLL_S)
    return time.monotonic() - started_s


def free_ports(n: int) -> list[int]:
    """Returns ports of the loopback interface that are free now and differ from each other."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def has_answer(
    base_url: str,
    path: str = "/v1/completions",
    key: str = "bench",
    model: str = MODEL_NAME,
) -> bool:
    """Whether a server completes a short prompt by one token. Without keys, `key` is ignored."""
    prompt: dict[str, Any] = {"prompt": [1_000]}
    if "chat" in path:
        prompt = {"messages": [{"role": "user", "content": "Hello"}]}
    request = urllib.request.Request(
        f"{base_url}{path}",
        json.dumps({"model": model, "max_tokens": 1, **prompt}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=PROBE_S) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def tail_of(path: Path, n_chars: int = 3000) -> str:
    """The end of a file, empty if there is none."""
    return path.read_text(errors="replace")[-n_chars:] if path.exists() else ""
