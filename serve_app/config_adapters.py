"""The settings' section on adapters: which there are, and what they may take."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from serve_app.adapter_source import AdapterSource, FamilySource
from serve_app.config_section import Seconds, Section
from serve_app.config_store import Where
from serve_app.names import AdapterNameText, ModelNameText, NamePrefixText, TenantIdText

if TYPE_CHECKING:
    from serve_app.config_model import ModelSettings

Aliases = Annotated[tuple[ModelNameText, ...], Field(strict=False, max_length=16)]


class AdapterSettings(Section):
    """One adapter."""

    name: AdapterNameText
    """What clients write after the base model's name and ':', as in `llama:sql`."""
    base: ModelNameText
    """Base model that it was trained for; its name, not an alias."""
    source: AdapterSource
    """Where it comes from: an absolute path, `file:///folder`, `s3://bucket/folder`,
    `gs://bucket/folder`, or a hub's id as `owner/name` or `owner/name@revision`."""
    tenant: TenantIdText | None = None
    """The one tenant that may use it. None means all that `allowed_models` lets."""
    aliases: Aliases = ()
    """Other names that clients may use for it, without the base model's."""

    @property
    def full_name(self) -> str:
        """Base model and adapter, as clients name it."""
        return f"{self.base}:{self.name}"


class AdapterFamily(Section):
    """Every adapter in a folder or under a bucket's prefix, each known when it is first used."""

    base: ModelNameText
    """Base model that they were trained for; its name, not an alias."""
    source: FamilySource
    """The folder, or the bucket's prefix. Each folder in it is one adapter, of that name."""
    prefix: NamePrefixText = ""
    """What their names begin with: with `team-`, the folder `sql` is `llama:team-sql`."""
    tenant: TenantIdText | None = None
    """The one tenant that may use them. None means all that `allowed_models` lets."""


class AdapterCacheSettings(Section):
    """The copies of adapters on each node's disk, shared by its engines and gateways."""

    path: Where | None = None
    """Folder on a local disk. None means `adapters` in the folder of cached models."""
    max_gib: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] = 50.0
    """Most that it may take, in GiB. The longest unused is removed first."""
    max_adapter_bytes: Annotated[int, Field(ge=1024, le=1 << 40)] = 2 << 30
    """Size of an adapter's weights above which it is refused. Importing one takes up to
    three times as much memory."""
    fetch_timeout_s: Seconds = 120.0
    """Seconds that fetching and checking one adapter may take."""
    workers: Annotated[int, Field(ge=1, le=64)] = 4
    """Adapters that one process fetches at the same time, each in a process of its own."""


class AdaptersSettings(Section):
    """LoRA adapters. Others are registered with `arriero adapters add`."""

    declared: Annotated[tuple[AdapterSettings, ...], Field(strict=False)] = ()
    """Adapters that are declared here."""
    families: Annotated[tuple[AdapterFamily, ...], Field(strict=False)] = ()
    """Folders or bucket prefixes full of adapters."""
    recheck_s: Seconds = 60.0
    """Seconds after which an adapter in use is looked up at its source again, for a new version."""
    cache: AdapterCacheSettings = AdapterCacheSettings()
    """Copies on each node's disk, and bounds on each."""


def find_adapter_conflict(
    adapters: AdaptersSettings, models: Sequence["ModelSettings"]
) -> str | None:
    """Return what adapters contradict, each other or the models, or None."""
    return _find_wrong_base(adapters, models) or _find_twice(adapters, models)


def _find_wrong_base(adapters: AdaptersSettings, models: Sequence["ModelSettings"]) -> str | None:
    by_name = {model.name: model for model in models}
    entries = [
        *((f"adapters.declared[{i}]", entry.base) for i, entry in enumerate(adapters.declared)),
        *((f"adapters.families[{i}]", entry.base) for i, entry in enumerate(adapters.families)),
    ]
    for place, base in entries:
        if base not in by_name:
            return (
                f"{place}.base is {base!r}, and models has {', '.join(by_name)}; name one of "
                "these (not an alias), or remove the entry"
            )
        if problem := why_no_adapters(by_name[base]):
            return f"{place}.base is {base!r}, {problem}"
    return None


def why_no_adapters(model: "ModelSettings") -> str | None:
    """Return why a model takes no adapters, and the remedy; None where it does."""
    if model.adapters is None:
        return "whose adapters is null; set it, `adapters: {}` takes every default"
    return None


def _find_twice(adapters: AdaptersSettings, models: Sequence["ModelSettings"]) -> str | None:
    of_models = [name for model in models for name in model.names]
    aliases = [alias for entry in adapters.declared for alias in entry.aliases]
    names = [entry.full_name for entry in adapters.declared]
    prefixes = [f"{entry.base}:{entry.prefix}" for entry in adapters.families]
    for what, texts in (
        ("adapters.declared has the adapter", names),
        ("adapters.families has the base and prefix", prefixes),
        ("models and adapters.declared have the name or alias", [*of_models, *aliases]),
    ):
        twice = sorted(text for text, count in Counter(texts).items() if count > 1)
        if twice:
            return f"{what} {twice[0]!r} twice; rename or remove one"
    return None
