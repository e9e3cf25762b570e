"""Tenants that wait share the engine by weight, whatever they send: over HTTP, with real keys."""

import asyncio
import time
from collections import Counter
from pathlib import Path

import openai
import pytest

from serve_app.gateway.auth import hash_key
from tests.integration.conftest import make_settings, write_echo
from tests.support.clients import ask, connect_async
from tests.support.platform import LocalPlatform

_RUN_S = 5.0
_WARM_UP_S = 1.0
_MAX_TOKENS = 10


class Load:
    """Tenants that keep a number of requests in flight, and the tokens that each was served."""

    def __init__(self, urls: list[str], in_flight: dict[str, int]) -> None:
        self._urls = urls
        self._in_flight = in_flight
        self.served: Counter[str] = Counter()
        self._starts_s = 0.0

    async def run(self) -> None:
        """Runs for `_RUN_S`; counts what ended after `_WARM_UP_S`."""
        clients = {
            tenant: [connect_async(url, key=f"key-{tenant}") for url in self._urls]
            for tenant in self._in_flight
        }
        self._starts_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for tenant, n in self._in_flight.items():
                for i in range(n):
                    client = clients[tenant][i % len(self._urls)]
                    tasks.create_task(self._keep_asking(tenant, client))
        for client in (client for both in clients.values() for client in both):
            await client.close()

    async def _keep_asking(self, tenant: str, client: openai.AsyncOpenAI) -> None:
        while time.monotonic() - self._starts_s < _RUN_S:
            answer = await client.chat.completions.create(
                model="tiny", messages=ask(), max_tokens=_MAX_TOKENS
            )
            assert answer.usage is not None
            if _WARM_UP_S <= time.monotonic() - self._starts_s < _RUN_S:
                tokens = answer.usage.prompt_tokens + 2 * answer.usage.completion_tokens
                self.served[tenant] += tokens

    def share(self, tenant: str) -> float:
        """Part of all service that a tenant got."""
        return self.served[tenant] / self.served.total()


@pytest.mark.parametrize(
    ("weights", "expected"),
    [({}, 0.5), ({"quiet": 3.0}, 0.75)],
    ids=["equal", "weighted 3:1"],
)
async def test_tenant_with_fewer_requests_gets_its_share_beside_a_noisy_one(
    tiny_model: Path, tmp_path: Path, weights: dict[str, float], expected: float
) -> None:
    keys = {tenant: [hash_key(f"key-{tenant}")] for tenant in ("noisy", "quiet")}
    settings = make_settings(
        write_echo(tiny_model, tokens_per_s=60.0, max_num_seqs=4),
        auth={"kind": "static", "tenants": keys},
        fairness={"weights": weights},
    )
    with LocalPlatform(settings, tmp_path, n_gateways=2) as platform:
        load = Load(platform.urls, {"noisy": 40, "quiet": 12})
        await load.run()
    assert load.share("quiet") == pytest.approx(expected, abs=0.06)
