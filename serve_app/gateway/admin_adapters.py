"""The admin API's adapters, and vLLM's two routes for clients that know those.

Registering an adapter fetches and checks it first; what cannot be served is refused with the
reason and not registered. Adapters that the config file declares are shown here, changed there.
"""

import time
from dataclasses import replace
from itertools import islice
from typing import Annotated, NoReturn, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Query
from pydantic import ValidationError
from starlette.responses import PlainTextResponse

from serve_app.adapter_registry import Adapter
from serve_app.config_adapters import AdapterSettings, why_no_adapters
from serve_app.errors import AdapterAwayError, AdapterRefusedError
from serve_app.gateway.admin import ERRORS, require_admin
from serve_app.gateway.admin_adapter_forms import (
    AdapterList,
    AdapterView,
    LoadForm,
    UnloadForm,
    view_adapter,
)
from serve_app.gateway.admin_forms import Deleted
from serve_app.gateway.error_body import ApiError, from_validation
from serve_app.gateway.gateway import Gateway
from serve_app.store.adapters import AdapterRepository

LORA_PATHS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
"""vLLM's. Whoever may change what others use needs the scope `admin`."""
_Param = TypeVar("_Param")


def add_adapter_routes(app: FastAPI, gateway: Gateway) -> None:
    """Adds the routes under /admin/adapters, and vLLM's."""
    routes = _Routes(gateway)
    needs = [Depends(require_admin)]
    router = APIRouter(prefix="/admin", tags=["admin"], dependencies=needs, responses=ERRORS)
    router.get("/adapters")(routes.list_all)
    router.post("/adapters", status_code=201)(routes.add)
    router.post("/adapters/{name:path}/refresh")(routes.refresh)
    router.get("/adapters/{name:path}")(routes.show)
    router.delete("/adapters/{name:path}")(routes.remove)
    app.include_router(router)
    like_vllm = APIRouter(tags=["adapters"], dependencies=needs, responses=ERRORS)
    like_vllm.post(LORA_PATHS[0])(routes.load)
    like_vllm.post(LORA_PATHS[1])(routes.unload)
    app.include_router(like_vllm)


