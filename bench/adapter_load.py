"""Requests for adapters of a power-law popularity, sent by clients in a closed loop.

Adapter number i of n is drawn as n · u^(1/alpha) with u uniform, as S-LoRA's traces are (Sheng et
al., MLSys 2024): alpha 1 is uniform, less is more skewed. Prompts are random tokens, so that none
has a cached prefix. The same seed draws the same requests.
"""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import uvloop

from bench.load import Answer, Ask, Connection, completion_ask, draw_prompt, percentiles

Name = str
"""What a system calls an adapter, or the base model."""


@dataclass(frozen=True)
class Draw:
    """One request before it is known which system it goes to.

    Args:
        adapter: Number of its adapter; None is the base model.
        prompt: Its tokens.
        output_tokens: Exact length of its answer.
    """

    adapter: int | None
    prompt: tuple[int, ...]
    output_tokens: int


def draw_trace(
    n_adapters: int, n_requests: int, alpha: float, seed: str, lengths: tuple[int, int]
) -> list[Draw]:
    """Returns requests for that many adapters; for 0, of the base model.

    Args:
        n_adapters: From which each is drawn.
        n_requests: How many.
        alpha: Of their popularity.
        seed: The same gives the same.
        lengths: Of prompts and of answers, in tokens.
    """
    rng = random.Random(seed)
    return [
        Draw(
            int(n_adapters * rng.random() ** (1 / alpha)) if n_adapters else None,
            tuple(draw_prompt(lengths[0], rng)),
            lengths[1],
        )
        for _ in range(n_requests)
    ]


@dataclass(frozen=True)
class Run:
    """What became of a trace, request by request, in its order."""

    draws: Sequence[Draw]
    answers: Sequence[Answer]
    wall_s: float

    @property
    def errors(self) -> list[str]:
        """What went wrong."""
        return [answer.error for answer in self.answers if answer.error]

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second of right answers, all clients together."""
        good = (answer for answer in self.answers if not answer.error)
        return sum(answer.completion_tokens for answer in good) / self.wall_s

    @property
    def n_distinct(self) -> int:
        """Adapters that were asked for at least once."""
        return len({draw.adapter for draw in self.draws} - {None})

    @property
    def itl_p99_s(self) -> float:
        """Percentile 99 of the time between tokens."""
        return percentiles([gap for answer in self.answers for gap in answer.itls_s])["p99"]

    def ttfts_s(self, *, first: bool | None = None) -> list[float]:
        """Returns times to the first token: of all, of each adapter's first request, or of others.

        Requests that came while an adapter's first was still without a token count as first, too.
        """
        came_s: dict[int, float] = {}
        for draw, answer in self._by_time():
            if draw.adapter is not None:
                came_s.setdefault(draw.adapter, answer.arrivals_s[0])
        return [
            answer.ttft_s
            for draw, answer in self._by_time()
            if first is None or first == (answer.sent_s < came_s.get(draw.adapter or 0, 0.0))
        ]

    def _by_time(self) -> Iterator[tuple[Draw, Answer]]:
        pairs = zip(self.draws, self.answers, strict=True)
        good = (pair for pair in pairs if not pair[1].error)
        return iter(sorted(good, key=lambda pair: pair[1].sent_s))


def run_trace(
    url: str, draws: Sequence[Draw], names: Sequence[Name], base: Name, clients: int, key: str
) -> Run:
    """Sends a trace, `clients` at a time, and returns when all of it has ended."""
    asks = [ask_of(draw, names, base, key) for draw in draws]
    return uvloop.run(_run(url, draws, asks, clients))


def ask_of(draw: Draw, names: Sequence[Name], base: Name, key: str) -> Ask:
    """Returns a request as it goes to one system."""
    name = base if draw.adapter is None else names[draw.adapter]
    return completion_ask(name, list(draw.prompt), draw.output_tokens, key=key)


async def _run(url: str, draws: Sequence[Draw], asks: Sequence[Ask], clients: int) -> Run:
    answers: list[Answer] = [Answer(0.0)] * len(asks)
    left = iter(range(len(asks)))

    async def be_client() -> None:
        connection = Connection(url)
        try:
            for i in left:
                answers[i] = await connection.ask(asks[i])
        finally:
            connection.close()

    began_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(be_client())
    return Run(draws, answers, time.monotonic() - began_s)
