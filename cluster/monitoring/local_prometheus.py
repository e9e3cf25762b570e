"""`make monitoring`: a real Prometheus on this machine that scrapes the running platform.

    python -m cluster.monitoring.local_prometheus [--url URL] [--port 9090] [--every 5s]

It asks any gateway which processes there are (`/metrics/targets`) every few seconds, and looks
which fleets of cells are kept from this machine, so nothing has to be written down by hand when
replicas come and go. It runs until Ctrl-C; its data stay in the
state folder. Where keys are on, a key with the scope `admin` is read from ARRIERO_ADMIN_KEY.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from cluster.bootstrap import ROOT
from cluster.fleet_book import METRICS_FILES
from cluster.local_state import LocalState, load_state
from cluster.machine import choose_free_port, is_port_free

STATE_FILE = Path(os.environ.get("ARRIERO_STATE_DIR") or ROOT / ".arriero") / "local.json"
ALERTS = Path(__file__).parent / "alerts.yaml"

_HOST = "127.0.0.1"
_PORTS = (9090, 9190)
_HOW_TO_GET = (
    "There is no `prometheus` on the PATH. Install it: `apt-get install prometheus` on Debian and "
    "Ubuntu, `brew install prometheus` on macOS, or from prometheus.io; then again."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Become Prometheus, until Ctrl-C; return the exit status where that cannot be."""
    options = _parse(argv)
    state = load_state(STATE_FILE)
    url = options.url or (state.url if state is not None else "")
    program = shutil.which("prometheus")
    problem = _find_problem(url, program, state)
    port = _choose_port(options.port)
    if port is None:
        problem = problem or f"port {options.port} is in use; say another with --port"
    if problem or program is None or port is None:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    folder = STATE_FILE.parent / "prometheus"
    key, fleets = os.environ.get("ARRIERO_ADMIN_KEY", ""), STATE_FILE.parent / "fleet"
    config = write_config(folder, url, options.every, key, fleets=fleets)
    whom = url or "the fleets"
    print(
        f"Prometheus scrapes {whom}: http://{_HOST}:{port} (alerts: /alerts). Stop: Ctrl-C",
        flush=True,
    )
    return _become(command_of(program, config, port))


def _become(command: list[str]) -> NoReturn:
    """In its place: whatever signal ends this ends Prometheus, which writes down what it has."""
    os.execv(command[0], command)  # noqa: S606 - no shell is what is wanted


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make monitoring", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--url", default="", help="of a gateway (default: what `make up` started)")
    parser.add_argument("--port", type=int, default=0, help="Prometheus' own (default: from 9090)")
    parser.add_argument("--every", default="5s", help="how often it scrapes")
    return parser.parse_args(argv)


def _find_problem(url: str, program: str | None, state: LocalState | None) -> str:
    if program is None:
        return _HOW_TO_GET
    if not url and not any(STATE_FILE.parent.glob(f"fleet/{METRICS_FILES}")):
        return "Nothing runs here. Start it with `make up`, or say --url http://HOST:PORT."
    if state is not None and state.needs_key and not os.environ.get("ARRIERO_ADMIN_KEY"):
        return (
            "Keys are on: only an admin key may see who is scraped. Make one with `arriero keys "
            "create` and the scope admin, and set ARRIERO_ADMIN_KEY to it."
        )
    return ""


def _choose_port(wanted: int) -> int | None:
    if wanted:
        return wanted if is_port_free(_HOST, wanted) else None
    return choose_free_port(_HOST, *_PORTS)


def write_config(
    folder: Path, url: str, every: str, key: str = "", more: Any = (), fleets: Path | None = None
) -> Path:
    """Write Prometheus' config file for a platform; return it.

    Args:
        folder: Prometheus' own, made if need be; only this user may read it.
        url: Of a gateway; empty where there is none.
        every: How often to scrape, as `5s`.
        key: Sent to the gateway; empty is none.
        more: Further addresses to scrape.
        fleets: Has a file for each fleet that is kept from this machine.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    job: dict[str, Any] = {"job_name": "arriero"}
    if fleets is not None:
        fleets.mkdir(mode=0o700, parents=True, exist_ok=True)  # Prometheus watches it.
        files = [str(fleets.absolute() / METRICS_FILES)]
        job["file_sd_configs"] = [{"files": files, "refresh_interval": "5s"}]
    if url:
        job["http_sd_configs"] = [_ask_gateway(folder, url, key)]
    if more:
        job["static_configs"] = list(more)
    config = folder / "prometheus.yml"
    rules = ALERTS if url else _write_fleet_alerts(folder)
    content = {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": [str(rules.absolute())],
        "scrape_configs": [job],
    }
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    return config


def _write_fleet_alerts(folder: Path) -> Path:
    """Of fleets only: nobody is to be woken for want of a platform where none is scraped."""
    content = yaml.safe_load(ALERTS.read_text())
    for group in content["groups"]:
        group["rules"] = [rule for rule in group["rules"] if "arriero_fleet_" in rule["expr"]]
    file = folder / "fleet-alerts.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def _ask_gateway(folder: Path, url: str, key: str) -> dict[str, Any]:
    discovery: dict[str, Any] = {
        "url": f"{url.rstrip('/')}/metrics/targets",
        "refresh_interval": "5s",
    }
    if key:
        key_file = folder / "key"
        key_file.touch(mode=0o600)
        key_file.write_text(key)
        # Prometheus 2.42 leaves the type out for a discovery unless it is told.
        credentials = {"type": "Bearer", "credentials_file": str(key_file.absolute())}
        discovery["authorization"] = credentials
    return discovery


def command_of(program: str, config: Path, port: int) -> list[str]:
    """Return the command line of a Prometheus that listens on loopback."""
    return [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={config.parent / 'data'}",
        f"--web.listen-address={_HOST}:{port}",
        "--log.level=warn",
    ]


if __name__ == "__main__":
    sys.exit(main())
