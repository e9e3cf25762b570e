from hypothesis import given
from hypothesis import strategies as st

from serve_app.catalog import Catalog, CatalogChanges, Key, Tenant
from serve_app.config_tenants import DeclaredTenant, TenantSettings
from serve_app.keys import hash_key, make_key, read_key
from serve_app.names import KeyId, TenantId

header_text = st.text(st.characters(max_codepoint=0x2FF), max_size=80)
times_s = st.floats(0, 4e9)
maybe_times_s = st.none() | times_s


def make_stored_key(text: str, tenant: str = "t", **changes: object) -> Key:
    fields: dict[str, object] = {
        "id": KeyId("key-1"),
        "tenant_id": TenantId(tenant),
        "hash": hash_key(text),
    }
    return Key(**(fields | changes))  # type: ignore[arg-type]


def make_catalog(*keys: Key, tenants: tuple[str, ...] = ("t",)) -> Catalog:
    catalog = Catalog()
    stored = tuple(Tenant(TenantSettings(id=TenantId(t)), "admin", 1.0, 1.0) for t in tenants)
    catalog.apply(CatalogChanges(1, stored, (), keys, is_complete=True))
    return catalog


@given(st.dictionaries(st.sampled_from(["authorization", "x-api-key", "other"]), header_text))
def test_any_headers_give_a_key_or_none(headers: dict[str, str]) -> None:
    key = read_key(headers)
    assert key is None or (key and key in " ".join(headers.values()))


@given(st.sampled_from(["Bearer", "bearer", "BEARER"]), st.integers(1, 3))
def test_bearer_key_is_read_whatever_the_case_and_spaces(scheme: str, n_spaces: int) -> None:
    key = make_key()
    headers = {"authorization": f"{scheme}{' ' * n_spaces}{key.text} ", "x-api-key": "other"}
    assert read_key(headers) == key.text


@given(header_text.filter(lambda text: not text.strip().lower().startswith("bearer ")))
def test_other_scheme_falls_back_to_anthropics_header(authorization: str) -> None:
    headers = {"authorization": authorization, "x-api-key": "sk-arriero-a"}
    assert read_key(headers) == "sk-arriero-a"


@given(st.text(max_size=60))
def test_unknown_key_identifies_nobody(text: str) -> None:
    catalog = make_catalog(make_stored_key("sk-arriero-known"))
    assert (catalog.identify(hash_key(text), 0.0) is not None) == (text == "sk-arriero-known")


@given(times_s, maybe_times_s, maybe_times_s)
def test_key_works_until_it_expires_and_not_after_it_was_revoked(
    now_s: float, expires_s: float | None, revoked_s: float | None
) -> None:
    key = make_stored_key("k", expires_s=expires_s, revoked_s=revoked_s)
    works = make_catalog(key).identify(hash_key("k"), now_s) is not None
    assert works == (revoked_s is None and (expires_s is None or now_s < expires_s))


@given(times_s, times_s)
def test_forgetting_the_expired_changes_no_answer(expires_s: float, now_s: float) -> None:
    catalog = make_catalog(make_stored_key("k", expires_s=expires_s))
    before = catalog.identify(hash_key("k"), now_s)
    catalog.forget_expired(now_s)
    assert catalog.identify(hash_key("k"), now_s) == before


actions = st.lists(
    st.tuples(
        st.sampled_from(["tenant", "delete", "key", "revoke", "declare"]),
        st.sampled_from(["a", "b"]),
    ),
    max_size=20,
)


@given(actions)
def test_changes_one_by_one_lead_to_the_same_as_all_at_once(
    steps: list[tuple[str, str]],
) -> None:
    catalog = Catalog()
    tenants: dict[str, Tenant] = {}
    keys: dict[str, Key] = {}
    declared: set[str] = set()
    for version, (step, name) in enumerate(steps, 1):
        changes = CatalogChanges(version)
        if step == "tenant":
            tenants[name] = Tenant(TenantSettings(id=TenantId(name)), "admin", version, version)
            changes = CatalogChanges(version, tenants=(tenants[name],))
        elif step == "delete":
            tenants.pop(name, None)
            changes = CatalogChanges(version, deleted=(TenantId(name),))
        elif step == "key":
            keys[name] = make_stored_key(name, name)
            changes = CatalogChanges(version, keys=(keys[name],))
        elif step == "revoke":
            keys.pop(name, None)
            revoked = make_stored_key(name, name, revoked_s=1.0)
            changes = CatalogChanges(version, keys=(revoked,))
        else:
            declared.add(name)
            catalog.declare(DeclaredTenant(id=TenantId(each)) for each in declared)
        catalog.apply(changes)
    for name in ("a", "b"):
        exists = name in declared or name in tenants
        assert (catalog.tenant(name) is not None) == exists
        caller = catalog.identify(hash_key(name), 5.0)
        assert (caller is not None) == (exists and name in keys)
        if caller is not None:
            assert caller.tenant.source == ("declared" if name in declared else "admin")
