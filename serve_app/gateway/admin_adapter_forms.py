"""What the admin API takes and gives of adapters, as it stands in the OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_app.adapter_registry import Adapter, AdapterVersion, Origin
from serve_app.config_adapters import AdapterSettings
from serve_app.config_section import Section


class VersionView(Section):
    """What was found at an adapter's source."""

    id: int
    """Of this adapter with this content alone, for ever."""
    sha256: str
    """Of its files."""
    rank: int
    """Its greatest."""
    target_modules: tuple[str, ...]
    """The modules that it changes."""
    bytes: int
    """Of its weights as engines load them."""
    found_s: float


class AdapterView(AdapterSettings):
    """An adapter, where it was named, and the version that requests get now."""

    object: Literal["adapter"] = "adapter"
    id: str
    """Base model and adapter, as clients name it."""
    origin: Origin
    """`declared` in the config file, registered by an `admin`, or found in a `family`."""
    created_s: float | None
    version: VersionView | None
    """None until the adapter is first used."""


class AdapterList(Section):
    """Adapters, by name."""

    object: Literal["list"] = "list"
    data: tuple[AdapterView, ...]
    has_more: bool
    """Whether there are others behind the last of these."""


class LoadForm(BaseModel):
    """VLLM's request to load an adapter."""

    model_config = ConfigDict(extra="ignore")

    lora_name: Annotated[str, Field(min_length=1, max_length=256)]
    """`base-model:adapter`, or a plain name where only one model takes adapters."""
    lora_path: Annotated[str, Field(min_length=1, max_length=1024)]
    """Where it comes from, as `source` of /admin/adapters."""
    load_inplace: bool = False
    """Whether one of this name is replaced."""


class UnloadForm(BaseModel):
    """VLLM's request to unload an adapter."""

    model_config = ConfigDict(extra="ignore")

    lora_name: Annotated[str, Field(min_length=1, max_length=256)]


def view_adapter(adapter: Adapter, version: AdapterVersion | None) -> AdapterView:
    """Return how an adapter is shown to an administrator."""
    fields: dict[str, Any] = {
        **adapter.settings.model_dump(),
        "id": adapter.name,
        "origin": adapter.origin,
        "created_s": adapter.created_s or None,
        "version": _view_version(version) if version is not None else None,
    }
    return AdapterView.model_validate(fields)


def _view_version(version: AdapterVersion) -> VersionView:
    return VersionView(
        id=version.id,
        sha256=version.content,
        rank=version.rank,
        target_modules=version.modules,
        bytes=version.n_bytes,
        found_s=version.created_s,
    )
