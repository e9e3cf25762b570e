"""Brings a model's files to where an engine can read them."""

import hashlib
import logging
import shutil
import tempfile
from pathlib import Path

import fsspec
from filelock import FileLock

from serve_app.config_model import (
    EmbeddedSource,
    HuggingFaceSource,
    LocalSource,
    ObjectStoreSource,
    Source,
)
from serve_app.embedded_model import default_cache_dir, prepare_embedded_model
from serve_app.errors import EngineStartError

logger = logging.getLogger(__name__)

_PACKAGE_OF_SCHEME = {"s3": "s3fs", "gs": "gcsfs"}


def fetch_model(source: Source) -> str:
    """Returns what vLLM takes as `model`: a folder on this machine or a hub's id.

    Hub models are fetched by vLLM itself, into the hub's own cache. May take minutes.

    Raises:
        EngineStartError: The model cannot be had; says what to do.
    """
    match source:
        case EmbeddedSource():
            return str(prepare_embedded_model(progress=logger.info))
        case HuggingFaceSource():
            return source.id
        case LocalSource():
            return _check_folder(Path(source.path))
        case ObjectStoreSource():
            return _download(source.uri, default_cache_dir() / "objects")


def _check_folder(path: Path) -> str:
    if not (path / "config.json").is_file():
        raise EngineStartError(
            f"source.path {str(path)!r} holds no config.json on this node. Name the folder with "
            "the model's config.json, weights and tokenizer, on every node that runs its engines."
        )
    return str(path)


def _download(uri: str, cache: Path) -> str:
    """Copies a bucket's folder once; another content of it is another copy."""
    scheme = uri.partition("://")[0]
    try:
        files = fsspec.filesystem(scheme)
    except ImportError as error:
        raise EngineStartError(
            f"source.uri {uri!r} needs the package {_PACKAGE_OF_SCHEME[scheme]}: {error}. "
            "Install arriero with its extra object-store."
        ) from error
    try:
        listing = files.find(uri, detail=True)
    except OSError as error:
        raise EngineStartError(f"source.uri {uri!r} cannot be read: {error}") from error
    if not any(name.endswith("/config.json") for name in listing):
        raise EngineStartError(f"source.uri {uri!r} holds no config.json; check the folder's name.")
    target = cache / _fingerprint(uri, listing)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{target.name}.lock"):
        if not target.exists():
            _copy_folder(files, uri, target)
    return str(target)


def _fingerprint(uri: str, listing: dict[str, dict[str, object]]) -> str:
    """Changes when a file of the folder does."""
    parts = [uri]
    for name, info in sorted(listing.items()):
        parts += [name, str(info.get("size")), str(info.get("ETag") or info.get("etag") or "")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _copy_folder(files: fsspec.AbstractFileSystem, uri: str, target: Path) -> None:
    """All or nothing: copies beside the target and renames."""
    logger.info("Fetching %s.", uri)
    staging = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
    try:
        files.get(uri.rstrip("/") + "/", f"{staging}/", recursive=True)
        staging.rename(target)
    except OSError as error:
        raise EngineStartError(f"source.uri {uri!r} could not be copied: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
