"""Talks to a running HAProxy over its socket: what it has, and what it is to do."""

import csv
import io
import socket
from pathlib import Path

from cluster.front_config import POOL, Server

_TIMEOUT_S = 5.0
_SAID = ("", "New server registered.", "Server deleted.")
_SERVERS = f"show stat {POOL} 4 -1"


class HAProxySocket:
    """HAProxy's socket.

    Args:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def ask(self, command: str) -> str:
        """Return what HAProxy answers.

        Raises:
            OSError: It does not.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(str(self._path))
            connection.sendall(command.encode() + b"\n")
            parts = []
            while part := connection.recv(1 << 16):
                parts.append(part)
        return b"".join(parts).decode(errors="replace").strip()

    def tell(self, command: str) -> str:
        """Have HAProxy do something; return what it objects, which is nothing if it did it.

        Raises:
            OSError: It does not answer.
        """
        answer = self.ask(command)
        # It says what has changed of an address in the same way as what went wrong.
        return "" if answer in _SAID or " changed from " in answer else answer

    def servers(self) -> dict[str, Server]:
        """Return the cells that it has, by name.

        Raises:
            OSError: It does not answer.
        """
        rows = csv.DictReader(io.StringIO(self.ask(_SERVERS).removeprefix("# ")))
        return {row["svname"]: Server(row) for row in rows}

    def pid(self) -> int | None:
        """Return its process id; None where none answers."""
        return int(self._info().get("Pid", "0")) or None

    def digest(self) -> str | None:
        """Return the digest of the configuration that it runs; None where none answers."""
        return self._info().get("description")

    def _info(self) -> dict[str, str]:
        try:
            lines = self.ask("show info").splitlines()
        except OSError:
            return {}
        return {key: value for key, _, value in (line.partition(": ") for line in lines)}
