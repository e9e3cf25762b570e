"""HAProxy's configuration of a front, as text, and what it is told while it runs."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import certifi

from cluster.policy.cells import Cell
from serve_app.config_front import FrontSettings, address_of

POOL = "cells"
"""HAProxy's name of all cells together."""

_ASKED_OF_MODELS = (
    "/v1/chat/completions /v1/completions /v1/responses /v1/embeddings /v1/messages "
    "/v1/messages/count_tokens /tokenize /detokenize"
)
AUTHORITIES = certifi.where()
# Two connections that are refused take a cell out before its next check: while it counts as there,
# the bound on loads keeps its requests from going elsewhere.
_CHECK = (
    "check inter 2s fastinter 500ms downinter 1s fall 2 rise 1 "
    "observe layer4 error-limit 2 on-error mark-down"
)
_NOBODY = (
    "No cell answered: all are starting, or they have just stopped. Try again in some seconds."
)
_LATE = "The cell did not answer in time. Try again, or ask for less."

_TEMPLATE = """\
# Written by `arriero front`; changed there.
global
    description {digest}
    stats socket {socket} mode 600 level admin expose-fd listeners
    stats timeout 30s
    log stderr format raw local0 info
    tune.bufsize {bufsize}
    hard-stop-after {stop_s}s

defaults
    mode http
    log global
    option httplog
    option dontlog-normal
    option abortonclose
    option http-no-delay
    option forwardfor
    timeout connect 2s
    timeout http-request 60s
    timeout http-keep-alive 90s
    timeout queue 10s
    timeout client {timeout_s}s
    timeout server {timeout_s}s
    # A machine that is gone says nothing. Within some 15 s this notices.
    option srvtcpka
    srvtcpka-idle 5s
    srvtcpka-intvl 3s
    srvtcpka-cnt 3
    errorfile 502 {unavailable}
    errorfile 503 {unavailable}
    errorfile 504 {late}

frontend front
    bind {bind}
    monitor-uri /healthz
    acl no_cell nbsrv({pool}) lt 1
    monitor fail if no_cell
{bank_rule}    default_backend {pool}
{metrics}{bank}
# A server that is added later can only name authorities that have been read by then.
backend authorities
    server none 127.0.0.1:9 ssl verify required ca-file {authorities} disabled

backend {pool}
    # A tenant goes where it was before, unless that cell has a quarter more to do than the mean.
    http-request set-var(txn.who) req.hdr(authorization)
    http-request set-var(txn.who) req.hdr(x-api-key) if {{ req.hdr(x-api-key) -m found }}
    balance hash var(txn.who)
    hash-type consistent
    hash-balance-factor 125
    option httpchk GET /ready
    http-check expect status 200
    # Before the first byte of an answer a request goes to another cell. One that could not be sent
    # always does; one that was sent, only if doing it twice does no harm and all of it is here.
    option http-buffer-request
    retries 4
    option redispatch 1
    retry-on conn-failure empty-response 502 503
    acl reads method GET HEAD
    acl asks_a_model path {asked_of_models}
    http-request disable-l7-retry if !reads !asks_a_model
    http-response set-header x-arriero-cell %s
{servers}"""

_METRICS = """
frontend metrics
    bind 127.0.0.1:{port}
    http-request use-service prometheus-exporter if {{ path /metrics }}
"""
_BANK = """
backend bank
    server bank 127.0.0.1:{port}
"""


def write_config(
    settings: FrontSettings, folder: Path, weights: Mapping[Cell, int] | None = None
) -> str:
    """Return the configuration, which has its digest as HAProxy's description.

    Args:
        settings: The front's.
        folder: Where its files are.
        weights: Cells that it is to begin with, and their weights.
    """
    servers = [f"    server {describe(cell, n)}\n" for cell, n in (weights or {}).items()]
    return _fill(settings, folder, digest_of(settings, folder), "".join(servers))


def digest_of(settings: FrontSettings, folder: Path) -> str:
    """Return what tells one configuration from another, whatever cells it begins with."""
    return hashlib.sha256(_fill(settings, folder, "", "").encode()).hexdigest()[:16]


