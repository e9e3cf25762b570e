"""Checks GPU names against those that Ray gives to nodes."""

from collections.abc import Iterator, Mapping
from typing import Any

from serve_app.config_problems import Problem, show_value, suggest


def find_gpu_type_problems(model: Mapping[Any, Any], path: str) -> Iterator[Problem]:
    """Yield a problem if the model asks for a GPU that Ray has no name for.

    Args:
        model: One entry of `models` as it was written; it need not be valid otherwise.
        path: Where that entry is, such as `models[0]`.
    """
    accelerator = model.get("accelerator")
    name = accelerator.get("type") if isinstance(accelerator, Mapping) else None
    if not isinstance(name, str):
        return
    known = _list_names()
    if name not in known:
        text = f"is not a GPU that Ray knows; {suggest(name, known, list_all=True)}"
        yield Problem(f"{path}.accelerator.type", show_value(name), text)


def _list_names() -> set[str]:
    from ray.util.accelerators import accelerators  # imports Ray: a second

    return {
        value
        for name, value in vars(accelerators).items()
        if not name.startswith("_") and isinstance(value, str)
    }
