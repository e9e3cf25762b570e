"""The disk that "VMs" of this machine start from, with what clouds' images have: made once.

    python -m tests.support.vm_image     makes it, unless it is there

SkyPilot's images have its runtime, and a fleet's owner bakes the platform's environment and weights
into theirs. Both are installed here by the commands that would install them on a machine: those of
SkyPilot, and `make env`. It takes minutes and five gigabytes, and needs root. The VMs themselves
are without a network that leads anywhere.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.bootstrap import ROOT, VENV, pin_files, uv_settings
from tests.support.sky_environment import ensure_sky

_FOLDER = ROOT / ".arriero" / "vm"
_HERE = Path(__file__).parent
_UID = 1000
USER = "ubuntu"
"""As whom SkyPilot comes to its machines on AWS."""
HOME = Path("/home") / USER
WORKDIR = HOME / "sky_workdir"
"""Where SkyPilot copies a task's folder to: an environment belongs to one path."""
_SKY_PYTHON = "3.10"
"""Which SkyPilot wants on its nodes, and would download."""
_KEPT_ENVIRONMENT = ("PIP_", "UV_", "SSL_", "REQUESTS_")
_RUNTIME = """\
import re
from sky.backends import wheel_utils
from sky.skylet import constants as c

folder, digest = wheel_utils.build_sky_wheel()
install = c.RAY_SKYPILOT_INSTALLATION_COMMANDS
for name, value in (("sky_wheel_hash", digest), ("cloud", "aws")):
    install = install.replace("{" + name + "}", value)
print(folder)
print(digest)
print(c.UV_INSTALLATION_COMMANDS, c.SKY_USER_ENV_CREATION_COMMANDS, install)
"""
_SUDO = '#!/bin/bash\nwhile [[ "$1" == -* ]]; do shift; done\nexec "$@"\n'
"""Nothing is done as root: a VM's kernel is this machine's."""
_SSHD = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
UsePAM no
AllowUsers {user}
MaxSessions 100
MaxStartups 100
Subsystem sftp internal-sftp
"""


def shared_folders() -> list[str]:
    """Return the folders of the Pythons, which VMs share with this machine."""
    return [str(Path(sys.base_prefix)), str(_find_sky_python().parents[1])]


def ensure_image() -> Path:
    """Return the image's folder; made first if what it is made from has changed."""
    image = _FOLDER / f"image-{_digest()}"
    if not image.exists():
        _check_programs()
        shutil.rmtree(_FOLDER, ignore_errors=True)
        partial = _FOLDER / "partial"
        partial.mkdir(parents=True)
        _make_root(partial)
        _install_runtime(partial)
        _install_platform(partial)
        partial.rename(image)
    return image


def _check_programs() -> None:
    """Looks for what an image takes from this machine; an sshd comes with a user of its own.

    Raises:
        SystemExit: Something is missing; says what to install.
    """
    packages = {"sshd": "openssh-server", "ssh-keygen": "openssh-client", "rsync": "rsync"}
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    missing = [packages[name] for name in packages if shutil.which(name, path=path) is None]
    if missing:
        raise SystemExit(f"Install {', '.join(missing)} first; nothing of it need run.")


def wheels(image: Path) -> Path:
    """Return the folder of SkyPilot's own wheel, which nodes get; making it takes a network."""
    return image.parent / "home" / ".sky" / "wheels"


def _digest() -> str:
    files = [Path(__file__), ROOT / "pyproject.toml", ROOT / "constraints" / "sky.txt"]
    files += pin_files("cpu", dev=False)
    content = b"\0".join(file.read_bytes() for file in files)
    return hashlib.sha256(content + sys.version.encode()).hexdigest()[:12]


def _make_root(root: Path) -> None:
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    for name in (
        "usr",
        "opt",
        "proc",
        "sys",
        "dev",
        "run",
        "root",
        "var/log",
        "var/lib",
        "var/tmp",
    ):
        (root / name).mkdir(parents=True)
    (root / "tmp").mkdir(mode=0o777)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    left_out = shutil.ignore_patterns("shadow*", "gshadow*", "ssh_host_*")
    shutil.copytree("/etc", root / "etc", symlinks=True, ignore=left_out)
    _make_user(root)
    _make_commands(root / "bin-local")
    (root / "etc" / "ssh" / "sshd_vm").write_text(_SSHD.format(user=USER))
    key = root / "etc" / "ssh" / "ssh_host_ed25519_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)


