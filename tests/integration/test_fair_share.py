"""Tenants that wait share the engine by weight, whatever they send: over HTTP, with real keys.

Both tenants send all they have at once, so that both wait throughout what is looked at, however
slow the machine is. Looked at is the order in which requests end, past the first ones, which may
have come before the other tenant's.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import openai
import pytest

from serve_app.keys import hash_key
from tests.integration.conftest import make_settings, write_echo
from tests.support.clients import ask, connect_async
from tests.support.platform import LocalPlatform

_SENT = {"noisy": 150, "quiet": 90}
_SKIPPED = 40
_LOOKED_AT = 60
_TINY = ("tiny",)

T = TypeVar("T")


def _pick(some: Sequence[T], i: int) -> T:
    return some[i % len(some)]


async def _find_ending_order(
    urls: list[str], models: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """The tenants of the first requests to end; each tenant asks its models in turn."""
    models = models or {}
    ended: asyncio.Queue[str] = asyncio.Queue()
    clients = {
        tenant: [connect_async(url, key=f"key-{tenant}") for url in urls] for tenant in _SENT
    }

    async def send(tenant: str, model: str, client: openai.AsyncOpenAI) -> None:
        await client.chat.completions.create(model=model, messages=ask(), max_tokens=4)
        ended.put_nowait(tenant)

    tasks = [
        asyncio.create_task(
            send(tenant, _pick(models.get(tenant, _TINY), i // 2), _pick(clients[tenant], i))
        )
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


async def test_tenant_gains_nothing_by_spreading_over_the_models_of_a_domain(
    tiny_model: Path, tmp_path: Path
) -> None:
    """One keeps to one of two models: it gets as much of that as the other gets of both."""
    settings = make_settings(
        *(
            write_echo(tiny_model, name, tokens_per_s=20.0, max_num_seqs=4, domain="both")
            for name in ("tiny", "small")
        ),
        auth={"kind": "keys"},
        tenants=[{"id": tenant, "keys": [{"hash": hash_key(f"key-{tenant}")}]} for tenant in _SENT],
        store={"state_dir": str(tmp_path / "state")},
    )
    with LocalPlatform(settings, tmp_path, n_gateways=2) as platform:
        order = await _find_ending_order(platform.urls, {"noisy": ["tiny", "small"]})
    share = order[_SKIPPED:].count("quiet") / _LOOKED_AT
    # Each model is as quick as the other, and only the noisy one has use for the second.
    assert share == pytest.approx(0.5, abs=0.05)
