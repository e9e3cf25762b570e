"""Make the environment in `.venv`, from a machine that has only Python and pip.

    python3 -m cluster.bootstrap          what runs the platform
    python3 -m cluster.bootstrap --dev    also what tests and checks need
    python3 -m cluster.bootstrap --sky    .venv-sky: SkyPilot, which asks for other versions

Installs the pinned lists under constraints/ with uv, which it installs first with the user's own
pip, so that pip's settings apply. A stamp in the environment holds a digest of everything that
decides its content: with an equal stamp there is nothing to do. The stamp is written last, so an
interrupted run is seen and continued by the next one.

Runs under the system's Python, so: standard library only.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.machine import GIB, has_nvidia_gpu, observe_free_disk_bytes
from cluster.pip_settings import parse_pip_config, uv_environment

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
OLDEST, NEWEST = (3, 11), (3, 13)
PROFILES = ("cpu", "gpu")

_STAMP = "arriero-stamp.json"
_UNFINISHED = "arriero-unfinished"
_RECIPE = 1  # raise it when this file installs the same lists differently
_NEEDED_GIB = {"cpu": 6, "gpu": 16}


class SetupError(Exception):
    """The set-up cannot go on; the text says why and what to do."""


@dataclass(frozen=True)
class Stamp:
    """What an environment was made from."""

    profile: str
    dev: bool
    digest: str
    """SHA-256 of the pinned lists, pyproject.toml and the Python version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Make the environment; return the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m cluster.bootstrap", description=__doc__)
    parser.add_argument("--dev", action="store_true", help="also install what tests need")
    parser.add_argument("--sky", action="store_true", help="make SkyPilot's environment instead")
    options = parser.parse_args(argv)
    try:
        check_python(sys.version_info[:2])
        check_path(ROOT)
        if options.sky:
            make_sky_environment()
        else:
            make_environment(choose_profile(os.environ), options.dev)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again: it continues.", file=sys.stderr)
        return 130
    return 0


def check_python(version: tuple[int, ...]) -> None:
    """Refuse a Python that the pinned packages are not made for."""
    if not OLDEST <= version <= NEWEST:
        found, oldest, newest = (".".join(map(str, v)) for v in (version, OLDEST, NEWEST))
        raise SetupError(
            f"this is Python {found}; Arriero needs {oldest} to {newest}. Install one and name it: "
            f"`make up PYTHON=python{oldest}`."
        )


def check_path(root: Path) -> None:
    """Refuse a folder whose path Ray's shell command for workers would take apart."""
    if any(character.isspace() or character in "'\"$`:;&|" for character in str(root)):
        raise SetupError(
            f"the path {str(root)!r} has a space or a character that is special to a shell; Ray "
            "cannot start its workers from there. Move the repository to a plain path."
        )


def choose_profile(environ: Mapping[str, str]) -> str:
    """Return `$PROFILE`, else gpu where an NVIDIA driver answers, else cpu."""
    asked = environ.get("PROFILE", "")
    if not asked:
        return "gpu" if has_nvidia_gpu() else "cpu"
    if asked not in PROFILES:
        raise SetupError(f"PROFILE={asked} is unknown; say PROFILE=cpu or PROFILE=gpu.")
    return asked


def make_environment(profile: str, dev: bool) -> None:
    """Bring `.venv` to what the pinned lists say, unless it is there already."""
    (ROOT / ".arriero").mkdir(exist_ok=True)
    with _only_one_process(ROOT / ".arriero" / "bootstrap.lock"):
        present = read_stamp(VENV)
        dev = dev or (present is not None and present.dev)  # what was installed stays
        wanted = Stamp(profile, dev, compute_digest(pin_files(profile, dev)))
        if present == wanted and _python_of(VENV).exists():
            return
        if present is not None and present.profile != profile:
            _say(f"The environment holds profile {present.profile}; making it anew for {profile}")
            shutil.rmtree(VENV)
        _check_disk(profile)
        _make_venv()
        _install(wanted)
        _write_stamp(wanted)
        _say(f"The environment is ready: {VENV} (profile {profile})")


