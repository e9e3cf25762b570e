"""SkyPilot for tests: its environment, and a HOME of its own with an invented catalogue."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.sky_catalog import write_catalog

ROOT = Path(__file__).parents[2]
_PYTHON = ROOT / ".venv-sky" / "bin" / "python"


def ensure_sky() -> Path:
    """Returns the Python of SkyPilot's environment, made first if need be."""
    if not (_PYTHON.parent / "sky").exists():
        subprocess.run([sys.executable, "-m", "cluster.bootstrap", "--sky"], cwd=ROOT, check=True)
    return _PYTHON


def make_home(home: Path) -> dict[str, str]:
    """Returns the environment variables of a SkyPilot that knows only this folder."""
    write_catalog(home)
    return {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
    }


def plan_files(files: Sequence[Path], environ: dict[str, str]) -> tuple[list[dict[str, Any]], str]:
    """Returns the plan of each file, and all that SkyPilot printed."""
    script = str(Path(__file__).with_name("sky_plan.py"))
    done = subprocess.run(
        # -P: the script's folder has modules named like Python's own.
        [str(ensure_sky()), "-P", script, *map(str, files)],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], output
