"""A router that is killed: nobody loses anything, and fairness holds over its death.

Two tenants send all they have at once through two gateways, so that both wait throughout what is
looked at. The router's process is killed in the middle and another one is started.
"""

import asyncio
import signal
import time
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import openai
import pytest

from serve_app.cli import main
from serve_app.keys import hash_key
from serve_app.names import ModelName
from serve_app.policy.fairness_bound import Capacity, bound_gap
from serve_app.policy.fairness_options import Cost
from tests.integration.conftest import make_settings, write_echo
from tests.support.clients import ask, connect_async
from tests.support.platform import LocalPlatform
from tests.support.streams import Stream

TINY = ModelName("tiny")
SEATS, SPARE = 4, 4
SENT = {"ahead": 120, "behind": 120}
ANSWER_TOKENS = {"ahead": 12, "behind": 4}
AWAY_S = 1.5


@dataclass(frozen=True)
class Ended:
    tenant: str
    service: float
    at_s: float


async def send_all(platform: LocalPlatform, ended: asyncio.Queue[Ended]) -> None:
    """Sends everything at once; fails if any request does."""

    async def send(tenant: str, client: openai.AsyncOpenAI) -> None:
        n_tokens = ANSWER_TOKENS[tenant]
        answer = await client.chat.completions.create(
            model="tiny", messages=ask(), max_tokens=n_tokens
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == n_tokens
        service = answer.usage.prompt_tokens + 2 * n_tokens
        ended.put_nowait(Ended(tenant, service, time.monotonic()))

    clients = {
        tenant: [connect_async(url, key=f"key-{tenant}") for url in platform.urls]
        for tenant in SENT
    }
    async with asyncio.TaskGroup() as tasks:
        for tenant, n in SENT.items():
            for i in range(n):
                tasks.create_task(send(tenant, clients[tenant][i % len(platform.urls)]))
    for both in clients.values():
        for client in both:
            await client.close()


@pytest.mark.slow
async def test_killed_router_loses_no_request_and_keeps_the_bound(
    tiny_model: Path, tmp_path: Path
) -> None:
    settings = make_settings(
        write_echo(tiny_model, tokens_per_s=25.0, max_num_seqs=SEATS),
        auth={"kind": "keys"},
        tenants=[{"id": t, "keys": [{"hash": hash_key(f"key-{t}")}]} for t in SENT],
        store={"state_dir": str(tmp_path / "state")},
        fairness={"audit": {"folder": str(tmp_path / "audit")}},
    )
    with LocalPlatform(settings, tmp_path, n_gateways=2, routers_in_processes=True) as platform:
        ended: asyncio.Queue[Ended] = asyncio.Queue()
        sending = asyncio.create_task(send_all(platform, ended))
        before = [await ended.get() for _ in range(50)]
        killed_s = time.monotonic()
        await asyncio.to_thread(platform.kill_router, TINY)
        await asyncio.sleep(AWAY_S)
        platform.start_router(TINY)
        await sending
    after = [ended.get_nowait() for _ in range(ended.qsize())]
    assert len(before) + len(after) == sum(SENT.values())
    check_fairness(before + after, killed_s)
    check_logs(tmp_path / "audit" / "tiny")


def test_request_waits_for_engines_that_a_new_router_has_not_heard_yet(
    tiny_model: Path, tmp_path: Path
) -> None:
    settings = make_settings(write_echo(tiny_model))
    with LocalPlatform(
        settings, tmp_path, engines_in_processes=True, routers_in_processes=True
    ) as platform:
        [engine] = platform.engine_processes.values()
        platform.kill_router(TINY)
        engine.signal(signal.SIGSTOP)
        platform.start_router(TINY)
        request = {"model": TINY, "prompt": "a b", "max_tokens": 2}
        # The new router has spoken for longer than the gateway takes to reach it.
        time.sleep(AWAY_S)
        stream = Stream(platform.url, request | {"stream": True})
        time.sleep(0.5)
        assert stream.is_running, stream.lines
        engine.signal(signal.SIGCONT)
        stream.finish_text()


def check_logs(folder: Path) -> None:
    logs = sorted(str(file) for file in folder.glob("*.jsonl"))
    assert len(logs) == 2, "each router writes its own"
    assert main(["fairness", "replay", *logs]) == 0


def check_fairness(ended: list[Ended], killed_s: float) -> None:
    """Looks at the time in which both tenants certainly waited."""
    last_of = {tenant: max(e.at_s for e in ended if e.tenant == tenant) for tenant in SENT}
    both_until_s = min(last_of.values())
    n_spare = SEATS + SPARE
    both = [e for e in ended if e.at_s < both_until_s][n_spare:-n_spare]
    gaps = list(accumulate(e.service if e.tenant == "ahead" else -e.service for e in both))
    prompt = min(e.service - 2 * ANSWER_TOKENS[e.tenant] for e in ended)
    in_flight = n_spare * (prompt + max(ANSWER_TOKENS.values()))
    bound = bound_gap(Cost(), Capacity(int(prompt), int(in_flight)))
    assert max(gaps) - min(gaps) <= bound
    later = [e for e in both if e.at_s > killed_s + AWAY_S]
    assert len(later) > 60, "too little is left to look at"
    share = sum(e.service for e in later if e.tenant == "ahead") / sum(e.service for e in later)
    assert share == pytest.approx(0.5, abs=0.06)
    print(f"gap {max(gaps) - min(gaps):.0f} of {bound:.0f}, share after {share:.3f}")
