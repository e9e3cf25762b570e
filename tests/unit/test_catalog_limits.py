"""Limits as tenants and keys have them, for the ledger."""

from typing import Any

import pytest

from serve_app.catalog import Catalog, CatalogChanges, Key, Tenant
from serve_app.catalog_limits import CatalogLimits
from serve_app.config_limits import LimitSpec, PriceSpec
from serve_app.config_tenants import DeclaredTenant, Limits, TenantSettings
from serve_app.keys import make_key
from serve_app.names import KeyId, ModelName, TenantId
from serve_app.policy.leases import Scope

ACME, LLAMA = TenantId("acme"), ModelName("llama")
FRESH = make_key()


def declare(**terms: Any) -> DeclaredTenant:
    return DeclaredTenant.model_validate({"id": ACME, **terms})


def test_each_scope_has_the_limits_that_are_written_for_it() -> None:
    key = {"hash": FRESH.hash, "limits": {"concurrent_requests": 3}}
    models = {LLAMA: {"total_tokens_per_min": 70}}
    tenant = declare(
        limits={"requests_per_min": 60, "models": models},
        budgets={"usd_per_day": 1.5},
        keys=[key],
    )
    source = CatalogLimits(Catalog([tenant]))
    assert source.limits_of(Scope(ACME)) == LimitSpec(requests_per_min=60, usd_per_day=1.5)
    assert source.limits_of(Scope(ACME, model=LLAMA)) == LimitSpec(total_tokens_per_min=70)
    assert source.limits_of(Scope(ACME, key=tenant.keys[0].id)) == LimitSpec(concurrent_requests=3)
    for scope in (Scope(TenantId("other")), Scope(ACME, model=ModelName("other"))):
        assert source.limits_of(scope) == LimitSpec()


def test_changed_limits_hold_from_the_next_question_on() -> None:
    catalog = Catalog()
    source = CatalogLimits(catalog)
    for n, count in enumerate((5, 9)):
        terms = {"id": ACME, "limits": {"requests_per_min": count}}
        tenant = Tenant(TenantSettings.model_validate(terms), "admin")
        catalog.apply(CatalogChanges(n, tenants=(tenant,)))
        assert source.limits_of(Scope(ACME)).requests_per_min == count
    catalog.apply(CatalogChanges(2, deleted=(ACME,)))
    assert source.limits_of(Scope(ACME)) == LimitSpec()


def test_limits_of_a_stored_key_end_with_it() -> None:
    catalog, limits = Catalog(), Limits(requests_per_min=2)
    key = Key(KeyId("key-1"), ACME, FRESH.hash, limits=limits, expires_s=100.0)
    catalog.apply(CatalogChanges(0, keys=(key,)))
    source = CatalogLimits(catalog)
    assert source.limits_of(Scope(ACME, key=key.id)).requests_per_min == 2
    catalog.forget_expired(100.0)
    assert source.limits_of(Scope(ACME, key=key.id)) == LimitSpec()


@pytest.mark.parametrize(
    ("terms", "model", "has_limits"),
    [
        ({}, "llama", False),
        ({"limits": {"requests_per_min": 1}}, "llama", True),
        ({"limits": {"max_output_tokens": 1}}, "llama", True),
        ({"budgets": {"usd_per_month": 0.5}}, "llama", True),
        ({"limits": {"models": {"llama": {"requests_per_min": 1}}}}, "llama", True),
        ({"limits": {"models": {"llama": {"requests_per_min": 1}}}}, "other", False),
        ({"limits": {"models": {"llama": {}}}}, "llama", False),
        ({"keys": [{"hash": FRESH.hash, "limits": {"requests_per_min": 1}}]}, "llama", True),
    ],
)
def test_ledger_is_needed_exactly_where_something_is_limited(
    terms: dict[str, Any], model: str, has_limits: bool
) -> None:
    tenant = declare(**({"keys": [{"hash": FRESH.hash}]} | terms))
    caller = Catalog([tenant]).identify(FRESH.hash, 0.0)
    assert caller is not None
    assert caller.has_limits_on(ModelName(model)) == has_limits


def test_model_without_a_price_is_free() -> None:
    source = CatalogLimits(Catalog())
    source.prices = {LLAMA: PriceSpec(usd_per_million_completion_tokens=3.0)}
    assert source.price_of(LLAMA).cost_usd(1000, 2000) == 0.006
    assert source.price_of(ModelName("other")).cost_usd(1000, 2000) == 0.0
    dear = PriceSpec(usd_per_million_prompt_tokens=7.0)
    source.prices = {**source.prices, f"{LLAMA}:sql": dear}
    assert source.price_of(LLAMA, f"{LLAMA}:sql") == dear
    assert source.price_of(LLAMA, f"{LLAMA}:chat") == source.price_of(LLAMA) != dear
