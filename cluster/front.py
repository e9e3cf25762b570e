"""Keeps one HAProxy in front of several cells as they come, fill, leave and die.

    observe (cells' /ready, HAProxy's own counts) -> choose_weights -> what HAProxy is told

HAProxy is a process of its own: it goes on with what it was told last when this one is killed, and
the next one takes it over. It checks cells itself, too, and leaves out one that is gone before it
is looked at here.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cluster.cells import CellWatch, FleetOfCells, Look, Tell, list_cells
from cluster.front_config import (
    Server,
    digest_of,
    plan_commands,
    socket_of,
    write_answers,
    write_config,
)
from cluster.front_socket import HAProxySocket
from cluster.policy.cells import Cell, CellLoad, choose_weights
from serve_app.cell_messages import PeerCell
from serve_app.config_front import FrontSettings
from serve_app.errors import CommandError

_START_S = 10.0
_LONGEST_SOCKET = 90
"""Of the 108 of a path, HAProxy adds some while it starts."""


class HAProxy:
    """The HAProxy of one front.

    Args:
        settings: The front's.
        folder: Where its files are.
        binary: The program.
    """

    def __init__(self, settings: FrontSettings, folder: Path, binary: str) -> None:
        self._settings = settings
        self._folder = folder
        self._binary = binary
        self.socket = HAProxySocket(socket_of(folder))
        self._processes: list[subprocess.Popen[bytes]] = []
        """Those that were started here and run: old ones end with their last answers."""

    def ensure(self, weights: Mapping[Cell, int]) -> str:
        """Have it run as the settings say; return what was done for that, if anything.

        Args:
            weights: Cells that it begins with where it has to start.

        Raises:
            CommandError: It does not start.
        """
        self._processes = [process for process in self._processes if process.poll() is None]
        # HAProxy itself says what it runs: a file that does may be of one that was killed between.
        if self.socket.digest() == digest_of(self._settings, self._folder):
            return ""
        pid = self.socket.pid()
        self._check_folder()
        write_answers(self._folder)
        config = self._folder / "haproxy.cfg"
        config.write_text(write_config(self._settings, self._folder, weights))
        command = [self._binary, "-db", "-f", str(config)]
        if pid is not None:
            # The old one hands over what it listens on, and ends with its last answer.
            command += ["-x", str(socket_of(self._folder)), "-sf", str(pid)]
        self._start(command, pid)
        where = f"{self._settings.host}:{self._settings.port}"
        return f"HAProxy listens at {where}" if pid is None else "HAProxy has its new settings"

    def _check_folder(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if len(str(socket_of(self._folder))) > _LONGEST_SOCKET:
            raise CommandError(
                f"{socket_of(self._folder)} is too long for a socket; sockets' paths have at most "
                f"{_LONGEST_SOCKET} characters. Set a shorter store.state_dir."
            )

    def _start(self, command: list[str], old: int | None) -> None:
        log = self._folder / "haproxy.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C is for this process alone
            )
        self._processes.append(process)
        give_up_s = time.monotonic() + _START_S
        while self.socket.pid() in (None, old):
            if process.poll() is not None or time.monotonic() > give_up_s:
                text = log.read_text(errors="replace")[-500:]
                raise CommandError(f"HAProxy does not start; {log} ends: {text}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Have it take nothing new and end with its last answer."""
        pid = self.socket.pid()
        if pid is not None:
            os.kill(pid, signal.SIGUSR1)

    def wait(self) -> None:
        """Wait until it has ended."""
        while self.socket.pid() is not None:
            time.sleep(0.1)
        for process in self._processes:
            process.wait()


