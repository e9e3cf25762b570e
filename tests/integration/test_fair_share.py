"""Tenants that wait share the engine by weight, whatever they send: over HTTP, with real keys.

Both tenants send all they have at once, so that both wait throughout what is looked at, however
slow the machine is. Looked at is the order in which requests end, past the first ones, which may
have come before the other tenant's.
"""

import asyncio
from pathlib import Path

import openai
import pytest

from serve_app.keys import hash_key
from tests.integration.conftest import make_settings, write_echo
from tests.support.clients import ask, connect_async
from tests.support.platform import LocalPlatform

_SENT = {"noisy": 150, "quiet": 90}
_SKIPPED = 40
_LOOKED_AT = 60


async def _find_ending_order(urls: list[str]) -> list[str]:
    """The tenants of the first requests to end."""
    ended: asyncio.Queue[str] = asyncio.Queue()
    clients = {
        tenant: [connect_async(url, key=f"key-{tenant}") for url in urls] for tenant in _SENT
    }

    async def send(tenant: str, client: openai.AsyncOpenAI) -> None:
        await client.chat.completions.create(model="tiny", messages=ask(), max_tokens=4)
        ended.put_nowait(tenant)

    tasks = [
        asyncio.create_task(send(tenant, clients[tenant][i % len(urls)]))
        for tenant, n in _SENT.items()
        for i in range(n)
    ]
    order = [await ended.get() for _ in range(_SKIPPED + _LOOKED_AT)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for both in clients.values():
        for client in both:
            await client.close()
    return order


@pytest.mark.parametrize(
    ("weights", "expected"),
    [({}, 0.5), ({"quiet": 3.0}, 0.75)],
    ids=["equal", "weighted 3:1"],
)
async def test_tenant_with_fewer_requests_gets_its_share_beside_a_noisy_one(
    tiny_model: Path, tmp_path: Path, weights: dict[str, float], expected: float
) -> None:
    tenants = [
        {
            "id": tenant,
            "weight": weights.get(tenant, 1.0),
            "keys": [{"hash": hash_key(f"key-{tenant}")}],
        }
        for tenant in _SENT
    ]
    settings = make_settings(
        write_echo(tiny_model, tokens_per_s=20.0, max_num_seqs=4),
        auth={"kind": "keys"},
        tenants=tenants,
        store={"state_dir": str(tmp_path / "state")},
    )
    with LocalPlatform(settings, tmp_path, n_gateways=2) as platform:
        order = await _find_ending_order(platform.urls)
    share = order[_SKIPPED:].count("quiet") / _LOOKED_AT
    assert share == pytest.approx(expected, abs=0.05)
