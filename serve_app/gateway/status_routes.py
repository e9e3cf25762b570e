"""The admin API of what goes on at this moment, and of how much is logged."""

from fastapi import APIRouter, Depends, FastAPI

from serve_app import telemetry
from serve_app.gateway.admin import ERRORS, require_admin
from serve_app.gateway.auth import check_sight, current_caller
from serve_app.gateway.error_body import ApiError
from serve_app.gateway.gateway import Gateway
from serve_app.gateway.status_forms import (
    LogLevelForm,
    LogLevelView,
    Status,
    UsedToday,
    make_status,
)
from serve_app.store.usage import UsageQuery, UsageRepository, today

STATUS_PATH = "/admin/status"
_MAX_TENANTS = 10_000


def add_status_routes(app: FastAPI, gateway: Gateway) -> None:
    """Adds the routes /admin/status and /admin/logging."""
    router = APIRouter(
        prefix="/admin", tags=["admin"], dependencies=[Depends(require_admin)], responses=ERRORS
    )

    @app.get(STATUS_PATH, tags=["admin"], responses=ERRORS)
    async def status() -> Status:
        """Models, engines, queues, fairness, and what tenants used today; for `arriero top`.

        Where keys are on, for keys with the scope `admin`.
        """
        check_sight(current_caller.get())
        return make_status(gateway, await _used_today(gateway))

    @router.get("/logging")
    async def show_logging() -> LogLevelView:
        """How much this gateway logs."""
        return LogLevelView(level=telemetry.log_level())

    @router.put("/logging")
    async def change_logging(form: LogLevelForm) -> LogLevelView:
        """Changes how much gateways, routers, engines and the ledger log, within a second or two.

        It holds until it is changed again or the config file is deployed, and with what starts
        anew: with a router also for its engines.
        """
        gateway.set_log_level(form.level or "")
        return LogLevelView(level=telemetry.log_level())

    app.include_router(router)


async def _used_today(gateway: Gateway) -> UsedToday | None:
    """None while the store is away: what goes on is asked for then most of all."""
    day = today()
    try:
        async with gateway.accounts.read() as session:
            usage = UsageRepository(session)
            (total,) = await usage.sum(UsageQuery(day, day, by=()))
            by_tenant = UsageQuery(day, day, by=("tenant",), most_rows=_MAX_TENANTS)
            sums = await usage.sum(by_tenant)
    except ApiError:
        return None
    return UsedToday(total, {each.group["tenant"]: each for each in sums})
