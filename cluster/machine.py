"""What this machine has: memory, disk, a GPU, free ports. Standard library only."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

GIB = 1 << 30


def observe_available_memory_bytes(
    proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return memory that new processes may use, the container's limit included.

    None means that this system does not say (not Linux).
    """
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    if not kib:
        return None
    limit, used = _read_int(cgroup / "memory.max"), _read_int(cgroup / "memory.current")
    if limit is None or used is None:
        return kib[0] * 1024
    return min(kib[0] * 1024, max(0, limit - used))


def observe_free_disk_bytes(folder: Path) -> int:
    """Return the free space where `folder` is, or where it would be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def has_nvidia_gpu() -> bool:
    """Return whether an NVIDIA driver answers with at least one GPU."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and "GPU" in done.stdout


def is_port_free(host: str, port: int) -> bool:
    """Return whether a server could listen on this address now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def choose_free_port(host: str, first: int, last: int) -> int | None:
    """Return the lowest free port of a range, or None when every one is taken."""
    return next((port for port in range(first, last + 1) if is_port_free(host, port)), None)


def address_towards(address: str) -> str:
    """Return this machine's address as the one at HOST:PORT sees it; nothing is sent there."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))
        return str(probe.getsockname()[0])


def _read_int(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max" means no limit
        return None
