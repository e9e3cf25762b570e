"""Clients that never stop asking an echo model, and hold every answer to what it must be."""

import random
import threading
import time
from collections.abc import Mapping
from typing import Any

import httpx

from tests.support.streams import Stream

_ANSWER_S = 120.0
_AGAIN_S = 0.2
"""After an error, before the next request."""


class EchoLoad:
    """Streams of one model, all the time; some are read slowly.

    Args:
        url: Where.
        model: An echo model.
        n_streams: At the same time.
        rng: Draws prompts and lengths.
        lengths: Of answers, in tokens.
        headers: Of each request.
    """

    def __init__(
        self,
        url: str,
        model: str,
        n_streams: int,
        rng: random.Random,
        lengths: tuple[int, int] = (20, 300),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.errors: list[str] = []
        """What came instead of a whole, right answer."""
        self.n_answers = 0
        """Whole, right answers."""
        self.longest_pause_s = 0.0
        """Between two tokens of one of those, or from request to first token; may be reset."""
        self.may_be_refused = False
        """Whether nobody is there to serve new requests: 503 is a right answer then."""
        self._url, self._model, self._lengths = url, model, lengths
        self._headers = dict(headers or {})
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask_on, args=(random.Random(rng.random()),), daemon=True)
            for _ in range(n_streams)
        ]

    def start(self) -> None:
        """Begins to ask."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets all streams end."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(_ANSWER_S)
            assert not thread.is_alive(), "a stream does not end"

    @property
    def is_alive(self) -> bool:
        """Whether every client still asks."""
        return all(thread.is_alive() for thread in self._threads)

    def _ask_on(self, rng: random.Random) -> None:
        while not self._stopping.is_set():
            words = "".join(f"w{rng.randrange(1000)} " for _ in range(rng.randint(3, 20)))
            n_tokens = rng.randint(*self._lengths)
            is_slow = rng.random() < 0.2
            try:
                self._ask(words, n_tokens, 0.02 if is_slow else 0.0)
            except (AssertionError, httpx.HTTPError) as error:
                at = f"{time.strftime('%X')} {words!r}, {n_tokens} tokens"
                self.errors.append(f"{at}: {error!r}")
                time.sleep(_AGAIN_S)

    def _ask(self, words: str, n_tokens: int, pause_s: float) -> None:
        request = make_request(self._model, words, n_tokens) | {"return_token_ids": True}
        asked_s, may_be_refused = time.monotonic(), self.may_be_refused
        stream = Stream(self._url, request, pause_s=pause_s, **self._headers)
        events = stream.finish(_ANSWER_S)
        if stream.status == 503 and (may_be_refused or self.may_be_refused):
            assert "model_not_ready" in "".join(stream.lines), stream.lines
            time.sleep(_AGAIN_S)
            return
        assert events[-1:] == ["[DONE]"], f"{stream.status}: {''.join(stream.lines)[-300:]}"
        errors = [event for event in events if '"error"' in event]
        assert not errors, errors
        check_echo(stream.events(), n_tokens)
        self.n_answers += 1
        pause_s = max(stream.longest_gap_s(), stream.times_s[0] - asked_s)
        self.longest_pause_s = max(self.longest_pause_s, pause_s)


def make_request(
    model: str, prompt: str, max_tokens: int, *, stream: bool = True
) -> dict[str, Any]:
    """A completion."""
    return {"model": model, "prompt": prompt, "max_tokens": max_tokens, "stream": stream}


def check_echo(events: list[dict[str, Any]], n_tokens: int) -> None:
    """Holds a stream with token ids to what an echo engine says.

    Raises:
        AssertionError: A token is missing, there twice, or another.
    """
    choices = [choice for event in events for choice in event["choices"]]
    found = [token for choice in choices for token in choice["token_ids"] or ()]
    prompt = next(c["prompt_token_ids"] for c in choices if c.get("prompt_token_ids"))
    expected = [prompt[i % len(prompt)] for i in range(n_tokens)]
    assert found == expected, f"{len(found)} tokens of {n_tokens}, or others"
