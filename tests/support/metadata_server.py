"""Metadata services of three clouds on loopback, by the clouds' documents."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlparse


class MetadataServer(ThreadingHTTPServer):
    """What it says is set by tests."""

    daemon_threads = True

    def __init__(
        self, handler: type[BaseHTTPRequestHandler], address: tuple[str, int] = ("127.0.0.1", 0)
    ) -> None:
        super().__init__(address, handler)
        self.action: dict[str, str] | None = None
        self.actions: dict[str, dict[str, str]] = {}
        """By the address of who asks, for a server of several machines."""
        self.hint: dict[str, str] | None = None
        self.tokens = {"first"}
        self.preempted = threading.Event()
        self.events: list[dict[str, object]] = []
        self.failures = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: MetadataServer
    answer_headers: ClassVar[dict[str, str]] = {}

    def log_message(self, *args: object) -> None:
        """Says nothing."""

    def answer(self, status: int, body: object = "") -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        self.send_response(status)
        for name, value in self.answer_headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def fails(self) -> bool:
        if self.server.failures == 0:
            return False
        self.server.failures -= 1
        self.answer(500)
        return True


class Aws(_Handler):
    """IMDSv2: no data without a token, which a PUT with a lifetime gives."""

    def do_PUT(self) -> None:
        if self.path != "/latest/api/token":
            self.answer(404)
        elif not self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "").isdigit():
            self.answer(400)
        else:
            token = f"token{time.monotonic_ns()}"
            self.server.tokens.add(token)
            self.answer(200, token)

    def action(self) -> dict[str, str] | None:
        return self.server.actions.get(self.client_address[0], self.server.action)

    def do_GET(self) -> None:
        if self.fails():
            return
        if self.headers.get("X-aws-ec2-metadata-token") not in self.server.tokens:
            self.answer(401)
            return
        found = {
            "/latest/meta-data/spot/instance-action": self.action(),
            "/latest/meta-data/events/recommendations/rebalance": self.server.hint,
        }.get(self.path)
        self.answer(404 if found is None else 200, found or "")


class Gcp(_Handler):
    """Refuses requests without its header, and waits for a change where it is asked to."""

    answer_headers: ClassVar[dict[str, str]] = {"Metadata-Flavor": "Google"}

    def do_GET(self) -> None:
        url = urlparse(self.path)
        query = parse_qs(url.query)
        if self.headers.get("Metadata-Flavor") != "Google":
            self.answer(403)
        elif url.path == "/computeMetadata/v1/instance/id":
            self.answer(200, "123")
        elif url.path == "/computeMetadata/v1/instance/preempted":
            if query.get("wait_for_change") == ["true"]:
                self.server.preempted.wait(float(query["timeout_sec"][0]))
            self.answer(200, "TRUE" if self.server.preempted.is_set() else "FALSE")
        else:
            self.answer(404)


class Azure(_Handler):
    """Refuses requests without its header or without a version."""

    def do_GET(self) -> None:
        url = urlparse(self.path)
        if self.headers.get("Metadata") != "true" or "api-version" not in parse_qs(url.query):
            self.answer(400)
        elif url.path == "/metadata/instance/compute":
            self.answer(200, {"name": "vm-1", "priority": "Spot"})
        elif url.path == "/metadata/scheduledevents":
            self.answer(200, {"DocumentIncarnation": 1, "Events": self.server.events})
        else:
            self.answer(404)


@contextmanager
def serve(handler: type[BaseHTTPRequestHandler]) -> Iterator[MetadataServer]:
    """Serves one cloud."""
    with MetadataServer(handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.preempted.set()
            server.shutdown()
            thread.join()
