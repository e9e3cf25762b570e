"""Shows a process's metrics to Prometheus, and says where.

    process ── announces its address ──► book ◄── a gateway reads it ◄── Prometheus
       ▲                                                                     │
       └─────────────────────────── GET /metrics ────────────────────────────┘

The book is `serve_app.metrics_book`.
"""

import logging
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import generate_latest

from serve_app.metrics import Metrics
from serve_app.metrics_book import MetricsTarget, TargetBook

logger = logging.getLogger(__name__)

ANNOUNCE_EVERY_S = 5.0


class MetricsServer:
    """Serves `/metrics` on a port of its own until `stop`.

    Args:
        metrics: Of this process.
        host: Address that Prometheus reaches this process at.
        process: What it is, as in the table.
        replica: Unique in the cluster.
        book: Where it is announced; None announces it nowhere.
        port: 0 is any that is free.

    Raises:
        OSError: The port is not free.
    """

    def __init__(
        self,
        metrics: Metrics,
        host: str,
        process: str,
        replica: str,
        book: TargetBook | None,
        port: int = 0,
    ) -> None:
        self._metrics = metrics
        self._book = book
        self._server = ThreadingHTTPServer((host, port), self._make_handler())
        self._server.daemon_threads = True
        port = self._server.server_address[1]
        where = f"[{host}]" if ":" in host else host
        self.target = MetricsTarget(f"{where}:{port}", process, replica)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        ]
        if book is not None:
            self._threads.append(
                threading.Thread(target=self._announce, name="metrics-announce", daemon=True)
            )

    def start(self) -> None:
        """Begins to serve, in the background."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends serving."""
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        if self._book is not None:
            with suppress(Exception):  # It is forgotten soon anyway, and the cluster may be gone.
                self._book.withdraw(self.target)

    def _announce(self) -> None:
        assert self._book is not None
        was_away = False
        while not self._stopping.is_set():
            try:
                self._book.announce(self.target)
                was_away = False
            except Exception as error:  # The head node may be away for a while.
                if not was_away:
                    logger.warning("This process's metrics could not be announced: %s", error)
                was_away = True
            self._stopping.wait(ANNOUNCE_EVERY_S)

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        metrics = self._metrics

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = render_all(metrics) if self.path == "/metrics" else b""
                self.send_response(200 if body else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """A scrape is no news."""

        return Handler


def render_all(metrics: Metrics) -> bytes:
    """This platform's metrics, then what other packages have registered (vLLM, the process)."""
    return metrics.render().encode() + generate_latest()
