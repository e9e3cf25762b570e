"""Says where every process shows its metrics.

The book is Ray's own key-value store on the head node. Who has not announced itself for a while is
gone; so nobody has to be told of a process that was killed.
"""

import time
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

GONE_S = 30.0
"""Who was not announced for so long is gone."""
_NAMESPACE = b"arriero-metrics"


class MetricsTarget(msgspec.Struct, frozen=True):
    """Where one process shows its metrics."""

    address: str
    process: str
    """What it is, as in the table: `gateway`."""
    replica: str
    """Unique in the cluster."""
    seen_s: float = 0.0
    """Seconds since 1970."""


class TargetBook(Protocol):
    """Knows every process's target. Calls may wait for the network."""

    def announce(self, target: MetricsTarget) -> None:
        """Enters a target, or keeps it from being forgotten."""

    def withdraw(self, target: MetricsTarget) -> None:
        """Removes one that ends."""

    def read(self) -> list[MetricsTarget]:
        """Returns those that were announced lately."""


class RayBook:
    """Kept by the head node of a Ray cluster.

    Args:
        address: HOST:PORT of the head, for a process beside the cluster, such as a fleet's
            controller. Empty is the cluster that this process belongs to.
    """

    def __init__(self, address: str = "") -> None:
        self._address = address
        self._client: Any = None

    def announce(self, target: MetricsTarget) -> None:
        """Enters a target, or keeps it from being forgotten."""
        fresh = msgspec.structs.replace(target, seen_s=time.time())
        key, value = target.replica.encode(), msgspec.json.encode(fresh)
        self._call("internal_kv_put", key, value, True, _NAMESPACE)

    def withdraw(self, target: MetricsTarget) -> None:
        """Removes one that ends."""
        self._call("internal_kv_del", target.replica.encode(), False, _NAMESPACE)

    def read(self) -> list[MetricsTarget]:
        """Returns those that were announced lately; forgets the others."""
        found = []
        for key in self._call("internal_kv_keys", b"", _NAMESPACE):
            value = self._call("internal_kv_get", key, _NAMESPACE)
            if value is None:
                continue
            target = msgspec.json.decode(value, type=MetricsTarget)
            if time.time() - target.seen_s < GONE_S:
                found.append(target)
            else:
                self._call("internal_kv_del", key, False, _NAMESPACE)
        return sorted(found, key=lambda target: target.replica)

    def _call(self, name: str, *args: Any) -> Any:
        self._client = self._client or self._connect()
        try:
            return getattr(self._client, name)(*args)
        except Exception:
            self._client = None  # The head may have been replaced: connect anew next time.
            raise

    def _connect(self) -> Any:
        if not self._address:
            from ray.experimental import internal_kv

            ours: Any = internal_kv
            return ours.internal_kv_get_gcs_client()
        from ray import _raylet

        gcs: Any = _raylet
        return gcs.GcsClient(address=self._address)


def as_discovery(targets: Iterable[MetricsTarget]) -> list[dict[str, Any]]:
    """Returns targets in the form of Prometheus' `http_sd_configs` and `file_sd_configs`."""
    return [
        {
            "targets": [target.address],
            "labels": {"process": target.process, "replica": target.replica},
        }
        for target in targets
    ]