class _Routes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._accounts = gateway.accounts
        self._adapters = gateway.adapters

    async def list_all(
        self,
        base: str | None = None,
        tenant: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: str = "",
    ) -> AdapterList:
        """Adapters by name; those of a family once they were used."""
        await self._accounts.refresh()
        fitting = (
            adapter
            for adapter in self._adapters.registry.known(after)
            if base in (None, adapter.base) and tenant in (None, adapter.owner)
        )
        first = list(islice(fitting, limit + 1))
        return AdapterList(
            data=tuple(self._view(adapter) for adapter in first[:limit]),
            has_more=len(first) > limit,
        )

    async def add(self, form: AdapterSettings) -> AdapterView:
        """Fetches, checks and registers an adapter. Every gateway knows it within 2 s."""
        return self._view(await self._register(form, replaces=False))

    async def show(self, name: str) -> AdapterView:
        """One adapter."""
        return self._view(await self._find(name))

    async def refresh(self, name: str) -> AdapterView:
        """Fetches an adapter again, or one of a family that nobody has used yet.

        Requests from now on get what is at its source now. One of a family ends if nothing is.
        """
        adapter = await self._find(name, is_known=False)
        try:
            await self._adapters.learn_anew(adapter)
        except (AdapterRefusedError, AdapterAwayError) as error:
            _answer(adapter, error)
        return self._view(adapter)

    async def remove(self, name: str) -> Deleted:
        """Ends an adapter, on every gateway within 2 s. Requests that run finish."""
        adapter = await self._find(name)
        _check_registered(adapter)
        async with self._accounts.change() as session:
            await AdapterRepository(session).delete(adapter.name, time.time())
        return Deleted(id=adapter.name)

    async def load(self, form: LoadForm) -> PlainTextResponse:
        """As vLLM's: registers an adapter for every tenant that `allowed_models` lets.

        In the place of another one it is the same tenant's alone, and has its aliases, too.
        """
        await self._accounts.refresh()
        try:
            await self._register(self._read_load(form), replaces=form.load_inplace)
        except ValidationError as error:
            problems = [p | {"loc": tuple(map(_name_for_vllm, p["loc"]))} for p in error.errors()]
            raise from_validation(problems) from None
        except ApiError as error:
            raise replace(error, param=_name_for_vllm(error.param)) from None
        text = f"Success: LoRA adapter '{form.lora_name}' added successfully."
        return PlainTextResponse(text)

    async def unload(self, form: UnloadForm) -> PlainTextResponse:
        """As vLLM's: ends an adapter. Requests that run finish."""
        await self.remove(form.lora_name)
        text = f"Success: LoRA adapter '{form.lora_name}' removed successfully."
        return PlainTextResponse(text)

    # --- registering ------------------------------------------------------------------------

    async def _register(self, form: AdapterSettings, *, replaces: bool) -> Adapter:
        await self._accounts.refresh()
        self._check_base(form)
        self._check_names(form, replaces=replaces)
        adapter = Adapter(form, "admin", time.time())
        try:
            found = await self._adapters.examine(adapter)
        except (AdapterRefusedError, AdapterAwayError) as error:
            _answer(adapter, error)
        async with self._accounts.change() as session:
            repository = AdapterRepository(session)
            if replaces:
                await repository.delete(adapter.name, adapter.created_s)
            created = await repository.create(form, adapter.created_s)
            if created is not None:
                await repository.note_version(created, **found)
        if created is None:
            raise _exists(form.full_name)
        return created

    def _check_base(self, form: AdapterSettings) -> None:
        models = {model.name: model for model in self._gateway.settings.models}
        if form.base not in models:
            raise ApiError(
                400,
                f"There is no base model {form.base!r}. Name one of: {', '.join(models)}.",
                param="base",
            )
        if problem := why_no_adapters(models[form.base]):
            raise ApiError(400, f"The base model is {form.base!r}, {problem}.", param="base")
        if form.tenant is not None and self._accounts.catalog.tenant(form.tenant) is None:
            raise ApiError(
                404,
                f"There is no tenant {form.tenant!r}. GET /admin/tenants lists those there are.",
                param="tenant",
                code="tenant_not_found",
            )

    def _check_names(self, form: AdapterSettings, *, replaces: bool) -> None:
        registry = self._adapters.registry
        known = registry.find(form.full_name)
        if known is not None and known.origin != "family":
            if known.origin == "declared":
                _check_registered(known)
            if not replaces:
                raise _exists(form.full_name)
        of_models = {name for model in self._gateway.settings.models for name in model.names}
        for alias in form.aliases:
            holder = alias if alias in of_models else registry.holder_of_alias(alias)
            if holder not in (None, form.full_name):
                raise ApiError(
                    409,
                    f"The alias {alias!r} belongs to {holder!r} already; take another one.",
                    param="aliases",
                    code="alias_exists",
                )

    def _read_load(self, form: LoadForm) -> AdapterSettings:
        base, separator, name = form.lora_name.rpartition(":")
        if not separator:
            able = [m.name for m in self._gateway.settings.models if not why_no_adapters(m)]
            if len(able) != 1:
                raise ApiError(
                    400,
                    f"{len(able)} models take adapters, so the base model must be named: use a "
                    f"lora_name of the form base-model:{name[:64]}.",
                    param="lora_name",
                )
            base = able[0]
        known = self._adapters.registry.find(f"{base}:{name}") if form.load_inplace else None
        aliases = set() if separator else {name}
        aliases.update(known.settings.aliases if known is not None else ())
        fields = {"name": name, "base": base, "source": form.lora_path, "aliases": sorted(aliases)}
        tenant = known.owner if known is not None else None
        return AdapterSettings.model_validate(fields | {"tenant": tenant})

    # --- what is known ----------------------------------------------------------------------

    async def _find(self, name: str, *, is_known: bool = True) -> Adapter:
        """Returns an adapter; of families those in use, or whatever may be one."""
        await self._accounts.refresh()
        registry = self._adapters.registry
        adapter = registry.find(name)
        if adapter is None:
            text = f"There is no adapter {name[:200]!r}. GET /admin/adapters lists those there are."
            raise ApiError(404, text, code="adapter_not_found")
        if is_known and adapter.origin == "family" and registry.current(adapter) is None:
            raise ApiError(
                404,
                f"Nobody has used {adapter.name!r} yet, so nothing is known of it. Its family "
                f"looks for it at {adapter.source!r}; `arriero adapters refresh {adapter.name}` or "
                "a request has it fetched and checked.",
                code="adapter_not_found",
            )
        return adapter

    def _view(self, adapter: Adapter) -> AdapterView:
        return view_adapter(adapter, self._adapters.registry.current(adapter))


def _answer(adapter: Adapter, error: AdapterRefusedError | AdapterAwayError) -> NoReturn:
    """An administrator hears all of it, where the source is and what it said included."""
    if isinstance(error, AdapterRefusedError):
        where = f" It was looked for at {adapter.source!r}{_reach_of(adapter)}."
        raise ApiError(
            404 if error.is_missing else 400,
            f"The adapter cannot be served. {error}{where if error.is_missing else ''}",
            param="source",
            code="adapter_not_found" if error.is_missing else "invalid_adapter",
        ) from None
    raise ApiError(
        503,
        f"The adapter cannot be fetched from {adapter.source!r} at present. {error}",
        param="source",
        code="adapter_unavailable",
        retry_after_s=error.retry_after_s,
    ) from None


def _reach_of(adapter: Adapter) -> str:
    is_local = adapter.source.startswith("file://")
    return ", which every machine with a gateway or an engine must be able to read" * is_local


def _name_for_vllm(param: _Param) -> _Param | str:
    """What clients of vLLM's routes call a field."""
    known = {
        "source": "lora_path",
        "name": "lora_name",
        "base": "lora_name",
        "aliases": "lora_name",
    }
    return known.get(param, param) if isinstance(param, str) else param


def _check_registered(adapter: Adapter) -> None:
    if adapter.origin == "admin":
        return
    where, remedy = "declared in the config file", "Change that file and deploy it."
    if adapter.origin == "family":
        where = "found in a family"
        remedy = f"Remove its folder, then `arriero adapters refresh {adapter.name}` ends it."
    raise ApiError(
        409,
        f"The adapter {adapter.name!r} is {where}, so it is not changed here. {remedy}",
        code="adapter_is_declared",
    )


def _exists(name: str) -> ApiError:
    return ApiError(
        409,
        f"There is an adapter {name!r} already. Refresh it if its files are new, remove it first "
        "if its source or tenant is another one, or take another name.",
        param="name",
        code="adapter_exists",
    )
