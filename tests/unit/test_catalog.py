import pytest

from serve_app.catalog import Caller, Catalog, CatalogChanges, Tenant
from serve_app.config_tenants import DeclaredKey, DeclaredTenant, TenantSettings
from serve_app.keys import hash_key, make_key
from serve_app.names import TenantId


def make_tenant(**changes: object) -> Tenant:
    return Tenant(TenantSettings.model_validate({"id": "a"} | changes), "admin", 12.5, 12.5)


@pytest.mark.parametrize(
    ("allowed", "names", "is_allowed"),
    [
        (None, ("llama",), True),
        ([], ("llama",), False),
        (["llama"], ("llama",), True),
        (["llama"], ("llama-70b",), False),
        (["llama"], ("alias", "llama"), True),
        (["llama"], ("llama:sql",), False),
        (["llama:sql"], ("llama:sql",), True),
        (["llama:sql"], ("llama",), False),
        (["llama:*"], ("llama:sql",), True),
        (["llama:*"], ("llama",), False),
        (["llama*"], ("llama-70b",), True),
        (["*"], ("anything",), True),
    ],
)
def test_tenant_may_use_what_is_allowed(
    allowed: list[str] | None, names: tuple[str, ...], is_allowed: bool
) -> None:
    assert make_tenant(allowed_models=allowed).may_use(*names) == is_allowed


def test_prefixes_are_shared_unless_the_tenant_has_its_own() -> None:
    assert make_tenant().cache_salt is None
    salt = make_tenant(has_own_prefix_cache=True).cache_salt
    assert salt == "a@12.500"


def test_without_keys_there_is_inference_and_no_administration() -> None:
    caller = Catalog().anonymous()
    assert caller.tenant_id == "anonymous"
    assert caller.can("inference")
    assert not caller.can("admin")


def test_anonymous_takes_the_terms_that_the_file_declares() -> None:
    catalog = Catalog([DeclaredTenant(id=TenantId("anonymous"), weight=3.0)])
    assert catalog.anonymous().tenant.settings.weight == 3.0


def test_declared_key_has_its_scopes_and_no_trace_of_its_hash_in_its_id() -> None:
    fresh = make_key()
    declared = DeclaredTenant(
        id=TenantId("ops"), keys=(DeclaredKey(hash=fresh.hash, scopes=("admin",)),)
    )
    caller = Catalog([declared]).identify(fresh.hash, 0.0)
    assert isinstance(caller, Caller)
    assert caller.key is not None
    assert caller.can("admin")
    assert not caller.can("inference")
    assert not any(fresh.hash[i : i + 8] in caller.key.id for i in range(56))


def test_declared_tenant_carries_no_keys_into_what_is_shown() -> None:
    fresh = make_key()
    declared = DeclaredTenant(id=TenantId("ops"), keys=(DeclaredKey(hash=fresh.hash),))
    tenant = Catalog([declared]).tenant("ops")
    assert tenant is not None
    assert type(tenant.settings) is TenantSettings
    assert fresh.hash not in repr(tenant)


def test_nothing_shows_a_key_or_its_hash() -> None:
    fresh = make_key()
    declared = DeclaredTenant(id=TenantId("ops"), keys=(DeclaredKey(hash=fresh.hash),))
    caller = Catalog([declared]).identify(hash_key(fresh.text), 0.0)
    for text in (repr(fresh), repr(caller), str(caller)):
        assert fresh.text not in text
        assert fresh.hash not in text


def test_keys_are_long_and_differ() -> None:
    keys = {make_key().text for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) == len("sk-arriero-") + 43 for key in keys)


def test_texts_are_kept_of_a_tenant_that_wants_it_for_as_long_as_it_is_there() -> None:
    catalog = Catalog()
    assert not catalog.keeps_texts("a")
    catalog.apply(CatalogChanges(1, tenants=(make_tenant(keeps_texts=True),)))
    assert catalog.keeps_texts("a")
    catalog.apply(CatalogChanges(1, tenants=(make_tenant(keeps_texts=False),)))
    assert not catalog.keeps_texts("a")
    catalog.apply(CatalogChanges(1, tenants=(make_tenant(keeps_texts=True),)))
    catalog.apply(CatalogChanges(1, deleted=(TenantId("a"),)))
    assert not catalog.keeps_texts("a")
