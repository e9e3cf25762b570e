"""Says where every process shows its metrics.

The book is Ray's own key-value store on the head node. Who has not announced itself for a while is
gone; so nobody has to be told of a process that was killed. Who belongs to no cluster has a file.
"""

import time
from collections.abc import Iterable
from pathlib import Path
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


class FileBook:
    """A file for Prometheus' `file_sd_configs`: one process, until another takes its place.

    Args:
        file: The process's own.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def announce(self, target: MetricsTarget) -> None:
        """Writes the file, unless it says so already."""
        if target in self.read():
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._file.with_suffix(".draft")  # Prometheus must not read half of it.
        draft.write_bytes(msgspec.json.encode(as_discovery([target])))
        draft.rename(self._file)

    def withdraw(self, target: MetricsTarget) -> None:
        """Removes the file, unless it is another's by now."""
        if target in self.read():
            self._file.unlink(missing_ok=True)

    def read(self) -> list[MetricsTarget]:
        """Returns whom it names; that one may have been killed."""
        try:
            found = msgspec.json.decode(self._file.read_bytes(), type=list[_Listed])
        except (OSError, msgspec.DecodeError):
            return []
        return [
            MetricsTarget(address, one.labels.process, one.labels.replica)
            for one in found
            for address in one.targets
        ]


class _Labels(msgspec.Struct):
    process: str
    replica: str


class _Listed(msgspec.Struct):
    targets: list[str]
    labels: _Labels


def as_discovery(targets: Iterable[MetricsTarget]) -> list[dict[str, Any]]:
    """Returns targets in the form of Prometheus' `http_sd_configs` and `file_sd_configs`."""
    return [
        {
            "targets": [target.address],
            "labels": {"process": target.process, "replica": target.replica},
        }
        for target in targets
    ]
