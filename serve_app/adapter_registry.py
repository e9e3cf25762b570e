"""Which adapters there are, as one process knows it: declared, registered and found in families.

A declared adapter hides a registered one of the same name, and both hide a family's. Of families
with the same base model the one with the longest fitting prefix counts.
"""

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from serve_app.adapter_source import member_of
from serve_app.config_adapters import AdapterFamily, AdapterSettings, AdaptersSettings
from serve_app.messages import AdapterRef
from serve_app.names import ModelName, TenantId, is_adapter_name

Origin = Literal["declared", "admin", "family"]


@dataclass(frozen=True)
class Adapter:
    """An adapter and where it was named.

    Attributes:
        settings: What holds for it.
        origin: `declared` in the config file, registered by an `admin`, or of a `family`.
        created_s: When it was registered; 0 where it was not.
    """

    settings: AdapterSettings
    origin: Origin = "declared"
    created_s: float = 0.0

    @property
    def name(self) -> str:
        """Base model and adapter, `llama:sql`."""
        return self.settings.full_name

    @property
    def names(self) -> tuple[str, ...]:
        """Every `model` that it answers to."""
        return (self.name, *self.settings.aliases)

    @property
    def base(self) -> ModelName:
        """Its base model's name."""
        return self.settings.base

    @property
    def source(self) -> str:
        """Where it comes from."""
        return self.settings.source

    @property
    def owner(self) -> TenantId | None:
        """The one tenant that may use it; None is no bound."""
        return self.settings.tenant


@dataclass(frozen=True)
class AdapterVersion:
    """One content of one adapter, as it was found at its source.

    Attributes:
        id: Above 0, and of this adapter with this content alone, for ever.
        name: The adapter's.
        source: Where it was found.
        content: SHA-256 of its files.
        mark: Another one when a file at the source is another; empty if this version has ended.
        rank: Its greatest.
        modules: Last names of the modules that it changes.
        n_bytes: Of its weights as engines load them.
        created_s: When it was first found.
        changed: The store's version when it became the current one.
    """

    id: int
    name: str
    source: str
    content: str
    mark: str
    rank: int
    modules: tuple[str, ...]
    n_bytes: int
    created_s: float
    changed: int = 0


@dataclass(frozen=True)
class AdapterChanges:
    """What changed in the store.

    Attributes:
        adapters: Registered adapters as they are now.
        deleted: Names of registered adapters that are gone.
        versions: Versions that became the current ones.
    """

    adapters: tuple[Adapter, ...] = ()
    deleted: tuple[str, ...] = ()
    versions: tuple[AdapterVersion, ...] = ()

    def __len__(self) -> int:
        return len(self.adapters) + len(self.deleted) + len(self.versions)


