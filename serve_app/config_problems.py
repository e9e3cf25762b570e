"""Turns pydantic's errors into problems that name path, value and remedy, in plain words."""

import difflib
import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_LONGEST_VALUE = 80
_SECRET_PATH = re.compile(r"\b(auth|env|url)\b|(key|token|secret|password)s?\b(?<!tokens)", re.I)
_LOCATION_OF_MOVED = {
    "reasoning_parser": "write it as engine.args.reasoning_parser",
    "max_model_len": "write it as engine.args.max_model_len",
    "max_num_seqs": "write it as engine.args.max_num_seqs",
    "host": "the address to listen on is http_options.host, at the top of the file",
    "port": "the port to listen on is http_options.port, at the top of the file",
}

Location = tuple[int | str, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: Where, such as `models[1].engine.args.max_model_len`; empty for the whole.
        value: What was written there, ready to print; None when nothing was, when it is long, or
            when it may be secret.
        text: What is wrong and what to do.
    """

    path: str
    value: str | None
    text: str

    def __str__(self) -> str:
        """Return the two lines that a person reads."""
        place = self.path or "args"
        return f"  {place}{'' if self.value is None else f' = {self.value}'}\n      {self.text}"


def list_problems(title: str, problems: Sequence[Problem]) -> str:
    """Return one text with every problem."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{title} ({count}):", *(str(problem) for problem in problems)])


def describe_invalid(error: ValidationError, root: type[BaseModel]) -> list[Problem]:
    """Return one problem for each error that pydantic found while it validated `root`."""
    errors = error.errors(include_url=False)
    return [_describe(details, root) for details in errors if not _is_echo(details, errors)]


def _is_echo(details: ErrorDetails, errors: list[ErrorDetails]) -> bool:
    """Return whether a list is called too short only because its entries are not valid."""
    place = details["loc"]
    return details["type"] == "too_short" and any(
        other["loc"][: len(place)] == place for other in errors if other is not details
    )


def find_unknown_keys(
    value: object, annotation: object, location: Location = ()
) -> Iterator[Problem]:
    """Yield a problem for each key that a section, not ours and more lenient, would ignore."""
    annotation = _strip(annotation)
    section = _as_section(annotation)
    if section and isinstance(value, Mapping):
        for key, inner in value.items():
            place = (*location, str(key))
            if key in section.model_fields:
                yield from find_unknown_keys(inner, _step_into(section, key), place)
            else:
                remedy = suggest(str(key), section.model_fields, list_all=True)
                yield Problem(join_path(place), None, f"is not a setting here; {remedy}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from find_unknown_keys(inner, _step_into(annotation, i), (*location, i))


def show_value(value: object, path: str = "") -> str | None:
    """Return the value as a person wrote it, or None if it is long, nested or may be secret."""
    if _SECRET_PATH.search(path):
        return None
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple | set):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a huge number"
    if isinstance(value, str | int | float | bool | None):
        text = json.dumps(value)
        return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
    return f"a {type(value).__name__}"


def join_path(location: Iterable[int | str]) -> str:
    """Return `models[0].name` for `("models", 0, "name")`."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif re.fullmatch(r"[A-Za-z_][\w-]{0,63}", step):
            path += f".{step}" if path else step
        else:
            path += f"[{json.dumps(step[:64])}]"
    return path


def extend_path(path: str, name: object) -> str:
    """Return the path of the entry `name` below `path`."""
    step = join_path((str(name),))
    return f"{path}{step}" if step.startswith("[") else f"{path}.{step}"


def explain_bound(details: ErrorDetails) -> str | None:
    """Return what is wrong and what to do if the value is out of bounds, else None."""
    words = _BOUND_WORDS.get(details["type"])
    return words.format(**details.get("ctx", {})) if words else None


def suggest(name: str, known: Iterable[str], *, list_all: bool = False) -> str:
    """Return the remedy for an unknown name: the one that was probably meant, or the known ones.

    Args:
        name: The unknown name.
        known: The names there are.
        list_all: List them even if they are many.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name.replace("-", "_"), names, n=1)
    close = close or difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    if list_all or len(names) <= 20:
        return f"known: {', '.join(names)}."
    return "remove it."


