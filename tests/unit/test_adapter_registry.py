"""Which versions are current, and what is said of those that are so no more."""

from dataclasses import replace

import pytest

from serve_app.adapter_registry import Adapter, AdapterChanges, AdapterRegistry, AdapterVersion
from serve_app.config_adapters import AdapterFamily, AdapterSettings, AdaptersSettings
from serve_app.names import ModelName

TINY = ModelName("tiny")


class Desk:
    """A registry, and what it says is gone."""

    def __init__(self) -> None:
        self.registry = AdapterRegistry()
        self.gone: list[int] = []
        self.registry.on_gone = lambda refs: self.gone.extend(ref.id for ref in refs)

    def register(self, source: str, *versions: AdapterVersion) -> None:
        adapter = Adapter(write("sql", source), "admin")
        self.registry.apply(AdapterChanges(adapters=(adapter,), versions=versions))


def write(name: str, source: str) -> AdapterSettings:
    return AdapterSettings(name=name, base=TINY, source=source)


def version(number: int, source: str, name: str = "tiny:sql") -> AdapterVersion:
    return AdapterVersion(number, name, source, f"{number:064}", "m", 8, (), 1, 0.0, number)


def test_deleted_adapters_version_is_gone_once() -> None:
    desk = Desk()
    desk.register("file:///a", version(1, "file:///a"))
    assert desk.gone == []
    desk.registry.apply(AdapterChanges(deleted=("tiny:sql",)))
    desk.registry.apply(AdapterChanges(deleted=("tiny:sql",)))
    assert desk.gone == [1]


@pytest.mark.parametrize("source", ["file:///a", "file:///b"])
def test_version_that_another_has_replaced_is_gone(source: str) -> None:
    desk = Desk()
    desk.register("file:///a", version(1, "file:///a"))
    desk.register(source, version(2, source))
    assert desk.gone == [1]


def test_older_word_of_a_version_changes_nothing() -> None:
    desk = Desk()
    desk.register("file:///a", version(2, "file:///a"))
    desk.register("file:///a", version(1, "file:///a"))
    assert desk.gone == []


def test_version_stays_that_a_declared_adapter_still_has() -> None:
    desk = Desk()
    declared = AdaptersSettings(declared=(write("sql", "file:///a"),))
    desk.registry.declare(declared)
    desk.register("file:///a", version(1, "file:///a"))
    desk.registry.apply(AdapterChanges(deleted=("tiny:sql",)))
    assert desk.gone == []
    desk.registry.declare(AdaptersSettings())
    assert desk.gone == [1]


def test_members_of_a_family_that_is_no_more_are_gone() -> None:
    desk = Desk()
    family = AdapterFamily(base=TINY, source="file:///all")
    desk.registry.declare(AdaptersSettings(families=(family,)))
    place = "file:///all/a1"
    desk.registry.apply(AdapterChanges(versions=(version(1, place, "tiny:a1"),)))
    assert desk.registry.find("tiny:a1") is not None
    desk.register("file:///a", version(2, "file:///a"))
    desk.registry.declare(AdaptersSettings(families=(family,), recheck_s=1.0))
    assert desk.gone == []
    desk.registry.declare(AdaptersSettings())
    assert desk.gone == [1]
    assert desk.registry.find("tiny:a1") is None


def test_member_of_a_family_that_has_ended_is_gone_until_it_is_found_again() -> None:
    desk = Desk()
    family = AdapterFamily(base=TINY, source="file:///all")
    desk.registry.declare(AdaptersSettings(families=(family,)))
    found = version(1, "file:///all/a1", "tiny:a1")
    for change, gone, listed in (
        (found, [], ["tiny:a1"]),
        (replace(found, mark="", changed=2), [1], []),
        (found, [1], []),  # Rows of the store come in any order.
        (replace(found, changed=3), [1], ["tiny:a1"]),
    ):
        desk.registry.apply(AdapterChanges(versions=(change,)))
        assert desk.gone == gone
        assert [adapter.name for adapter in desk.registry.known()] == listed


def test_registration_leaves_what_is_known_of_families() -> None:
    # Thousands are listed; to work each out anew takes a gateway's loop for tenths of a second.
    desk = Desk()
    desk.registry.declare(
        AdaptersSettings(families=(AdapterFamily(base=TINY, source="file:///all"),))
    )
    desk.registry.apply(AdapterChanges(versions=(version(1, "file:///all/a1", "tiny:a1"),)))
    member = desk.registry.find("tiny:a1")
    desk.register("file:///a")
    assert desk.registry.find("tiny:a1") is member
    assert [adapter.name for adapter in desk.registry.known()] == ["tiny:a1", "tiny:sql"]