def make_sky_environment() -> None:
    """Bring `.venv-sky` to constraints/sky.txt, with the uv that `.venv` has."""
    uv, settings = find_uv(), uv_settings()
    sky = ROOT / ".venv-sky"
    _run_uv([str(uv), "venv", "--quiet", "--allow-existing", str(sky)], settings)
    pins = str(ROOT / "constraints" / "sky.txt")
    _run_uv([str(uv), "pip", "sync", "--python", str(sky), pins], settings)
    _say(f"SkyPilot is ready: {sky}/bin/sky")


def pin_files(profile: str, dev: bool) -> list[Path]:
    """Return the lists whose packages make up an environment, all of them and no others."""
    names = [profile, "model", "uv"] + (["dev"] if dev else [])
    return [ROOT / "constraints" / f"{name}.txt" for name in names]


def compute_digest(pins: Sequence[Path]) -> str:
    """Return a digest of everything that decides what an environment contains."""
    digest = hashlib.sha256(f"{_RECIPE} {sys.version_info[:3]} {ROOT}".encode())
    for file in [ROOT / "pyproject.toml", *pins]:
        digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def read_stamp(venv: Path) -> Stamp | None:
    """Return what a finished environment was made from; None when it is unfinished or missing."""
    try:
        return Stamp(**json.loads((venv / _STAMP).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def find_uv() -> Path:
    """Return uv in the environment, installing it there with the user's pip when it is missing."""
    uv = VENV / "bin" / "uv"
    wanted = (ROOT / "constraints" / "uv.txt").read_text().strip()
    if uv.exists() and _run_quietly([str(uv), "--version"]).stdout.split()[1:2] == [wanted[4:]]:
        return uv
    _say(f"Installing {wanted} with pip")
    done = _run_quietly([*_pip_into_venv(), "install", "--quiet", "--retries", "2", wanted])
    if done.returncode != 0:
        raise SetupError(f"pip could not install {wanted}.\n{explain_failure(done.stderr)}")
    return uv


def uv_settings() -> dict[str, str]:
    """Return the environment to run uv with: ours, and pip's sources in uv's words."""
    listing = _run_quietly([_base_python(), "-m", "pip", "config", "list"]).stdout
    environ = {**os.environ, "VIRTUAL_ENV": str(VENV)}
    return {**environ, **uv_environment(parse_pip_config(listing), environ)}


def torch_options(uv: Path, settings: Mapping[str, str], pin: str) -> list[str]:
    """Return uv's options for CPU torch: none where the configured sources have it."""
    probe = [str(uv), "pip", "install", "--dry-run", "--no-deps", pin]
    if _run_quietly(probe, settings).returncode == 0:
        _say(f"{pin} comes from your configured package sources")
        return []
    _say(f"{pin} is not in your configured package sources: taking it from PyTorch's CPU index")
    return ["--torch-backend", "cpu"]


def explain_failure(output: str) -> str:
    """Return the last lines of an installer's output with the remedy that fits them."""
    causes = {
        "the disk is full": ("No space left", "Disk quota exceeded"),
        "no package source answers": (
            "Failed to fetch",
            "NewConnectionError",
            "name resolution",
            "dns error",
            "timed out",
            "Connection refused",
            "Network is unreachable",
            "ProxyError",
            "error sending request",
        ),
        "the package source is not trusted": (
            "CERTIFICATE_VERIFY_FAILED",
            "invalid peer certificate",
        ),
    }
    remedies = {
        "the disk is full": "Free some space (a GPU environment takes 16 GB, a CPU one 6 GB).",
        "no package source answers": "Check the network, or point pip at a source that you reach "
        "(`pip config set global.index-url ...`, `global.find-links`, `global.proxy`).",
        "the package source is not trusted": "Tell pip your certificate authority: "
        "`pip config set global.cert /path/to/ca.pem`.",
    }
    tail = "\n".join(f"  {line}" for line in output.strip().splitlines()[-6:])
    for cause, signs in causes.items():
        if any(sign in output for sign in signs):
            remedy = f"{remedies[cause]} Then run the same command again."
            return f"{tail}\nIt looks as if {cause}. {remedy}"
    return f"{tail}\nMend what it says and run the same command again: it continues."


def _make_venv() -> None:
    python = _python_of(VENV)
    if VENV.exists() and _run_quietly([str(python), "--version"]).returncode != 0:
        _say("The environment's Python is gone; making the environment anew")
        shutil.rmtree(VENV)
    if VENV.exists() and not _has_this_python():
        _say("The environment is for another Python; making it anew")
        shutil.rmtree(VENV)
    if VENV.exists():
        return
    _say(f"Making the environment {VENV}")
    # Without pip: Debian's Python has no ensurepip unless python3-venv is installed.
    done = _run_quietly([_base_python(), "-m", "venv", "--without-pip", str(VENV)])
    if done.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        raise SetupError(
            f"Python could not make an environment.\n{explain_failure(done.stderr + done.stdout)}\n"
            "If its module venv is missing, install it (Debian, Ubuntu: apt install python3-venv)."
        )


def _has_this_python() -> bool:
    code = "import sys; print(*sys.version_info[:2])"
    found = _run_quietly([str(_python_of(VENV)), "-c", code]).stdout.split()
    return found == [str(part) for part in sys.version_info[:2]]


def _pip_into_venv() -> list[str]:
    """Return the start of a pip command that installs into the environment."""
    python = _python_of(VENV)
    if _run_quietly([str(python), "-m", "pip", "--version"]).returncode == 0:
        return [str(python), "-m", "pip"]
    outside = [_base_python(), "-m", "pip", "--python", str(python)]
    if _run_quietly([*outside, "--version"]).returncode == 0:
        return outside
    if _run_quietly([str(python), "-m", "ensurepip"]).returncode == 0:
        return [str(python), "-m", "pip"]
    raise SetupError(
        f"{_base_python()} has no pip (22.3 or newer). Install it (Debian, Ubuntu: "
        "apt install python3-pip python3-venv) and run the same command again."
    )


def _install(wanted: Stamp) -> None:
    unfinished = VENV / _UNFINISHED
    again = ["--reinstall"] if unfinished.exists() else []  # a killed run may leave half a package
    (VENV / _STAMP).unlink(missing_ok=True)
    unfinished.touch()
    uv, settings = find_uv(), uv_settings()
    pins = pin_files(wanted.profile, wanted.dev)
    if wanted.profile == "cpu":
        options = torch_options(uv, settings, _torch_pin(pins[0]))
    else:
        options = ["--constraints", str(ROOT / "constraints" / "gpu-excludes.txt")]
    _say("Installing the pinned packages (a few minutes the first time)")
    command = [str(uv), "pip", "sync", "--compile-bytecode", *again, *options]
    _run_uv([*command, *map(str, pins)], settings)
    _say("Installing Arriero itself")
    own = ["--quiet", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    _run_uv([str(uv), "pip", "install", *own], settings)


def _torch_pin(pins: Path) -> str:
    return next(line for line in pins.read_text().splitlines() if line.startswith("torch=="))


def _run_uv(command: Sequence[str], settings: Mapping[str, str]) -> None:
    """Run uv with its own progress on the terminal; when it fails, ask why and say it."""
    if subprocess.run(command, env=dict(settings), check=False).returncode == 0:
        return
    dry = _run_quietly([*command[:3], "--dry-run", *command[3:]], settings)  # costs nothing
    free_bytes = observe_free_disk_bytes(VENV)
    reason = "No space left" if free_bytes < GIB // 4 else dry.stderr
    raise SetupError(
        f"uv could not install the packages (its message is above).\n{explain_failure(reason)}"
    )


def _write_stamp(stamp: Stamp) -> None:
    partial = VENV / f"{_STAMP}.partial"
    partial.write_text(json.dumps(asdict(stamp)))
    partial.replace(VENV / _STAMP)
    (VENV / _UNFINISHED).unlink(missing_ok=True)


def _check_disk(profile: str) -> None:
    needed_gib, free_bytes = _NEEDED_GIB[profile], observe_free_disk_bytes(ROOT)
    if read_stamp(VENV) is None and free_bytes < needed_gib * GIB:
        raise SetupError(
            f"{free_bytes / GIB:.1f} GB are free in {ROOT}; profile {profile} needs"
            f" {needed_gib} GB. "
            "Free some space, or clone the repository to a larger disk."
        )


def _base_python() -> str:
    """Return the Python that an active virtual environment was made from, or the running one."""
    return str(getattr(sys, "_base_executable", "") or sys.executable)


def _python_of(venv: Path) -> Path:
    return venv / "bin" / "python"


def _run_quietly(
    command: Sequence[str], environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


@contextmanager
def _only_one_process(lock: Path) -> Iterator[None]:
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("Another process is making the environment; waiting for it")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _say(line: str) -> None:
    print(f"==> {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
