"""Writes a page that is made of the code, or says that the one in the tree is out of date."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def write_or_check(
    argv: Sequence[str] | None, path: Path, page: str, module: str, words: str
) -> int:
    """Writes a page, or with `--check` only compares it; returns the exit status.

    Args:
        argv: The command's words; None is this process's.
        path: Where the page belongs.
        page: What it is to say.
        module: Whose command it is, for the remedy.
        words: What the command does, for `--help`.
    """
    parser = argparse.ArgumentParser(description=words)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    if not parser.parse_args(argv).check:
        path.write_text(page, "utf-8")
        return 0
    if path.exists() and path.read_text("utf-8") == page:
        return 0
    print(f"docs/{path.name} is out of date; run `python -m {module}`.", file=sys.stderr)
    return 1
