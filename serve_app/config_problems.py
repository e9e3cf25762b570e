"""Turns pydantic's errors into problems that name path, value and remedy, in plain words."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_LONGEST_VALUE = 80


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: Where, such as `models[1].engine.args.max_model_len`; empty for the whole.
        value: What was written there, ready to print; None when nothing was, or it may be secret.
        text: What is wrong and what to do, in one sentence or two.
    """

    path: str
    value: str | None
    text: str

    def __str__(self) -> str:
        """Return the two lines that a person reads."""
        place = self.path or "args"
        return f"  {place}{'' if self.value is None else f' = {self.value}'}\n      {self.text}"


def describe_invalid(
    error: ValidationError, raw: Mapping[str, Any], model: type[BaseModel]
) -> list[Problem]:
    """Return one problem for each of pydantic's errors."""
    return [Problem(".".join(map(str, e["loc"])), None, e["msg"]) for e in error.errors()]
