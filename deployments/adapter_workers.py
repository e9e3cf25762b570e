"""A process's import workers: started when needed, one job each at a time, killed at a deadline."""

import asyncio
import logging
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from deployments.adapter_jobs import Away, Job, Outcome
from serve_app.config_adapters import AdapterCacheSettings
from serve_app.embedded_model import default_cache_dir

logger = logging.getLogger(__name__)

_START_S = 60.0
_MAX_LINE = 1 << 20
_ROOT = Path(__file__).parents[1]
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def cache_folder_of(settings: AdapterCacheSettings) -> Path:
    """Return the folder of this node's cache of adapters."""
    return Path(settings.path) if settings.path else default_cache_dir() / "adapters"


class AdapterWorkers:
    """Import workers of one process, on its event loop.

    Args:
        settings: The cache that they fill, and bounds.
    """

    def __init__(self, settings: AdapterCacheSettings) -> None:
        self._settings = settings
        self._idle: list[asyncio.subprocess.Process] = []
        self._all: set[asyncio.subprocess.Process] = set()
        self._places = asyncio.Semaphore(settings.workers)
        self._is_closed = False
        self._decoder: msgspec.json.Decoder[Outcome] = msgspec.json.Decoder(Outcome)

    async def warm_up(self) -> None:
        """Starts one, unless there is one: that takes half a second or more."""
        if self._all or self._is_closed:
            return
        try:
            self._idle.append(await self._take())
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            logger.warning("No import worker could be started ahead: %r", error)

    async def do(self, job: Job, most_s: float = math.inf) -> Outcome:
        """Has a job done; a worker that dies or takes too long is replaced.

        Args:
            job: What to do.
            most_s: Seconds that it may take, where that is less than what the settings let it.
        """
        timeout_s = min(most_s, self._settings.fetch_timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await self._places.acquire()
        except TimeoutError:
            return Away("Too many other adapters are being brought to this node.", 5.0)
        try:
            # One that died, perhaps while idle, is replaced; a job that kills two is given up.
            outcome = await self._do(job, timeout_s) or await self._do(job, timeout_s)
            return outcome or Away("The process that imported it died.", 30.0)
        finally:
            self._places.release()

    async def _do(self, job: Job, timeout_s: float) -> Outcome | None:
        if self._is_closed:
            return Away("What brings it here is being set up anew.", 1.0)
        try:
            worker = await self._take()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            logger.error("No import worker could be started: %r", error)
            return Away("No process could be started to import it.", 5.0)
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await self._ask(worker, job)
        except TimeoutError:
            self._kill(worker)
            return Away(f"It could not be brought here within {timeout_s:g} s.", 5.0)
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            self._kill(worker)
            logger.error("An import worker died: %r", error)
            return None
        except BaseException:
            self._kill(worker)  # It is in the middle of a job that nobody waits for.
            raise
        self._idle.append(worker)
        return outcome

    async def close(self) -> None:
        """Ends every worker; none is started any more."""
        self._is_closed = True
        for worker in list(self._all):
            self._kill(worker)
            await worker.wait()

    async def _ask(self, worker: asyncio.subprocess.Process, job: Job) -> Outcome:
        assert worker.stdin is not None
        worker.stdin.write(msgspec.json.encode(job) + b"\n")
        await worker.stdin.drain()
        return self._decoder.decode(await _read_line(worker))

    async def _take(self) -> asyncio.subprocess.Process:
        while self._idle:
            worker = self._idle.pop()
            if worker.returncode is None:
                return worker
            self._all.discard(worker)
        settings = self._settings
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deployments.adapter_worker", str(cache_folder_of(settings))),
            *(str(int(settings.max_gib * (1 << 30))), str(settings.max_adapter_bytes)),
            str(settings.fetch_timeout_s),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_MAX_LINE,
            env=_environment(),
            cwd=_ROOT,
            start_new_session=True,
        )
        self._all.add(worker)
        try:
            async with asyncio.timeout(_START_S):
                await _read_line(worker)
        except BaseException:
            self._kill(worker)
            raise
        return worker

    def _kill(self, worker: asyncio.subprocess.Process) -> None:
        self._all.discard(worker)
        if worker.returncode is None:
            worker.kill()


async def _read_line(worker: asyncio.subprocess.Process) -> bytes:
    assert worker.stdout is not None
    return await worker.stdout.readuntil(b"\n")


def _environment() -> Mapping[str, str]:
    """One thread each: they run beside engines, whose threads wait for one another."""
    wanted = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return wanted | dict.fromkeys(_THREADS, "1")
