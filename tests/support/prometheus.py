"""A real Prometheus that scrapes a platform, on a free loopback port, gone when the test ends."""

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.machine import choose_free_port
from cluster.monitoring.local_prometheus import command_of, write_config
from tests.support.platform import wait_until

_HOST = "127.0.0.1"


def find_prometheus() -> str:
    """Returns the program; skips the test where there is none, and fails it where CI runs."""
    return _find("prometheus")


def find_promtool() -> str:
    """Returns the program that checks Prometheus' files; as above."""
    return _find("promtool")


def _find(name: str) -> str:
    program = shutil.which(name)
    if program is None:
        how = f"{name} is missing; Debian's package `prometheus` has it"
        if os.environ.get("CI"):
            pytest.fail(how)
        pytest.skip(how)
    return program


class PrometheusServer:
    """Starts with `with`.

    Args:
        folder: For its config file and its data.
        url: Of a gateway.
        key: With the scope `admin`.
        more: Further addresses to scrape, as `static_configs` has them.
        every: How often it scrapes.
    """

    def __init__(
        self, folder: Path, url: str, key: str = "", more: Any = (), every: str = "1s"
    ) -> None:
        self._program = find_prometheus()
        self._config = write_config(folder, url, every, key, more)
        port = choose_free_port(_HOST, 19_090, 19_290)
        assert port is not None, "no port is free"
        self._port = port
        self.url = f"http://{_HOST}:{port}"
        self._client = httpx.Client(base_url=f"{self.url}/api/v1", timeout=30.0)

    def __enter__(self) -> "PrometheusServer":
        self._log = (self._config.parent / "log").open("wb")
        command = command_of(self._program, self._config, self._port)
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        wait_until(self._answers, 30.0, "Prometheus is up")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def ask(self, expr: str) -> list[dict[str, Any]]:
        """Returns the present values of a query."""
        return self._get("query", query=expr)["result"]  # type: ignore[no-any-return]  # JSON

    def ask_range(self, expr: str, seconds: float, step_s: float = 1.0) -> list[dict[str, Any]]:
        """Returns the values of a query over the last seconds."""
        now_s = time.time()
        span = {"start": now_s - seconds, "end": now_s, "step": step_s}
        return self._get("query_range", query=expr, **span)["result"]  # type: ignore[no-any-return]

    def value(self, expr: str) -> float:
        """Returns the one present value of a query; 0 where it has none."""
        found = self.ask(expr)
        return float(found[0]["value"][1]) if found else 0.0

    def targets(self) -> dict[str, str]:
        """Returns how each process that is scraped is, by its replica: `up`, or what is wrong."""
        found = self._get("targets", state="active")["activeTargets"]
        return {
            target["labels"].get("replica", ""): target["lastError"] or target["health"]
            for target in found
        }

    def rules(self) -> list[dict[str, Any]]:
        """Returns the alert rules as it has loaded them."""
        groups = self._get("rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def _get(self, path: str, **params: Any) -> dict[str, Any]:
        answer = self._client.get(f"/{path}", params=params)
        assert answer.status_code == 200, f"{params}: {answer.text}"
        data: dict[str, Any] = answer.json()["data"]
        return data

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._config.parent / "log").read_text()
        try:
            return self._client.get("/status/buildinfo").status_code == 200
        except httpx.TransportError:
            return False
