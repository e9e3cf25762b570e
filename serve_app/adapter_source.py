"""Where an adapter comes from, as one text.

    file:///folder · s3://bucket/folder · gs://bucket/folder · hf://owner/name@revision

People may also write an absolute path, or a hub's id as `owner/name` or `owner/name@revision`.
"""

import re
from typing import Annotated

from pydantic import AfterValidator

_PATH = re.compile(r"/[^\x00-\x1f\x7f#]*")
_BUCKET = re.compile(r"(s3|gs)://[^/\s#?]+/[^\s#?\x00-\x1f\x7f]+")
_HUB = re.compile(r"(?:hf://)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_FORMS = (
    "must be an absolute path, file:///folder, s3://bucket/folder, gs://bucket/folder or a hub's "
    "id such as owner/name, without '..' and '#'"
)


def parse_source(text: str) -> str:
    """Return a source in its one form.

    Raises:
        ValueError: It is none; says which forms there are.
    """
    path = text.removeprefix("file://") if text.startswith("file:///") else text
    if len(text) > 1024 or ".." in re.split("[/@]", path):
        raise ValueError(_FORMS)
    if _PATH.fullmatch(path) is not None:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        return f"file:///{'/'.join(parts)}"
    if _BUCKET.fullmatch(text) is not None:
        return text.rstrip("/")
    if (hub := _HUB.fullmatch(text)) is not None:
        return f"hf://{hub[1]}@{hub[2] or 'main'}"
    raise ValueError(_FORMS)


def parse_folder(text: str) -> str:
    """Return the source of a whole family: a folder or a bucket's prefix.

    Raises:
        ValueError: It is none.
    """
    source = parse_source(text)
    if source.startswith("hf://"):
        raise ValueError("must be a folder or a bucket's prefix; a hub's id is one adapter")
    return source


def member_of(family: str, name: str) -> str:
    """Return the source of one adapter of a family. The name has been checked (`names`)."""
    return f"{family}{name}" if family.endswith("/") else f"{family}/{name}"


AdapterSource = Annotated[str, AfterValidator(parse_source)]
FamilySource = Annotated[str, AfterValidator(parse_folder)]
