"""What a limit costs: a reservation and its settlement, and a request that nothing limits.

    python -m bench.ledger            10,000 reservations a case
    python -m bench.ledger --quick    2,000

A real ledger with its journal on disk and real clients over the wire, in one process: processor
time is that of both ends. `alone` is one reservation at a time, which is what a request waits for;
`64 at once` is what the ledger can do.
"""

import argparse
import asyncio
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.report import Figure, describe_run, print_figures, print_table
from deployments.ledger import Ledger
from deployments.ledger_journal import FileJournal
from serve_app.catalog import Caller, Catalog
from serve_app.catalog_limits import CatalogLimits
from serve_app.config_limits import LedgerSettings, PriceSpec
from serve_app.config_tenants import DeclaredTenant
from serve_app.gateway.ledger_client import LedgerClient
from serve_app.gateway.meter import Meter
from serve_app.ledger_messages import Granted, LeaseId, Reserve, Usage
from serve_app.messages import Endpoint
from serve_app.names import KeyId, ModelName, TenantId

_MODEL = ModelName("llama")
_TENANTS = 100
_LIMITS = {"requests_per_min": 1_000_000, "total_tokens_per_min": 1_000_000_000}
_BUDGETS = {"tokens_per_month": 1_000_000_000_000}


@dataclass(frozen=True)
class Cost:
    """What was measured."""

    p50_ms: float
    p99_ms: float
    pairs_per_s: float
    cpu_us: float
    """Processor time of a reservation and its settlement, both ends."""
    journal_bytes: float


async def measure(clients: Sequence[LedgerClient], n_at_once: int, n_pairs: int) -> list[float]:
    """Reserves and settles; returns the seconds that each reservation took, sorted."""
    waits_s: list[float] = []
    work = iter(range(n_pairs))

    async def reserve_and_settle(client: LedgerClient) -> None:
        for i in work:
            tenant = TenantId(f"tenant-{i % _TENANTS}")
            lease = LeaseId(uuid.uuid4().hex)
            ask = Reserve(lease, tenant, KeyId(""), _MODEL, 1, 100, (256,))
            started_s = time.perf_counter()
            answer = await client.reserve(ask, Usage)
            waits_s.append(time.perf_counter() - started_s)
            assert isinstance(answer, Granted)
            client.settle(lease, Usage(100, 50))

    turns = [reserve_and_settle(clients[i % len(clients)]) for i in range(n_at_once)]
    await asyncio.gather(*turns)
    return sorted(waits_s)


async def run_cases(n_pairs: int) -> dict[str, Cost]:
    """Measures one client, and 64 of four gateways."""
    tenants = [
        DeclaredTenant.model_validate({"id": f"tenant-{i}", "limits": _LIMITS, "budgets": _BUDGETS})
        for i in range(_TENANTS)
    ]
    costs: dict[str, Cost] = {}
    with tempfile.TemporaryDirectory(prefix="bench-ledger-") as folder:
        journal = FileJournal(Path(folder))
        ledger = Ledger(CatalogLimits(Catalog(tenants)), LedgerSettings(), journal, "127.0.0.1")
        await ledger.start()
        running = asyncio.create_task(ledger.run())

        async def find() -> Endpoint:
            return ledger.endpoint

        clients = [LedgerClient(find, f"gateway-{i}".encode(), 10.0, 30.0) for i in range(4)]
        for client in clients:
            client.start()
        await measure(clients, 4, 200)
        for name, n_at_once in (("alone", 1), ("64 at once", 64)):
            bytes_before, cpu_s, started_s = journal.n_bytes, time.process_time(), time.monotonic()
            waits_s = await measure(clients, n_at_once, n_pairs)
            costs[name] = Cost(
                1e3 * waits_s[len(waits_s) // 2],
                1e3 * waits_s[len(waits_s) * 99 // 100],
                n_pairs / (time.monotonic() - started_s),
                1e6 * (time.process_time() - cpu_s) / n_pairs,
                (journal.n_bytes - bytes_before) / n_pairs,
            )
        for client in clients:
            client.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        ledger.close()
    return costs


async def measure_unlimited(n_requests: int) -> float:
    """Returns the processor time, in µs, of metering a request that nothing limits."""
    client = LedgerClient(_find_none, b"gateway", 10.0, 30.0)
    caller: Caller = Catalog().anonymous()
    started_s = time.thread_time()
    for _ in range(n_requests):
        meter = Meter(caller, client, None)
        meter.begin(_MODEL, PriceSpec(), is_max_tokens_given=True)
        meter.plan("request", 100, (256,))
        assert not meter.is_limited
        meter.close("finished", 200)
    return 1e6 * (time.thread_time() - started_s) / n_requests


async def _find_none() -> Endpoint:
    raise ConnectionError


def main() -> None:
    parser = argparse.ArgumentParser(description="What a limit costs.")
    parser.add_argument("--quick", action="store_true", help="a fifth of the reservations")
    args = parser.parse_args(sys.argv[1:])
    n_pairs = 2_000 if args.quick else 10_000
    print(describe_run(f"make bench-ledger{' ARGS=--quick' if args.quick else ''}"))
    costs = asyncio.run(run_cases(n_pairs))
    unlimited_us = asyncio.run(measure_unlimited(n_pairs))
    rows = [
        (
            name,
            f"{cost.p50_ms:.2f}",
            f"{cost.p99_ms:.2f}",
            f"{cost.pairs_per_s:.0f}",
            f"{cost.cpu_us:.0f}",
            f"{cost.journal_bytes:.0f}",
        )
        for name, cost in costs.items()
    ]
    head = ("reservations", "p50 ms", "p99 ms", "a second", "CPU µs", "journal bytes")
    print_table("What a reservation and its settlement cost", head, rows)
    print(f"\nMetering a request that nothing limits: {unlimited_us:.1f} µs, no message.")
    figures = {
        "reserve_p50_ms": Figure(costs["alone"].p50_ms, "<= 1.0"),
        "pairs_per_s": Figure(costs["64 at once"].pairs_per_s, ">= 2000"),
        "unlimited_us": Figure(unlimited_us, "<= 50"),
    }
    print_figures("ledger", figures, is_quick=args.quick)


if __name__ == "__main__":
    main()
