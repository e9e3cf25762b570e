"""The ledger in a process of its own, without Ray: to be killed and started again.

It writes where it is into a file, as a router does for `engine_process`.
"""

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

from serve_app.config import Settings
from serve_app.errors import InternalError
from tests.support.engine_process import write_endpoint

_HOST = "127.0.0.1"
_ROOT = Path(__file__).parents[2]


class LedgerProcess:
    """Starts a ledger process with its journal beside its endpoint file."""

    def __init__(self, settings: Settings, endpoint_file: Path) -> None:
        self._endpoint_file = endpoint_file
        with endpoint_file.with_name("ledger.log").open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.support.ledger_process"),
                    *(str(endpoint_file), settings.model_dump_json()),
                ],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """Ends the process as the kernel would."""
        self._process.kill()
        self._process.wait()
        self._endpoint_file.unlink(missing_ok=True)


async def _run(endpoint_file: Path, settings: Settings) -> None:
    from deployments.ledger_host import LedgerHost
    from deployments.ledger_journal import FileJournal

    ledger = LedgerHost(settings, FileJournal(endpoint_file.with_name("journal")), _HOST)
    ledger.start()
    while True:
        ledger.check_health()
        with contextlib.suppress(InternalError):
            write_endpoint(endpoint_file, ledger.endpoint)
            break
        await asyncio.sleep(0.02)
    while True:
        ledger.check_health()
        await asyncio.sleep(1.0)


def main(argv: list[str]) -> None:
    endpoint_file, settings = argv
    asyncio.run(_run(Path(endpoint_file), Settings.model_validate_json(settings)))


if __name__ == "__main__":
    main(sys.argv[1:])