class AdapterRegistry:
    """Every adapter by its names. Changed and read on one event loop."""

    def __init__(self) -> None:
        self._stored: dict[str, Adapter] = {}
        self._declared: dict[str, Adapter] = {}
        self._families: tuple[AdapterFamily, ...] = ()
        self._aliases: dict[str, str] = {}
        self._current: dict[tuple[str, str], AdapterVersion] = {}
        """The newest version of each (name, source), those that have ended included."""
        self._known: list[str] | None = None
        """Names that may be listed, in order; None where that is to be worked out anew."""
        self._members: dict[str, Adapter] = {}
        """What families were found to say of a name; kept for those that have a version."""
        self.on_gone: Callable[[list[AdapterRef]], None] = lambda refs: None
        """Called with versions that requests got until now, and get no more."""

    def declare(self, settings: AdaptersSettings) -> None:
        """Replaces what the config file says."""
        fresh = {entry.full_name: Adapter(entry) for entry in settings.declared}
        families = tuple(sorted(settings.families, key=lambda f: (-len(f.prefix), f.source)))
        # Any that was ever found may have been of a family: thousands, so only if these change.
        of_families = {name for name, _ in self._current if families != self._families}
        with self._parting({*self._declared, *fresh, *of_families}):
            self._declared = fresh
            if families != self._families:
                self._families = families
                self._members.clear()
            self._index()

    def clear_stored(self) -> None:
        """Forgets what the store said; all of it comes again."""
        self._stored.clear()
        self._current.clear()
        self._members.clear()
        self._index()

    def apply(self, changes: AdapterChanges) -> None:
        """Takes what changed in the store."""
        registered = {adapter.name for adapter in changes.adapters}
        found = {version.name for version in changes.versions}
        with self._parting({*registered, *found, *changes.deleted}):
            self._apply(changes)

    def _apply(self, changes: AdapterChanges) -> None:
        for name in changes.deleted:
            self._stored.pop(name, None)
        for adapter in changes.adapters:
            self._stored[adapter.name] = adapter
        for version in changes.versions:
            place = (version.name, version.source)
            known = self._current.get(place)
            if known is None or known.changed <= version.changed:
                self._current[place] = version
            if known is None:
                self._known = None
        if changes.adapters or changes.deleted:
            self._index()

    @contextlib.contextmanager
    def _parting(self, names: Iterable[str]) -> Iterator[None]:
        """Says afterwards which versions of these adapters are the current ones no more."""
        before = {ref for name in names if (ref := self._current_ref(name)) is not None}
        yield
        gone = sorted(before - {self._current_ref(ref.name) for ref in before}, key=lambda r: r.id)
        if gone:
            self.on_gone(gone)

    def _current_ref(self, name: str) -> AdapterRef | None:
        adapter = self.find(name)
        version = None if adapter is None else self.current(adapter)
        if adapter is None or version is None:
            return None
        return ref_of(version, adapter.base)

    def find(self, name: str) -> Adapter | None:
        """Returns the adapter that a request means by this name, whoever may use it; None is none.

        One of a family may turn out not to exist when its source is looked at.
        """
        name = self._aliases.get(name, name)
        return self._declared.get(name) or self._stored.get(name) or self._member(name)

    def current(self, adapter: Adapter) -> AdapterVersion | None:
        """Returns the newest version; None until the adapter was looked at, or if it ended."""
        version = self._current.get((adapter.name, adapter.source))
        return version if version is not None and version.mark else None

    def known(self, after: str = "") -> Iterator[Adapter]:
        """Every adapter that is declared, registered or was found in a family, by name.

        Args:
            after: Only those with a name behind this one's; an alias stands for its adapter.
        """
        after = self._aliases.get(after, after)
        if self._known is None:
            found = {name for name, _ in self._current}
            self._known = sorted(found | self._stored.keys() | self._declared.keys())
        for name in self._known[bisect_right(self._known, after) :]:
            adapter = self._declared.get(name) or self._stored.get(name) or self._member(name)
            if adapter is not None and (adapter.origin != "family" or self.current(adapter)):
                yield adapter

    def holder_of_alias(self, alias: str) -> str | None:
        """Returns the adapter that answers to an alias, or None."""
        return self._aliases.get(alias)

    def _member(self, name: str) -> Adapter | None:
        """Names can be made up without end, so only those are kept that were found to be there."""
        if name in self._members:
            return self._members[name]
        adapter = self._find_in_family(name)
        if adapter is not None and self.current(adapter) is not None:
            self._members[name] = adapter
        return adapter

    def _find_in_family(self, name: str) -> Adapter | None:
        base, _, rest = name.partition(":")
        for family in self._families:
            member = rest.removeprefix(family.prefix)
            if family.base != base or not rest.startswith(family.prefix):
                continue
            if is_adapter_name(rest) and is_adapter_name(member):
                settings = AdapterSettings(
                    name=rest,
                    base=family.base,
                    source=member_of(family.source, member),
                    tenant=family.tenant,
                )
                return Adapter(settings, "family")
        return None

    def _index(self) -> None:
        self._known = None
        merged = self._stored | self._declared
        self._aliases = {
            alias: adapter.name
            for adapter in sorted(merged.values(), key=lambda a: (a.origin == "declared", a.name))
            for alias in adapter.settings.aliases
        }


def ref_of(version: AdapterVersion, base: ModelName) -> AdapterRef:
    """Return how requests carry a version."""
    return AdapterRef(version.id, version.name, base, version.content, version.source)
