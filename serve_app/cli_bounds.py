"""Limits and budgets as options of the `arriero` command, and as it shows them."""

import argparse
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def add_bounds(parser: argparse.ArgumentParser, section: str, form: type[BaseModel]) -> None:
    """Adds an option for each bound of a section of terms."""
    for name, field in form.model_fields.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"{section}.{name}",
            type=_read_bound,
            metavar="N",
            help=f"{(field.description or '').split('.')[0].lower()}; none lifts it",
        )


def bounds_of(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Returns the bounds that were given, by section; None for those to be lifted."""
    bounds: dict[str, dict[str, Any]] = {}
    for place, value in vars(options).items():
        section, _, name = place.partition(".")
        if name and value is not None:
            bounds.setdefault(section, {})[name] = None if value == "none" else value
    return bounds


def show_bounds(bounds: Mapping[str, Any]) -> str:
    """Returns bounds for people, in one line."""
    flat = {name: value for name, value in bounds.items() if value and name != "models"}
    texts = [f"{name}={value:g}" for name, value in flat.items()]
    texts += [f"{model}:…" for model in bounds.get("models", {})]
    return ", ".join(texts) or "none"


def _read_bound(text: str) -> int | float | str:
    if text == "none":
        return text
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor none") from None