def _make_user(root: Path) -> None:
    passwd = root / "etc" / "passwd"
    others = [line for line in passwd.read_text().splitlines() if f":{_UID}:" not in line]
    user = f"{USER}:x:{_UID}:{_UID}::{HOME}:/bin/bash"
    passwd.write_text("\n".join([*others, user]) + "\n")
    (root / "etc" / "shadow").write_text(
        f"root:*:19000:0:99999:7:::\n{USER}:*:19000:0:99999:7:::\n"
    )
    home = root / HOME.relative_to("/")
    shutil.copytree("/etc/skel", home, symlinks=True)
    uv = home / ".local" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    shutil.copy(VENV / "bin" / "uv", uv)
    settings = Path.home() / ".config" / "pip"
    if settings.exists():
        shutil.copytree(settings, home / ".config" / "pip")
    subprocess.run(["chown", "-R", f"{_UID}:{_UID}", str(home)], check=True)


def _make_commands(folder: Path) -> None:
    folder.mkdir()
    ours = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info[1]}"
    for name, script in {
        "sudo": _SUDO,
        # No links: a Python takes the libraries from beside the name by which it was called.
        "python3": f'#!/bin/sh\nexec {ours} "$@"\n',
        f"python{_SKY_PYTHON}": f'#!/bin/sh\nexec {_find_sky_python()} "$@"\n',
    }.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)


def _find_sky_python() -> Path:
    name = f"python{_SKY_PYTHON}"
    versions = (Path.home() / ".pyenv" / "versions").glob(f"{_SKY_PYTHON}.*")
    known = [shutil.which(name), *(str(folder / "bin" / name) for folder in versions)]
    for python in filter(None, known):
        done = subprocess.run([python, "--version"], capture_output=True, check=False)
        if done.returncode == 0:
            return Path(python).resolve()
    raise SystemExit(f"error: SkyPilot's nodes need {name}, which is not on the PATH.")


def _install_runtime(root: Path) -> None:
    """Run SkyPilot's own commands for a node."""
    home = _FOLDER / "home"
    home.mkdir()
    done = subprocess.run(
        [str(ensure_sky()), "-P", "-c", _RUNTIME],
        env={**os.environ, "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
        cwd=home,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    folder, digest, commands = done.stdout.split("\n", 2)
    wheel = root / (HOME / ".sky" / "wheels" / digest).relative_to("/")
    shutil.copytree(folder, wheel)
    subprocess.run(["chown", "-R", f"{_UID}:{_UID}", str(wheel.parents[1])], check=True)
    _run(root, ["bash", "-c", commands])


def _install_platform(root: Path) -> None:
    """Make the environment where a task's `make env` looks for it, and the small model's files."""
    workdir = root / WORKDIR.relative_to("/")
    copy_repository(workdir)
    subprocess.run(["chown", "-R", f"{_UID}:{_UID}", str(workdir)], check=True)
    prepare = "from serve_app.embedded_model import prepare_embedded_model as p; p()"
    _run(root, ["bash", "-c", f"cd {WORKDIR} && make env PROFILE=cpu"])
    _run(root, ["bash", "-c", f"cd {WORKDIR} && .venv/bin/python -c '{prepare}'"])


def copy_repository(folder: Path) -> None:
    """Copy the files that are not ignored, as SkyPilot would."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def _run(root: Path, command: Sequence[str]) -> None:
    """Run a command as the VM's user, with this machine's network."""
    kept = {k: v for k, v in uv_settings().items() if k.startswith(_KEPT_ENVIRONMENT)}
    environ = kept | {
        "HOME": str(HOME),
        "USER": USER,
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "UV_PYTHON_DOWNLOADS": "never",
        "VM_SHARED": " ".join(shared_folders()),
    }
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    user = ["/usr/bin/setpriv", f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups"]
    script = ["bash", str(_HERE / "vm_root.sh"), str(root)]
    subprocess.run([*namespaces, *script, *user, *command], env=environ, check=True)


if __name__ == "__main__":
    print(ensure_image())
