"""Brings a model's files to where an engine can read them."""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
            return _download(source.uri.rstrip("/"), default_cache_dir() / "objects")


def _check_folder(path: Path) -> str:
    if not (path / "config.json").is_file():
        raise EngineStartError(
            f"source.path {str(path)!r} holds no config.json on this node. Name the folder with "
            "the model's config.json, weights and tokenizer, on every node that runs its engines."
        )
    return str(path)


def _download(uri: str, cache: Path) -> str:
    """Copies a bucket's folder once; another content of it is another copy."""
    # An instance of its own, as fsspec's shared ones remember listings.
    files = fsspec.filesystem(uri.partition("://")[0], skip_instance_cache=True)
    with _explained(uri, "cannot be read"):
        listing = files.find(uri, detail=True)
    if not any(name.endswith("/config.json") for name in listing):
        raise EngineStartError(f"source.uri {uri!r} holds no config.json; check the folder's name.")
    target = cache / _fingerprint(uri, listing)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{target.name}.lock"):
        if not target.exists():
            _copy_folder(files, uri, target)
    return str(target)


@contextmanager
def _explained(uri: str, what: str) -> Iterator[None]:
    """Names the source and the remedy; each cloud's library has exceptions of its own."""
    try:
        yield
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise EngineStartError(
            f"source.uri {uri!r} {what}: {reason}. Check the address, and that the nodes which run "
            "this model's engines have the network and the credentials to read it."
        ) from error


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
        with _explained(uri, "could not be copied"):
            files.get(f"{uri}/", f"{staging}/", recursive=True)
            staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
