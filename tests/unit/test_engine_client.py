"""The remote engine client stands where AsyncLLM stands, so it must have what AsyncLLM has."""

import ast
import inspect
import textwrap

import pytest
from vllm.v1.engine.async_llm import AsyncLLM

from serve_app.gateway.engine_client import RemoteEngineClient

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def list_attributes(kind: type) -> set[str]:
    """Attributes that a class's own constructor sets on `self`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind.__init__)))  # type: ignore[misc]  # read, not called
    stores = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {
        node.attr
        for node in stores
        if isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def test_remote_client_sets_every_attribute_that_async_llm_sets() -> None:
    assert list_attributes(AsyncLLM) <= list_attributes(RemoteEngineClient)
