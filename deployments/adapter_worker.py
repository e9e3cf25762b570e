"""An import worker: a process that brings adapters to this node's disk, one after the other.

    python -m deployments.adapter_worker FOLDER MAX_BYTES MAX_ADAPTER_BYTES TIMEOUT_S

Reads jobs as lines from stdin and answers each with a line on stdout; ends with its input. It runs
at low priority, because engines of the same node compute meanwhile.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from deployments.adapter_cache import AdapterCache
from deployments.adapter_files import open_folder
from deployments.adapter_import import (
    CheckedAdapter,
    check_adapter,
    mark_of,
    read_adapter,
    stamp_adapter,
)
from deployments.adapter_jobs import (
    AdapterFacts,
    Away,
    Bring,
    Brought,
    Job,
    Look,
    Outcome,
    Refused,
    Seen,
    key_of,
)
from deployments.adapter_reading import WEIGHTS_FILE, checksum_of, is_whole, read_facts
from serve_app.errors import AdapterAwayError, AdapterRefusedError

logger = logging.getLogger(__name__)

_NICE = 10
_STRIPES = 4096
_CHUNK_BYTES = 1 << 20
_SLACK_S = 2.0
_COPIES = 3
"""Of an adapter, in memory: the files, what is made of them, and what is in between."""
_BESIDE_BYTES = 1 << 30
"""For Python and stores' libraries."""


class AdapterWorker:
    """Does jobs.

    Args:
        folder: The node's cache of adapters.
        max_bytes: Most that it may take.
        max_adapter_bytes: Most that one adapter's weights may have at their source.
    """

    def __init__(self, folder: Path, max_bytes: int, max_adapter_bytes: int) -> None:
        self._folder = folder
        self._cache = AdapterCache(folder, max_bytes)
        self._max_adapter_bytes = max_adapter_bytes
        (folder / "fetching").mkdir(exist_ok=True, mode=0o700)

    def do(self, job: Job) -> Outcome:
        """Does one job; what goes wrong is its outcome."""
        try:
            match job:
                case Bring():
                    return self._bring(job)
                case Look():
                    return self._look(job.source)
        except AdapterRefusedError as error:
            return Refused(error.message, error.is_missing)
        except AdapterAwayError as error:
            return Away(error.message, error.retry_after_s)
        except MemoryError:
            return Away("There is not enough memory on this node to read it.", 30.0)
        except Exception as error:
            logger.exception("An adapter could not be imported.")
            return Away(f"Importing it failed: {type(error).__name__}.", 30.0)

    def _bring(self, job: Bring) -> Outcome:
        # One process fetches; whoever else wants the same waits, and then finds it here.
        with self._only_one(f"{job.source}#{job.version}"):
            known = key_of(job.version, job.shape)
            if job.version and (hold := self._cache.hold(known)) is not None:
                hold.release()
                found = self._verify(known)
                if found is not None:
                    return found
            return self._fetch(job)

    def _fetch(self, job: Bring) -> Brought:
        with self._cache.scratch() as scratch, open_folder(job.source, scratch) as folder:
            raw = read_adapter(folder, self._max_adapter_bytes)
        if job.version and raw.version != job.version:
            raise AdapterAwayError(
                f"Its files at the source are not those of version {job.version[:12]} any more "
                f"(SHA-256 {raw.version[:12]}).",
                5.0,
            )
        key = key_of(raw.version, job.shape)
        known = self._verify(key)  # Perhaps from another source, or brought by another process.
        if known is not None:
            return Brought(key, msgspec.structs.replace(known.facts, mark=raw.mark))
        adapter = check_adapter(raw, job.shape, job.max_rank)
        return Brought(key, self._publish(key, adapter))

    def _publish(self, key: str, adapter: CheckedAdapter) -> AdapterFacts:
        # Converted before a byte is written: what is refused never takes room from others.
        weights, config = list(adapter.weights()), adapter.config()
        raw = adapter.raw
        facts = AdapterFacts(
            raw.version,
            raw.mark,
            adapter.rank,
            adapter.modules,
            adapter.n_bytes,
            len(raw.weights),
            checksum_of(weights, config),
        )
        found = msgspec.json.encode(facts)
        self._cache.publish(key, config, found, adapter.n_bytes, weights)
        return facts

    def _verify(self, key: str) -> Brought | None:
        """Compares checksums of an adapter that should be here; removes one that is damaged."""
        hold = self._cache.hold(key)
        if hold is None:
            return None
        try:
            if is_whole(hold.path, _read_parts(hold.path / WEIGHTS_FILE)):
                return Brought(key, read_facts(hold.path))
        except (OSError, msgspec.MsgspecError):
            logger.warning("The cached adapter %s cannot be read.", key)
        finally:
            hold.release()
        logger.warning("The cached adapter %s is damaged.", key)
        self._cache.discard(key)
        return None

    def _look(self, source: str) -> Seen:
        with self._cache.scratch() as scratch, open_folder(source, scratch) as folder:
            return Seen(mark_of(stamp_adapter(folder, self._max_adapter_bytes)))

    @contextlib.contextmanager
    def _only_one(self, what: str) -> Iterator[None]:
        stripe = int(hashlib.sha256(what.encode()).hexdigest(), 16) % _STRIPES
        path = self._folder / "fetching" / f"{stripe:03x}"
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX)
            yield
        finally:
            os.close(opened)


def _read_parts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def bound_memory(max_adapter_bytes: int) -> None:
    """Has this process run out of memory before the node does, whatever a store sends it."""
    most_bytes = _COPIES * max_adapter_bytes + _BESIDE_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or most_bytes < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))


def main(argv: list[str], answer: Callable[[bytes], object]) -> None:
    """Does jobs until the input ends."""
    folder, max_bytes, max_adapter_bytes, timeout_s = argv
    os.nice(_NICE)
    bound_memory(int(max_adapter_bytes))
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    worker = AdapterWorker(Path(folder), int(max_bytes), int(max_adapter_bytes))
    decoder: msgspec.json.Decoder[Job] = msgspec.json.Decoder(Job)
    answer(b"{}\n")
    for line in sys.stdin.buffer:
        # Whoever asked kills it at the deadline; this is for when that one is dead.
        signal.setitimer(signal.ITIMER_REAL, float(timeout_s) + _SLACK_S)
        outcome = worker.do(decoder.decode(line))
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        answer(msgspec.json.encode(outcome) + b"\n")


def _answer_on_stdout() -> Callable[[bytes], object]:
    """What libraries print must not be taken for an answer: it goes to stderr."""
    stdout = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return stdout.write


if __name__ == "__main__":
    main(sys.argv[1:], _answer_on_stdout())
