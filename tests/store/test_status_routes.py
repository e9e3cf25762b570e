"""What goes on at this moment, as the admin API says it, with a store that may be away."""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from serve_app.catalog import Catalog
from serve_app.gateway import status_routes
from serve_app.gateway.auth import current_caller
from serve_app.gateway.error_body import ApiError
from serve_app.gateway.gateway import KnownModel
from serve_app.gateway.status_routes import add_status_routes
from serve_app.messages import FairnessStatus, ModelStatus, TenantStatus
from serve_app.names import ModelName, TenantId
from serve_app.store.database import Database
from serve_app.store.usage import UsageRepository
from tests.support.usage import make_record

TINY = ModelName("tiny")


class FakeAccounts:
    problem = ""
    state = "ok"

    def __init__(self, database: Database | None) -> None:
        self._database = database

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        if self._database is None:
            raise ApiError(503, "The store does not answer.")
        async with self._database.read() as session:
            yield session


class FakeGateway:
    def __init__(self, database: Database | None) -> None:
        self.accounts = FakeAccounts(database)

    def known_models(self) -> list[KnownModel]:
        tenant = TenantStatus(TenantId("busy"), 1.0, 3, 2, 0.0)
        status = ModelStatus("", [], 3, FairnessStatus(1.0, 9.0, 1, [tenant]))
        return [KnownModel(TINY, TINY, "ready", "", status)]

    def readiness(self) -> dict[str, Any]:
        return {"ready": True}


async def ask(gateway: FakeGateway) -> dict[str, Any]:
    current_caller.set(Catalog().anonymous())
    app = FastAPI()
    fake: Any = gateway
    add_status_routes(app, fake)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.get("/admin/status")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


async def test_totals_are_of_all_tenants_also_of_those_that_are_not_listed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_routes, "_MAX_TENANTS", 1)
    now_s = time.time()
    tenants = [TenantId(name) for name in "abbc"]
    async with database.write() as session:
        await UsageRepository(session).add(
            [make_record(tenant_id=tenant, ended_s=now_s) for tenant in tenants]
        )
    status = await ask(FakeGateway(database))
    totals = status["totals"]
    assert (totals["requests"], totals["tokens"]) == (4, 60)
    assert totals["cost_usd"] == pytest.approx(0.004)
    assert [tenant["tenant"] for tenant in status["tenants"]] == ["busy", "a"]
    assert (status["store"], status["store_problem"]) == ("ok", "")


async def test_a_store_that_is_away_hides_nothing_else() -> None:
    status = await ask(FakeGateway(None))
    assert status["models"][0]["waiting"] == 3
    assert [tenant["tenant"] for tenant in status["tenants"]] == ["busy"]
    assert status["store"] == "degraded"
    assert "not known" in status["store_problem"]
