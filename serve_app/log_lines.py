"""Lines of which there is one for each request, written some at a time.

Ray reads what its workers write to standard error and passes it on, a message each time that it
finds something. Hundreds of lines a second, each written by itself, keep its reader and the head
node busy all the time; four writes a second do not.
"""

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_GATHER_S = 0.25
_MOST_WAITING = 500


def log_line(logger: logging.Logger, text: str, fields: Mapping[str, Any]) -> None:
    """Writes a line at INFO with fields beside its text: numbers and names, no texts."""
    if logger.isEnabledFor(logging.INFO):
        logger.handle(LineRecord(logger, text, fields))


class LineRecord(logging.LogRecord):
    """A record with what a line shows and nothing else.

    `logging` finds out thread, task, file and line of code for each: a third of what writing it
    takes.
    """

    _REST = vars(logging.LogRecord("", logging.INFO, "", 0, "", (), None))
    """What those ask for that show all of a record."""
    fields: Mapping[str, Any]

    def __init__(self, logger: logging.Logger, text: str, fields: Mapping[str, Any]) -> None:
        now_s = time.time()
        own = {"name": logger.name, "msg": text, "created": now_s, "msecs": now_s % 1 * 1000}
        self.__dict__ = {**self._REST, **own, "fields": fields}


class LineHandler(logging.StreamHandler[Any]):
    """Writes to standard error; a request's line a moment later, with those that came meanwhile.

    Any other line is written at once, behind what waits. Who is killed loses a moment's lines.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[str] = []
        self._has_waiting = threading.Event()
        self._writer: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a line; called under the handler's lock."""
        try:
            self._waiting.append(self.format(record))
            if not isinstance(record, LineRecord) or len(self._waiting) >= _MOST_WAITING:
                self.flush()
            elif len(self._waiting) == 1:
                self._wake()
        except Exception:  # As logging's own handlers do: who logs must not fail.
            self.handleError(record)

    def flush(self) -> None:
        """Writes what waits."""
        self.acquire()
        try:
            lines, self._waiting = self._waiting, []
            if lines:
                self.stream.write("\n".join(lines) + "\n")
            super().flush()
        finally:
            self.release()

    def close(self) -> None:
        """Writes what waits, and ends what would have."""
        self._writer = None
        self._has_waiting.set()
        self.flush()
        super().close()

    def _wake(self) -> None:
        if self._writer is None:
            self._writer = threading.Thread(target=self._run, name="log lines", daemon=True)
            self._writer.start()
        self._has_waiting.set()

    def _run(self) -> None:
        while self._has_waiting.wait() and self._writer is threading.current_thread():
            time.sleep(_GATHER_S)
            self._has_waiting.clear()
            with suppress(OSError):  # A full disk: these lines are lost, later ones are not.
                self.flush()
