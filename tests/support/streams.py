"""Streams that are read in the background, with what came when."""

import json
import threading
import time
from itertools import pairwise
from typing import Any

import httpx

from tests.support.clients import read_events
from tests.support.platform import wait_until


class Stream:
    """A stream that is read in the background.

    Attributes:
        lines: What has come, line by line.
        times_s: When each line came, by the monotonic clock.
        status: Of the answer; 0 until its head has come.
        n_comments: Comments that have come, which keep a connection alive.
        error: Why it broke off; None where it did not.
    """

    def __init__(
        self,
        url: str,
        request: dict[str, Any],
        path: str = "/v1/completions",
        *,
        pause_s: float = 0.0,
        **headers: str,
    ) -> None:
        self.lines: list[str] = []
        self.times_s: list[float] = []
        self.status = 0
        self.n_comments = 0
        self.error: httpx.HTTPError | None = None
        self._headers = headers
        self._pause_s = pause_s
        self._is_left = False
        self._request = (url + path, request)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether more may come."""
        return self._thread.is_alive()

    def wait_for_first_token(self) -> None:
        """Waits until something has come."""
        self.wait_for_lines(1)

    def wait_for_lines(self, n: int, timeout_s: float = 60.0) -> None:
        """Waits until so many lines have come, or all."""
        wait_until(
            lambda: len(self.lines) >= n or not self._thread.is_alive(),
            timeout_s,
            f"streaming {n} lines",
        )

    def finish(self, timeout_s: float = 30.0) -> list[str]:
        """The data of all events, once the stream has ended."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the stream goes on"
        assert self.error is None, repr(self.error)
        return read_events("\n".join(self.lines))

    def leave(self) -> None:
        """Hangs up with the next line."""
        self._is_left = True

    def finish_text(self, timeout_s: float = 30.0) -> str:
        """The text of a completion, once the stream has ended as it should."""
        *events, last = self.finish(timeout_s)
        assert last == "[DONE]", events[-1]
        assert self.status == 200
        return "".join(choice["text"] for e in events for choice in json.loads(e)["choices"])

    def text_so_far(self) -> str:
        """The text of a completion as far as it has come."""
        events = [json.loads(e) for e in read_events("\n".join(self.lines)) if e != "[DONE]"]
        return "".join(choice["text"] for event in events for choice in event["choices"])

    def events(self) -> list[dict[str, Any]]:
        """Every event of a stream that has ended as it should, without the last mark."""
        *events, last = self.finish()
        assert last == "[DONE]", events[-1]
        return [json.loads(event) for event in events]

    def longest_gap_s(self) -> float:
        """The longest time between two lines."""
        return max(b - a for a, b in pairwise(self.times_s))

    def _read(self) -> None:
        try:
            self._read_lines()
        except httpx.HTTPError as error:
            self.error = error

    def _read_lines(self) -> None:
        url, request = self._request
        with httpx.stream(
            "POST", url, json=request, headers=self._headers, timeout=300.0
        ) as answer:
            self.status = answer.status_code
            for line in answer.iter_lines():
                time.sleep(self._pause_s)
                if self._is_left:
                    return
                self.n_comments += line.startswith(":")
                if line and not line.startswith(":"):
                    self.times_s.append(time.monotonic())
                    self.lines.append(line)