def _fill(settings: FrontSettings, folder: Path, digest: str, servers: str) -> str:
    bind = f"{settings.host}:{settings.port}"
    if settings.certificate is not None:
        bind += f" ssl crt {settings.certificate} alpn h2,http/1.1"
    port = settings.metrics_port
    return _TEMPLATE.format(
        digest=digest,
        socket=socket_of(folder),
        bufsize=settings.retry_body_bytes,
        stop_s=round(settings.stop_s),
        timeout_s=round(settings.timeout_s),
        unavailable=folder / "unavailable.http",
        late=folder / "late.http",
        bind=bind,
        pool=POOL,
        authorities=AUTHORITIES,
        bank_rule="" if settings.bank is None else "    use_backend bank if { path_beg /fleet/ }\n",
        bank="" if settings.bank is None else _BANK.format(port=settings.bank.port),
        metrics="" if port is None else _METRICS.format(port=port),
        asked_of_models=_ASKED_OF_MODELS,
        servers=servers,
    )


def socket_of(folder: Path) -> Path:
    """Return where HAProxy is told things."""
    return folder / "haproxy.sock"


def write_answers(folder: Path) -> None:
    """Write what clients hear when no cell answers, in OpenAI's form."""
    _write_answer(
        folder / "unavailable.http", "503 Service Unavailable", "cell_unavailable", _NOBODY
    )
    _write_answer(folder / "late.http", "504 Gateway Timeout", "cell_timeout", _LATE)


def _write_answer(file: Path, status: str, code: str, message: str) -> None:
    error = {"message": message, "type": "overloaded_error", "param": None, "code": code}
    body = json.dumps({"error": error})
    head = [
        f"HTTP/1.1 {status}",
        "Content-Type: application/json",
        "Retry-After: 2",
        "Cache-Control: no-store",
        f"Content-Length: {len(body)}",
    ]
    file.write_bytes(("\r\n".join(head) + "\r\n\r\n" + body).encode())


def describe(cell: Cell, weight: int) -> str:
    """Return a cell as HAProxy's `server` has it."""
    host, port, is_safe = address_of(cell.url)
    words = f"{cell.name} {host}:{port} weight {weight} {_CHECK}"
    if is_safe:
        words += f" ssl verify required ca-file {AUTHORITIES} sni str({host}) check-sni {host}"
    return words


def plan_commands(
    now: Mapping[str, "Server"], weights: Mapping[Cell, int], leaving: Iterable[Cell]
) -> list[str]:
    """Return what HAProxy is to be told so that it is as it should be. Told twice, it is as once.

    Args:
        now: Servers as they are, by name.
        weights: Cells that are to get work, and how much.
        leaving: Cells that are to get nothing new, and to finish what they have.
    """
    commands: list[str] = []
    for cell, weight in weights.items():
        server = now.get(cell.name)
        commands += _add(cell, weight) if server is None else _change(cell, weight, server)
    kept = {cell.name for cell in weights}
    staying = kept | {cell.name for cell in leaving}
    for name, server in now.items():
        if name in kept:
            continue
        if name in staying:
            commands += [] if server.is_draining else [f"set server {POOL}/{name} state drain"]
        else:
            commands += _remove(name, server)
    return commands


class Server:
    """A cell as HAProxy has it.

    Attributes:
        weight: Its weight.
        n_requests: Requests that it has now.
        n_total: Requests that it ever had.
        is_up: Whether HAProxy sends it requests, as far as its checks go.
        is_draining: Whether it gets nothing new.
        is_stopped: Whether it gets nothing at all.
        address: HOST:PORT.
    """

    def __init__(self, row: Mapping[str, str]) -> None:
        status = row["status"]
        self.weight = int(row.get("uweight") or row["weight"] or 0)
        self.n_requests = int(row["scur"] or 0)
        self.n_total = int(row["stot"] or 0)
        self.is_up = status.startswith("UP") or status == "no check"
        self.is_draining = status.startswith("DRAIN")
        self.is_stopped = status.startswith("MAINT")
        self.address = row.get("addr", "")


def _add(cell: Cell, weight: int) -> list[str]:
    name = f"{POOL}/{cell.name}"
    words = describe(cell, weight).split(" ", 1)[1]
    return [f"add server {name} {words}", f"enable health {name}", f"set server {name} state ready"]


def _change(cell: Cell, weight: int, server: Server) -> list[str]:
    name, commands = f"{POOL}/{cell.name}", list[str]()
    host, port, _ = address_of(cell.url)
    if server.address and server.address != f"{host}:{port}" and host[0].isdigit():
        commands.append(f"set server {name} addr {host} port {port}")
    if server.weight != weight:
        commands.append(f"set server {name} weight {weight}")
    if server.is_draining or server.is_stopped:
        commands.append(f"set server {name} state ready")
    return commands


def _remove(name: str, server: Server) -> list[str]:
    """A server goes once nothing of it runs; until then it gets nothing."""
    if not server.is_stopped:
        return [f"set server {POOL}/{name} state maint"]
    return [f"del server {POOL}/{name}"] if not server.n_requests else []
