"""Writes docs/configuration.md from the settings' sections, so that it cannot disagree with them.

python -m serve_app.config_reference            writes the page
python -m serve_app.config_reference --check    fails if the page is not what it would write
"""

import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from serve_app.config import Settings
from serve_app.engine_args import RESERVED_ARGS, RESERVED_ENV
from serve_app.generated_page import write_or_check
from serve_app.names import Form

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"

_INTRODUCTION = """\
# Configuration

<!-- Written by `python -m serve_app.config_reference` from the settings' docstrings. -->

The platform is configured by a Ray Serve config file. The top level belongs to Ray Serve:
`http_options` says where to listen, `applications` what to run. What stands under
`applications[].args` of the application with `import_path: serve_app.main:build` is described here.

`arriero check FILE` checks a file and starts nothing. Unknown keys, wrong types and settings that
contradict each other are errors, all listed at once. Numbers are not read out of quoted text.

Without keys (`auth.kind: "off"`) only a loopback address is accepted for `http_options.host`.
"""

_ENGINE_ARGS = """\
## Engine arguments

`engine.args` takes every argument of the installed vLLM under its own name, with underscores,
except these, which the platform sets itself:

| argument | instead |
|---|---|
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page or check it; return the exit status."""
    words = __doc__.split("\n", 1)[0]
    return write_or_check(argv, PAGE, render_page(), "serve_app.config_reference", words)


def render_page() -> str:
    """Return the page in Markdown."""
    sections = "\n".join(
        _render_section(path, section) for path, section in _walk(Settings, "args")
    )
    reserved = {**RESERVED_ARGS, "data_parallel_*": "set replicas"}
    rows = "".join(f"| `{name}` | {text} |\n" for name, text in sorted(reserved.items()))
    env = ", ".join(f"`{name}` ({text})" for name, text in sorted(RESERVED_ENV.items()))
    footer = f"\nIn the same way these are not for `engine.env`: {env}.\n"
    return f"{_INTRODUCTION}\n{sections}\n{_ENGINE_ARGS}{rows}{footer}"


def _walk(section: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield a section and those inside it, depth first, each with its path."""
    yield path, section
    for name, field in section.model_fields.items():
        inner = list(_sections_in(field.annotation))
        place = name if path == "args" else f"{path}.{name}"
        origin = get_origin(field.annotation)
        place += "[]" if origin is tuple else ".NAME" if origin is dict else ""
        for part in inner:
            suffix = f" (kind: {_kind_of(part)})" if len(inner) > 1 else ""
            yield from _walk(part, place + suffix)


def _sections_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, tuple, dict, Union, types.UnionType):
        for part in get_args(annotation):
            yield from _sections_in(part)


def _kind_of(section: type[BaseModel]) -> str:
    return str(get_args(section.model_fields["kind"].annotation)[0])


def _render_section(path: str, section: type[BaseModel]) -> str:
    title = f"## {path}" if path == "args" else f"### {path}"
    lines = [title, "", _one_line(section.__doc__), ""]
    lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
    lines += [_render_field(name, field) for name, field in section.model_fields.items()]
    return "\n".join(lines) + "\n"


def _render_field(name: str, field: FieldInfo) -> str:
    if name == "kind":
        kind = get_args(field.annotation)[0]
        return f"| `kind` | `{kind}` | {_show_default(field)} | Which alternative this is. |"
    words = ", ".join([_show_type(field.annotation), *_show_bounds(field)])
    return f"| `{name}` | {words} | {_show_default(field)} | {_describe(field)} |"


def _describe(field: FieldInfo) -> str:
    return _one_line(field.description).replace("None means", "`null` means")


def _show_type(annotation: object) -> str:
    """Return a type in a reader's words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return ", ".join([_show_type(parts[0]), *_show_metadata(parts[1:])])
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin is not dict and list(_sections_in(annotation)):
        return "list of sections" if origin is tuple else "section"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_show_type, parts))
    if origin is tuple:
        return f"list of {_show_type(parts[0])}"
    if origin is dict:
        return f"mapping of ({_show_type(parts[0])}) to ({_show_type(parts[1])})"
    return _TYPE_WORDS.get(annotation, "text")


_TYPE_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "integer",
    float: "number",
    types.NoneType: "null",
    Any: "anything",
}


def _show_bounds(field: FieldInfo) -> list[str]:
    return _show_metadata(field.metadata)


def _show_metadata(metadata: Sequence[Any]) -> list[str]:
    return [words for item in metadata if (words := _show_constraint(item))]


def _show_constraint(item: Any) -> str:
    match item:
        case AfterValidator(func=Form(words=words)):
            return words
        case FieldInfo():
            return ", ".join(_show_metadata(item.metadata))
        case annotated_types.Ge(ge=bound):
            return f"≥ {bound}"
        case annotated_types.Gt(gt=bound):
            return f"> {bound}"
        case annotated_types.Le(le=bound):
            return f"≤ {bound}"
        case annotated_types.MinLen(min_length=length):
            return "not empty" if length == 1 else f"at least {length}"
        case _:
            return ""


def _show_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel):
        return f"kind `{_kind_of(type(default))}`" if "kind" in type(default).model_fields else "-"
    if isinstance(default, dict | tuple) and not default:
        return "empty"
    return f"`{_as_yaml(default)}`"


def _as_yaml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_as_yaml, value))}]"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
