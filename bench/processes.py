"""The processes of one measured system: found, held still, counted, ended. Never by name.

What belongs to a system is found as `make down` finds it: by a mark in the environment
(`cluster.local_state`), so that a daemon which Ray has detached is found and nobody else's is.
"""

import contextlib
import signal
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster.local_state import MARK, find_processes, new_mark, stop_processes

_MIB = 1 << 20

Role = str
RoleOf = Callable[[str], Role]
"""Returns the role of a process from its command line."""


@dataclass(frozen=True)
class Memory:
    """Memory of a system in MiB.

    Args:
        pss_mib: Now, shared pages divided among those who share them.
        peak_rss_mib: Sum of every process's highest resident size. Shared pages count in each.
    """

    pss_mib: float
    peak_rss_mib: float


@dataclass
class ProcessGroup:
    """All processes of one system.

    Args:
        role_of: Names the part that a command line plays.
    """

    role_of: RoleOf
    mark: str = field(default_factory=new_mark)
    _roots: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        """Starts a process whose output goes to a file."""
        with log.open("ab") as out:
            process = subprocess.Popen(
                command,
                env={**env, MARK: self.mark, "SPT_NOENV": "1"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._roots.append(process)

    @property
    def failure_code(self) -> int | None:
        """Exit code of a started process that has failed; None while there is none."""
        return next((code for code in (root.poll() for root in self._roots) if code), None)

    def members(self) -> list[psutil.Process]:
        """Every process of this system that lives now."""
        return find_processes(self.mark)

    def pause(self) -> None:
        """Holds every process still (SIGSTOP), so that it costs the others nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets every process go on."""
        self._signal(signal.SIGCONT)

    def cpu_s(self) -> dict[Role, float]:
        """CPU seconds so far, user and system, by role."""
        total: dict[Role, float] = defaultdict(float)
        for process, role in self.with_roles():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total[role] += times.user + times.system
        return total

    def memory(self) -> Memory:
        """Memory of all processes together. Takes some tens of milliseconds a process."""
        pss = peak = 0.0
        for process in self.members():
            with contextlib.suppress(psutil.Error, OSError):
                pss += process.memory_full_info().pss / _MIB
                peak += _peak_rss_kib(process.pid) / 1024
        return Memory(pss, peak)

    def end(self) -> None:
        """Ends every process: asks, waits, then insists."""
        self.resume()
        stop_processes(self.mark)
        for root in self._roots:
            root.wait()

    def _signal(self, number: signal.Signals) -> None:
        for process in self.members():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def with_roles(self) -> Iterator[tuple[psutil.Process, Role]]:
        """Yields every process that lives now, and the part that it plays."""
        for process in self.members():
            with contextlib.suppress(psutil.Error):
                yield process, self.role_of(" ".join(process.cmdline()) or process.name())


def _peak_rss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0
