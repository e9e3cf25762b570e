"""Tells Serve how many engines of a model are wanted: its `AutoscalingConfig.policy`.

Runs in Serve's controller, which must not be kept: it reads a number that the model's router has
written into Ray's key-value store (`deployments.autoscaler`), and decides nothing. Requests do not
pass Serve's handles, so Serve's own figures are zero here. While nothing is written, and when Ray's
store is out of reach, the number stays as it is.

Serve pickles this module whole, so it imports nothing of ours.
"""

import time
from typing import Any

from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

NAMESPACE = "arriero"
_READ_EVERY_S = 0.5


class EngineScaler:
    """A policy of Serve: a context in, a number of replicas out.

    Args:
        model: The model whose engines these are.
        deployment: Another one each time, so that Serve takes this for new (`serve_app.main`).
    """

    def __init__(self, model: str, deployment: str = "") -> None:
        self._model = model
        self._read_s = float("-inf")
        self._wanted: int | None = None

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Returns the number of engines, and no state; called at every tick of Serve's."""
        now_s = time.monotonic()
        if now_s - self._read_s >= _READ_EVERY_S:
            self._read_s = now_s
            self._wanted = read_wanted(self._model)
        wanted = self._wanted if self._wanted is not None else context.target_num_replicas
        return int(wanted), {}


class RayBoard:
    """Where routers write how many engines are wanted (`deployments.autoscaler.Board`)."""

    def read(self, model: str) -> int | None:
        """Returns what was written last; None if nothing was, or it cannot be read."""
        return read_wanted(model)

    def write(self, model: str, engines: int) -> None:
        """Replaces what is written."""
        _internal_kv_put(_key(model), str(engines).encode(), overwrite=True, namespace=NAMESPACE)


def read_wanted(model: str) -> int | None:
    """Returns how many engines are wanted; None if that is not known."""
    try:
        value = _internal_kv_get(_key(model), namespace=NAMESPACE)
    except Exception:
        # Whatever keeps Ray's store from answering: the controller goes on as it was.
        return None
    return int(value) if value is not None and value.isdigit() else None


def _key(model: str) -> str:
    return f"engines-wanted/{model}"
