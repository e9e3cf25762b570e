"""Resolve the versions that pyproject.toml allows into the pinned lists under constraints/.

Run by `make constraints`, inside the environment that `cluster.bootstrap` made. Nothing is
downloaded but package metadata. The lists carry no addresses and no options.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.bootstrap import ROOT, SetupError, find_uv, torch_options, uv_settings

_TARGET = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_34")
_CPU_TORCH = "torch==2.13.0+cpu"
_HEADER = "# {what}. Made by `make constraints`; do not edit.\n"


def write_all_pins(folder: Path) -> None:
    """Write cpu.txt, gpu.txt, dev.txt, sky.txt; gpu and dev keep to the versions of cpu."""
    overrides = ["--overrides", str(folder / "overrides-cpu.txt")]
    cpu = resolve(["--extra", "cpu", *overrides], preferred=[], project=True)
    no_cpu_torch = ["--constraints", str(folder / "gpu-excludes.txt")]
    gpu = resolve(["--extra", "gpu", *no_cpu_torch], preferred=cpu, project=True)
    write_pins(folder / "cpu.txt", "Profile cpu", cpu)
    overrides += ["--constraints", str(folder / "cpu.txt")]
    with_dev = resolve(
        ["--extra", "cpu", "--extra", "dev", *overrides], preferred=cpu, project=True
    )
    dev = [pin for pin in with_dev if pin not in set(cpu)]
    sky = resolve([], preferred=[], project=False)
    write_pins(folder / "gpu.txt", "Profile gpu, Linux x86_64", gpu)
    write_pins(folder / "dev.txt", "Tests and checks, on top of a profile", dev)
    write_pins(folder / "sky.txt", "SkyPilot, in an environment of its own", sky)


def resolve(options: Sequence[str], preferred: Sequence[str], project: bool) -> list[str]:
    """Return sorted `name==version` lines that satisfy the project, or SkyPilot alone.

    Args:
        options: Further options of `uv pip compile`.
        preferred: Pins to keep where nothing forbids them.
        project: Whether to resolve pyproject.toml; else its `sky` extra by itself.
    """
    output = ROOT / ".arriero" / "pins.txt"
    output.parent.mkdir(exist_ok=True)
    kept = [pin for pin in preferred if not pin.startswith("torch==")]
    output.write_text("\n".join(kept) + "\n")
    source = ROOT / "pyproject.toml" if project else _sky_requirement(output.parent)
    uv, settings = find_uv(), uv_settings()
    command = [str(uv), "pip", "compile", str(source), "-o", str(output)]
    command += ["--quiet", "--no-annotate", "--no-header", *_TARGET, *options]
    if "cpu" in options:
        command += torch_options(uv, settings, _CPU_TORCH)
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SetupError(f"uv could not resolve {source.name}:\n{done.stderr.strip()}")
    return parse_pins(output.read_text())


def parse_pins(text: str) -> list[str]:
    """Return the pins in `text`, refusing anything that is not `name==version`."""
    lines = [line.strip() for line in text.splitlines()]
    pins = [line for line in lines if line and not line.startswith("#")]
    for pin in pins:
        if "==" not in pin or "://" in pin or pin.startswith("-"):
            raise SetupError(
                f"{pin!r} is not of the form name==version; no address may be committed"
            )
    return sorted(pins)


def write_pins(file: Path, what: str, pins: Sequence[str]) -> None:
    """Write one generated list."""
    file.write_text(_HEADER.format(what=what) + "\n".join(pins) + "\n")
    print(f"{file.relative_to(ROOT)}: {len(pins)} packages")


def _sky_requirement(folder: Path) -> Path:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    file = folder / "sky.in"
    file.write_text("\n".join(project["optional-dependencies"]["sky"]) + "\n")
    return file


def main() -> int:
    """Write every list; return the exit status."""
    try:
        write_all_pins(ROOT / "constraints")
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