def _describe(details: ErrorDetails, root: type[BaseModel]) -> Problem:
    steps, section = _locate(details["loc"], root)
    kind = details["type"]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _describe_tag(details, steps, section)
    path = join_path(steps)
    text = _explain(details, str(steps[-1]) if steps else "", section)
    shown = None if kind == "missing" else show_value(details["input"], path)
    if kind in ("value_error", "too_short", "extra_forbidden") and shown in ("a mapping", "a list"):
        shown = None
    return Problem(path, shown, text)


def _describe_tag(
    details: ErrorDetails, steps: Location, section: type[BaseModel] | None
) -> Problem:
    assert section is not None, "only fields of sections are unions"
    written = details["input"]
    shown = show_value(written["kind"]) if "kind" in written else None
    union = _strip(section.model_fields[str(steps[-1])].annotation)
    kinds = (_as_section(_strip(part)) for part in get_args(union))
    expected = ", ".join(repr(_kind_of(kind)) for kind in kinds if kind)
    return Problem(join_path((*steps, "kind")), shown, f"must be one of {expected}.")


def _explain(details: ErrorDetails, name: str, section: type[BaseModel] | None) -> str:
    """Return what is wrong and what to do; `section` is the one that holds the field `name`."""
    kind, context = details["type"], details.get("ctx", {})
    if kind == "value_error":
        return f"{context['error']}."
    if kind == "extra_forbidden":
        known = section.model_fields if section else ()
        return f"is not a setting here; {_LOCATION_OF_MOVED.get(name) or suggest(name, known)}"
    if kind == "missing":
        field = section.model_fields.get(name) if section else None
        return f"is required. {_one_line(field.description) if field else ''}".rstrip()
    return explain_bound(details) or _TYPE_WORDS.get(kind, f"{details['msg'].lower()}.")


_BOUND_WORDS = {
    "greater_than": "must be greater than {gt}.",
    "greater_than_equal": "must be at least {ge}.",
    "less_than": "must be less than {lt}.",
    "less_than_equal": "must be at most {le}.",
    "literal_error": "must be one of {expected}.",
    "too_short": "must have at least {min_length} entry.",
    "string_too_short": "must not be empty.",
}
_TYPE_WORDS = {
    "int_type": "must be an integer, without quotes.",
    "int_from_float": "must be an integer, without a fraction.",
    "int_parsing_size": "is too large.",
    "float_type": "must be a number, without quotes.",
    "finite_number": "must be a finite number.",
    "string_type": "must be text; put it in quotes.",
    "string_unicode": "must be valid Unicode text.",
    "bool_type": "must be true or false, without quotes.",
    "tuple_type": "must be a list.",
    "dict_type": "must be a mapping of names to values.",
    "model_type": "must be a mapping of settings.",
    "model_attributes_type": "must be a mapping of settings.",
    "invalid_key": "has a key that is not text; put the key in quotes.",
}


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _locate(location: Location, root: type[BaseModel]) -> tuple[Location, type[BaseModel] | None]:
    """Return the location as a person would give it, and the section that its last step is in.

    pydantic adds a step for the chosen alternative of a union and one for "this is about the key".
    """
    steps: list[int | str] = []
    current: object = root
    holder: type[BaseModel] | None = None
    for step in location:
        current = _strip(current)
        if _is_union(current):
            current = _choose(current, step)
            continue
        if step == "[key]":
            continue
        steps.append(step)
        holder = _as_section(current)
        current = _step_into(current, step)
    return tuple(steps), holder


def _strip(annotation: object) -> object:
    """Return the annotation without Annotated and without `| None`."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if _is_union(annotation):
        rest = [part for part in get_args(annotation) if part is not types.NoneType]
        return _strip(rest[0]) if len(rest) == 1 else annotation
    return annotation


def _is_union(annotation: object) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _choose(union: object, tag: int | str) -> object:
    for part in get_args(union):
        section = _as_section(part)
        if section and "kind" in section.model_fields and tag == _kind_of(section):
            return section
    return None


def _as_section(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _kind_of(section: type[BaseModel]) -> str:
    return str(get_args(section.model_fields["kind"].annotation)[0])


def _step_into(annotation: object, step: int | str) -> object:
    section = _as_section(annotation)
    if section:
        field = section.model_fields.get(str(step))
        return field.annotation if field else None
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    if get_origin(annotation) in (tuple, list):
        return get_args(annotation)[0]
    return None
