"""A real PostgreSQL server for tests, on a free loopback port, gone when they end."""

import asyncio
import glob
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import asyncpg

HOW_TO_GET_IT = (
    "PostgreSQL's server programs were not found (initdb, postgres). Install Debian's package "
    "`postgresql`, or put the folder of the programs on the PATH."
)
_START_TIMEOUT_S = 60.0


def find_programs() -> Path | None:
    """Returns the folder of initdb and postgres, or None."""
    folders = [Path(p) for p in sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    on_path = shutil.which("initdb")
    if on_path is not None:
        folders.append(Path(on_path).resolve().parent)
    return next((f for f in folders if (f / "initdb").exists() and (f / "postgres").exists()), None)


class PostgresServer:
    """One server with a superuser `arriero` and a password that nothing may show."""

    def __init__(self, programs: Path) -> None:
        self.password = secrets.token_hex(16)
        self.port = _find_free_port()
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="arriero-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._n_databases = 0
        # PostgreSQL does not run as root.
        self._user = "postgres" if os.geteuid() == 0 else None

    def start(self) -> None:
        """Returns when it answers."""
        secret = self._folder / "password"
        secret.write_text(self.password)
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            for path in (self._folder, secret):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        self._run(
            "initdb",
            *("-D", str(self._data), "-U", "arriero", "--pwfile", str(secret)),
            *("-A", "scram-sha-256", "-E", "UTF8", "--no-sync"),
        )
        self.restart()

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def restart(self) -> None:
        """Starts the server on the data that is there."""
        command = [
            *(str(self._programs / "postgres"), "-D", str(self._data), "-p", str(self.port)),
            *("-h", "127.0.0.1", "-k", str(self._folder), "-F", "-c", "max_connections=200"),
        ]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=log,
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
                cwd=self._folder,
            )
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError((self._folder / "log").read_text())
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends the server; its data stays."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None

    def remove(self) -> None:
        """Ends the server and removes its data."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def make_database(self) -> str:
        """Returns the URL of a new, empty database."""
        self._n_databases += 1
        name = f"test_{self._n_databases}"
        asyncio.run(self._execute(f"CREATE DATABASE {name}"))
        return self.url_of(name)

    def url_of(self, database: str) -> str:
        """Returns a database's URL as people write it."""
        return f"postgresql://arriero:{self.password}@127.0.0.1:{self.port}/{database}"

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url_of("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _answers(self) -> bool:
        try:
            asyncio.run(self._execute("SELECT 1"))
        except (OSError, asyncpg.PostgresError):
            return False
        return True

    def _run(self, program: str, *args: str) -> None:
        subprocess.run(
            [str(self._programs / program), *args],
            check=True,
            capture_output=True,
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
            cwd=self._folder,
        )


def _find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
