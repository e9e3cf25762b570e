"""By what cells know that they share a database."""

import pytest

from serve_app.config_store import StoreSettings, fingerprint

SHARED = StoreSettings.model_validate({"database": {"kind": "postgresql", "url": "env:DATABASE"}})


def test_a_file_is_nobody_elses() -> None:
    assert fingerprint(StoreSettings()) == ""


def test_users_of_one_database_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for url in ("postgresql://a:x@db/one", "postgres://b:y@db/one", "postgresql://a:x@db/two"):
        monkeypatch.setenv("DATABASE", url)
        seen.append(fingerprint(SHARED))
    assert seen[0] == seen[1] != seen[2]
