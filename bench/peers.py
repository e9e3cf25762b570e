"""What the compared systems need and this platform does not, kept out of its environment.

Each peer gets a folder of its own in the user's cache, installed once by pip in pinned versions.
"""

import fcntl
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.report import say
from serve_app.embedded_model import default_cache_dir

RAY_LLM_PACKAGES = ("pyarrow==26.0.1",)
"""What `import ray.serve.llm` misses in an environment with `ray[serve]` and vLLM."""
LITELLM = "litellm[proxy]==1.106.2"


class PeerMissingError(RuntimeError):
    """A compared system cannot be installed; the text is pip's."""


def ray_llm_folder() -> Path:
    """Returns a folder for PYTHONPATH with what Ray Serve LLM needs besides.

    Raises:
        PeerMissingError: pip cannot install it.
    """
    folder = _folder("ray-llm", RAY_LLM_PACKAGES)
    with _once(folder) as is_missing:
        if is_missing:
            say(f"installing {' '.join(RAY_LLM_PACKAGES)} for Ray Serve LLM")
            _pip(Path(sys.executable), "--no-deps", "--target", str(folder), *RAY_LLM_PACKAGES)
    return folder


def litellm_python() -> Path:
    """Returns the Python of an environment with LiteLLM's proxy in it.

    Raises:
        PeerMissingError: pip cannot install it.
    """
    folder = _folder("litellm", (LITELLM,))
    python = folder / "bin" / "python"
    with _once(folder) as is_missing:
        if is_missing:
            say(f"installing {LITELLM} into an environment of its own")
            venv.create(folder, with_pip=True, clear=True)
            _pip(python, LITELLM)
    return python


def _folder(name: str, packages: tuple[str, ...]) -> Path:
    versions = "-".join(package.partition("==")[2] for package in packages)
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return default_cache_dir() / "bench" / f"{name}-{versions}-{python}"


@contextmanager
def _once(folder: Path) -> Iterator[bool]:
    """Gives whether a folder is still to be filled; one process fills it, others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = folder / ".installed"
        yield not done.exists()
        done.touch()


def _pip(python: Path, *args: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PeerMissingError((done.stderr or done.stdout).strip()[-1000:])
