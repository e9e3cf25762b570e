"""What a platform keeps in memory of tenants that it has seen."""

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import uvloop

from bench.arriero_system import describe_model
from bench.load import Ask, run_load
from bench.report import Figure, print_table, say
from bench.systems import MODEL_NAME, NotRunningError
from serve_app.config import Settings, parse_settings
from serve_app.keys import hash_key
from tests.support.platform import LocalPlatform

_TENANTS = 10_000
_STEP = 5_000
_CLIENTS = 32


def watch_memory(n_requests: int) -> dict[str, Figure]:
    """Asks as 10,000 tenants in turn, and looks at the process every 5,000 requests.

    What each tenant leaves behind once is there after the first 10,000; from then on it has to stay
    flat. Client and platform are one process.

    Raises:
        NotRunningError: A request went wrong.
    """
    rows, sizes_mib = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with LocalPlatform(_many_tenants(folder), folder) as platform:
            for done in range(_STEP, n_requests + 1, _STEP):
                _ask_as_many(platform.url, done - _STEP, _STEP)
                gc.collect()
                sizes_mib[done] = psutil.Process().memory_info().rss / (1 << 20)
                lines = platform.metrics.render().count("\n")
                rows.append([f"{done:,}", f"{sizes_mib[done]:.0f}", f"{lines:,}"])
                say(f"{done:,} requests: {sizes_mib[done]:.0f} MiB, {lines:,} lines of metrics")
    print_table("Memory", ["requests", "resident MiB", "lines of metrics"], rows)
    growth = sizes_mib[n_requests] / sizes_mib[_TENANTS]
    return {"memory_after_all_vs_after_each_tenant_once": Figure(growth, "<= 1.03")}


def _many_tenants(folder: Path) -> Settings:
    model = describe_model(MODEL_NAME, {"kind": "echo", "max_num_seqs": 1024})
    tenants = [
        {"id": f"tenant-{i}", "keys": [{"hash": hash_key(f"key-{i}")}]} for i in range(_TENANTS)
    ]
    return parse_settings(
        {
            "models": [model],
            "auth": {"kind": "keys"},
            "tenants": tenants,
            "store": {"state_dir": str(folder / "state")},
            "logging": {"level": "WARNING"},
        }
    )


def _ask_as_many(url: str, first: int, n_requests: int) -> None:
    def asks() -> Iterator[Ask]:
        for i in range(first, first + n_requests):
            body = b'{"model": "%s", "prompt": "One two three", "max_tokens": 4}'
            key = f"key-{i % _TENANTS}"
            yield Ask("/v1/completions", body % MODEL_NAME.encode(), False, None, 4, key)

    result = uvloop.run(run_load(f"{url}/v1", asks(), _CLIENTS, n_requests))
    if result.n_errors:
        raise NotRunningError(f"{result.n_errors} errors, such as {result.errors}")
