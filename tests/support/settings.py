"""Settings as a person would write them, to be varied by tests."""

from typing import Any


def write_model(name: str = "tiny", **changes: Any) -> dict[str, Any]:
    """Return a valid entry of `models` with the changes over it."""
    entry: dict[str, Any] = {
        "name": name,
        "source": {"kind": "embedded"},
        "engine": {"kind": "echo"},
        "accelerator": {"kind": "cpu"},
    }
    return entry | changes


def write_vllm_model(args: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a valid entry of `models` whose engine is vLLM with these arguments."""
    return write_model(engine={"kind": "vllm", "args": args}, **changes)


def write_args(*models: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return valid `args` with these models (one by default) and the changes over them."""
    return {"models": list(models) or [write_model()]} | changes
