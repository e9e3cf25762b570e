"""Checks a mapping against the fields of one of vLLM's dataclasses, without building it."""

import dataclasses
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from serve_app.config_problems import (
    Problem,
    explain_bound,
    extend_path,
    show_value,
    suggest,
)

_SCALAR_WORDS: dict[object, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    types.NoneType: "null",
}
_CONTAINER_WORDS: dict[object, str] = {list: "a list", set: "a list", dict: "a mapping"}


class Fields:
    """The fields of a dataclass: their names, types and bounds.

    Scalars are compared strictly (`"32"` is not an integer); containers of scalars are compared as
    a whole; mappings for nested dataclasses are compared by name, recursively; other types are left
    to vLLM.
    """

    def __init__(self, dataclass: type, words: str) -> None:
        """Store what to check against; `words` complete "is not …" for an unknown name."""
        self._dataclass = dataclass
        self._words = words

    def find_problems(self, values: Mapping[Any, Any], path: str) -> Iterator[Problem]:
        """Yield a problem for each entry that the dataclass would not take."""
        fields = _public_fields(self._dataclass)
        for name, value in values.items():
            place = extend_path(path, name)
            if not isinstance(name, str) or name not in fields:
                remedy = suggest(str(name), fields)
                yield Problem(place, show_value(value, place), f"is not {self._words}; {remedy}")
            elif value is not None or fields[name].default is not None:
                yield from _find_value_problems(value, _type_of(fields[name]), place)


def _find_value_problems(value: object, annotation: object, path: str) -> Iterator[Problem]:
    nested = _nested_dataclass(annotation)
    if nested and isinstance(value, Mapping):
        yield from Fields(nested, f"a field of vLLM's {nested.__name__}").find_problems(value, path)
    elif nested and not _admits_none(annotation, value):
        yield Problem(path, show_value(value, path), "must be a mapping.")
    elif not nested and _is_plain(annotation):
        yield from _find_type_problem(value, annotation, path)


def _find_type_problem(value: object, annotation: object, path: str) -> Iterator[Problem]:
    try:
        _adapter(annotation).validate_python(value, strict=_is_scalar(annotation))
    except ValidationError as error:
        yield Problem(path, show_value(value, path), _explain(error, value, annotation))
    except RecursionError:
        yield Problem(path, None, "is nested too deeply.")


def _explain(error: ValidationError, value: object, annotation: object) -> str:
    choices = _choices(annotation)
    if choices and isinstance(value, str):
        return f"is not one of the values that vLLM takes; {suggest(value, choices, list_all=True)}"
    errors = error.errors(include_url=False, include_input=False)
    bounds = (bound for details in errors if (bound := explain_bound(details)))
    is_container = isinstance(value, Mapping | list) and not _is_scalar(annotation)
    if is_container and errors[0]["loc"]:
        return "has an entry of the wrong type."
    return next(bounds, f"must be {_words_for(annotation)}.")


@functools.cache
def _public_fields(dataclass: type) -> dict[str, dataclasses.Field[Any]]:
    return {
        field.name: field
        for field in dataclasses.fields(dataclass)
        if field.init and not field.name.startswith("_")
    }


def _type_of(field: dataclasses.Field[Any]) -> object:
    """Return the field's type, with the bounds that vLLM's configurations put on that name."""
    return _bounded_types().get(field.name, field.type)


@functools.cache
def _bounded_types() -> dict[str, object]:
    """Return the scalar fields of vLLM's configurations that have bounds.

    vLLM's engine arguments repeat these fields by name, but not the bounds.
    """
    from vllm.config import CacheConfig, LoRAConfig, ModelConfig, SchedulerConfig

    found: dict[str, object] = {}
    configs: tuple[Any, ...] = (CacheConfig, LoRAConfig, ModelConfig, SchedulerConfig)
    for config in configs:
        for name, info in config.__pydantic_fields__.items():
            if info.metadata and _is_scalar(info.annotation):
                found[name] = Annotated[(info.annotation, *info.metadata)]
    return found


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def _parts(annotation: object) -> tuple[object, ...]:
    """Return the alternatives of a type: one, or the members of its union."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(part for member in get_args(annotation) for part in _parts(member))
    return (annotation,)


def _nested_dataclass(annotation: object) -> type | None:
    for part in _parts(annotation):
        if isinstance(part, type) and dataclasses.is_dataclass(part):
            return part
    return None


def _admits_none(annotation: object, value: object) -> bool:
    return value is None and types.NoneType in _parts(annotation)


def _is_scalar(annotation: object) -> bool:
    return all(part in _SCALAR_WORDS or get_origin(part) is Literal for part in _parts(annotation))


def _is_plain(annotation: object) -> bool:
    """Return whether the type is made of scalars and containers of them, so can be checked."""
    return all(
        part in _SCALAR_WORDS
        or part in _CONTAINER_WORDS
        or part is Any
        or get_origin(part) is Literal
        or (get_origin(part) in _CONTAINER_WORDS and all(map(_is_plain, get_args(part))))
        for part in _parts(annotation)
    )


def _choices(annotation: object) -> list[str]:
    """Return the texts that a type allows, if it allows only listed ones."""
    literals = [part for part in _parts(annotation) if get_origin(part) is Literal]
    return [choice for part in literals for choice in get_args(part) if isinstance(choice, str)]


def _words_for(annotation: object) -> str:
    words: list[str] = []
    for part in _parts(annotation):
        if get_origin(part) is Literal:
            words.append("one of " + ", ".join(map(repr, get_args(part))))
        else:
            origin = get_origin(part) or part
            words.append(_SCALAR_WORDS.get(part) or _CONTAINER_WORDS.get(origin, "something else"))
    return " or ".join(dict.fromkeys(words))