class Front:
    """One front over cells.

    Args:
        settings: The front's.
        haproxy: Its HAProxy.
        watch: Looks at cells.
        fleet: Whose nodes are cells, too; None where there is none.
        tell: Gets a line for people for each change.
        show_cells: Gets those that answer and have engines, after each look.
    """

    def __init__(
        self,
        settings: FrontSettings,
        haproxy: HAProxy,
        watch: CellWatch,
        fleet: FleetOfCells | None,
        tell: Tell,
        show_cells: Callable[[Sequence[PeerCell]], None] = lambda cells: None,
    ) -> None:
        self._settings = settings
        self._haproxy = haproxy
        self._watch = watch
        self._fleet = fleet
        self._tell = tell
        self._show_cells = show_cells
        self._looks: dict[str, Look] = {}
        self._weights: dict[str, int] = {}
        self._said: dict[str, str] = {}

    def run(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Step until it is over."""
        while not is_over():
            self.step()
            time.sleep(self._settings.period_s)

    def step(self) -> None:
        """Look at all cells once, and tell HAProxy what is new.

        Raises:
            CommandError: HAProxy does not start.
        """
        cells = list_cells(self._settings, self._fleet)
        answering = self._take_looks(cells)
        self._show_cells([self._as_peer(cell) for cell in answering if self._has_engines(cell)])
        staying = [cell for cell in cells if self._serves(cell) and not self._is_leaving(cell)]
        leaving = [cell for cell in cells if self._serves(cell) and self._is_leaving(cell)]
        weights = self._weigh(staying, {})
        if done := self._haproxy.ensure(weights):
            self._tell(done)
        now = self._haproxy.socket.servers()
        weights = self._weigh(staying, now)
        self._weights = {cell.name: weight for cell, weight in weights.items()}
        for command in plan_commands(now, weights, leaving):
            if objection := self._haproxy.socket.tell(command):
                self._tell(f"HAProxy refused `{command}`: {objection}")
        self._say(cells, now)

    def _take_looks(self, cells: list[Cell]) -> list[Cell]:
        """Look at all, and return those that answer.

        One that does not answer stays as it was: HAProxy leaves out those that are gone.
        """
        looks = self._watch.look(cells)
        kept = {name: look or self._looks.get(name) for name, look in looks.items()}
        self._looks = {name: look for name, look in kept.items() if look is not None}
        return [cell for cell in cells if looks[cell.name] is not None]

    def _has_engines(self, cell: Cell) -> bool:
        """Whether requests of other cells may go there; some model may lack its engine, though."""
        return not self._is_leaving(cell) and not self._looks[cell.name].only_gateways

    def _as_peer(self, cell: Cell) -> PeerCell:
        return PeerCell(cell.url, self._looks[cell.name].places)

    def _serves(self, cell: Cell) -> bool:
        """Whether HAProxy is to know it: once it was ready, HAProxy's checks go on from there."""
        look = self._looks.get(cell.name)
        return look is not None and (look.is_ready or look.leaves or cell.name in self._weights)

    def _is_leaving(self, cell: Cell) -> bool:
        return cell.leaves or self._looks[cell.name].leaves

    def _weigh(self, cells: list[Cell], now: Mapping[str, Server]) -> dict[Cell, int]:
        """Weigh all; those without engines come first, as what they answer outlives others."""
        first = [cell for cell in cells if self._comes_first(cell, now.get(cell.name))] or cells
        names = {cell.name for cell in first}
        before = {name: n for name, n in self._weights.items() if n and name in names}
        loads: dict[str, CellLoad] = {}
        for cell in first:
            server = now.get(cell.name)
            loads[cell.name] = self._looks[cell.name].load(server.n_requests if server else 0)
        zone, fill = self._settings.zone, self._settings.fill
        chosen = choose_weights(first, loads, zone, fill, before)
        return {cell: chosen.get(cell.name, 0) for cell in cells}

    def _comes_first(self, cell: Cell, server: Server | None) -> bool:
        """Whether it has only gateways and is there: what it was at the last look may be gone."""
        return self._looks[cell.name].only_gateways and (server is None or server.is_up)

    def _say(self, cells: list[Cell], now: Mapping[str, Server]) -> None:
        said = {cell.name: self._describe(cell, now.get(cell.name)) for cell in cells}
        for name in self._said.keys() - said.keys():
            self._tell(f"{name}: gone")
        for name, words in said.items():
            if self._said.get(name) != words:
                self._tell(f"{name}: {words}")
        self._said = said

    def _describe(self, cell: Cell, server: Server | None) -> str:
        look = self._looks.get(cell.name)
        if look is None:
            return f"does not answer at {cell.url}"
        if self._is_leaving(cell):
            return "leaves; gets nothing new"
        if server is not None and not (server.is_up or server.is_stopped or server.is_draining):
            return "fails its checks; gets nothing"
        if not look.is_ready:
            return "is not ready"
        return f"serves, {look.places} places"
