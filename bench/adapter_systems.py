"""Servers of many adapters on one engine, with the same engine arguments: ours and its peers.

- Arriero takes a folder of 10,000 as a family; nothing is said of any one of them.
- vLLM, static: its own server, told of its adapters on the command line.
- vLLM, dynamic: the same, told of each by `/v1/load_lora_adapter`. Somebody has to do that before
the first request; here it is done for all that a trace uses, and its time is reported.
- Ray Serve LLM: one replica that multiplexes. It takes adapters from a bucket only, so it gets
moto's S3 server on loopback.
"""

import contextlib
import json
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.adapter_load import Draw, Run, draw_trace, run_trace
from bench.arriero_system import ARRIERO_ROLES, arriero_application, describe_model
from bench.bare_vllm import BareVllm
from bench.load import percentiles
from bench.measure import running
from bench.peer_systems import ray_serve_llm
from bench.peers import ray_llm_folder
from bench.processes import ProcessGroup
from bench.ray_served import RayServed
from bench.report import say
from bench.systems import (
    ENGINE_ARGS,
    KV_CACHE_GIB,
    MODEL_NAME,
    NotRunningError,
    System,
    free_ports,
    wait_ready,
)
from serve_app.keys import make_key

OURS, STATIC, DYNAMIC, RAY = "arriero", "vllm-static", "vllm-dynamic", "ray-serve-llm"
N_REGISTERED = 10_000
SLOTS, IN_MEMORY, MAX_RANK = 16, 64, 64
CLIENTS = 16
LENGTHS = (32, 32)
"""Tokens of every prompt and of every answer."""
LORA_ARGS: dict[str, Any] = {
    "enable_lora": True,
    "max_loras": SLOTS,
    "max_cpu_loras": IN_MEMORY,
    "max_lora_rank": MAX_RANK,
}
_RAY_CACHE = Path("/tmp/ray/llm/lora/cache")
"""Where Ray Serve LLM keeps adapters; it cannot be told another place."""


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    used: tuple[int, ...]
    n_requests: int
    n_probes: int
    rounds: int
    peer_requests: int
    is_quick: bool = False
    alpha: float = 0.3
    seed: int = 1
    clients: int = CLIENTS
    """Of the curve. The engine has room for 16."""


@dataclass
class Contender:
    """One server, and what it calls the adapters.

    Args:
        system: Starts and stops it.
        names: Of the adapters, by number.
        key: API key.
        introduce: Tells it of some adapters, where it has to be told.
    """

    system: System
    names: Sequence[str]
    key: str = "bench"
    introduce: Callable[[Sequence[int]], None] = lambda numbers: None

    def status(self) -> dict[str, Any]:
        """What `/ready` says; of the platform only."""
        with urllib.request.urlopen(f"{self.system.base_url}/ready", timeout=30) as response:
            found: dict[str, Any] = json.load(response)
        return found


def send(
    contender: Contender, trace: Sequence[Draw], clients: int = CLIENTS, *, may_fail: bool = False
) -> Run:
    """Runs a trace on a server that is held still before and after.

    Args:
        contender: The server.
        trace: What it is asked for.
        clients: That ask at once.
        may_fail: Whether requests may be answered with errors, as long as one is not.

    Raises:
        NotRunningError: Requests failed that may not.
    """
    system = contender.system
    system.processes.resume()
    try:
        wait_ready(system)
        warm_up = draw_trace(0, clients, 1.0, "warm-up", (8, 4))
        run_trace(system.base_url, warm_up, (), MODEL_NAME, clients, contender.key)
        run = run_trace(system.base_url, trace, contender.names, MODEL_NAME, clients, contender.key)
    finally:
        system.processes.pause()
    if run.errors:
        text = f"{system.name}: {len(run.errors)} errors: {run.errors[0]}"
        if not may_fail or len(run.errors) == len(run.answers):
            raise NotRunningError(text)
        say(text)
    return run


def milliseconds(seconds: Sequence[float]) -> str:
    """Percentiles 50 and 99, for a table."""
    if not seconds:
        return "-"
    found = percentiles(seconds)
    return f"{1000 * found['p50']:.0f}, {1000 * found['p99']:.0f}"


@contextlib.contextmanager
def contender(
    key: str,
    model: Path,
    family: Path,
    names: Sequence[str],
    told: slice,
    threads: int | None,
) -> Iterator[Contender]:
    """Starts a server and holds it still; ends it afterwards.

    Args:
        key: Which.
        model: Folder of the base model.
        family: Folder with all adapters.
        names: Their folders' names.
        told: Adapters that those are told of which have to know before they start.
        threads: Compute threads; None is each one's default.
    """
    env = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    if threads is not None:
        env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
    with contextlib.ExitStack() as stack:
        made: dict[str, Callable[[], Contender]] = {
            OURS: lambda: _make_ours(family, names, threads),
            STATIC: lambda: _make_static(model, env, family, names, told),
            DYNAMIC: lambda: _make_dynamic(model, env, family, names),
            RAY: lambda: stack.enter_context(_ray(model, env, family, names, told)),
        }
        found = made[key]()
        stack.enter_context(running({key: found.system}))
        yield found


def _make_ours(family: Path, names: Sequence[str], threads: int | None) -> Contender:
    key = make_key()
    own = {"slots": SLOTS, "in_memory": IN_MEMORY, "max_rank": MAX_RANK}
    engine = {"kind": "vllm", "args": dict(ENGINE_ARGS)}
    application = arriero_application(
        [describe_model(MODEL_NAME, engine, threads) | {"adapters": own}],
        auth={"kind": "keys"},
        tenants=[{"id": "bench", "keys": [{"hash": key.hash}]}],
        adapters={
            "families": [{"base": MODEL_NAME, "source": str(family)}],
            "cache": {"path": str(family.with_name("cache")), "max_gib": 4.0},
        },
    )
    served = RayServed("Arriero", [application], {}, ARRIERO_ROLES, key.text)
    return Contender(served, [f"{MODEL_NAME}:{name}" for name in names], key.text)


def _make_static(
    model: Path, env: Mapping[str, str], family: Path, names: Sequence[str], told: slice
) -> Contender:
    flags = ["--lora-modules", *(f"{name}={family / name}" for name in names[told])]
    args = {**ENGINE_ARGS, **LORA_ARGS}
    return Contender(BareVllm(model, env, "vLLM, static", args, flags), names)


def _make_dynamic(
    model: Path, env: Mapping[str, str], family: Path, names: Sequence[str]
) -> Contender:
    system = BareVllm(model, env, "vLLM, dynamic", {**ENGINE_ARGS, **LORA_ARGS})
    known: set[int] = set()

    def introduce(numbers: Sequence[int]) -> None:
        for number in sorted(set(numbers) - known):
            name = names[number]
            body = {"lora_name": name, "lora_path": str(family / name)}
            _post(f"{system.base_url}/v1/load_lora_adapter", body)
            known.add(number)

    return Contender(system, names, introduce=introduce)


def _post(url: str, body: Mapping[str, Any]) -> None:
    content = json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        response.read()


# --- Ray Serve LLM, and the bucket that it needs ----------------------------------------------


@dataclass
class _Bucket:
    """moto's S3 server, a process of its own."""

    folder: Path
    processes: ProcessGroup = field(default_factory=lambda: ProcessGroup(lambda command: "S3"))

    def start(self) -> dict[str, str]:
        """Returns the environment of who uses it."""
        (port,) = free_ports(1)
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self.processes.start(command, os.environ, self.folder / "moto.log")
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextlib.contextmanager
def _ray(
    model: Path, env: Mapping[str, str], family: Path, names: Sequence[str], told: slice
) -> Iterator[Contender]:
    bucket = _Bucket(family.parent)
    mark = f"bench{os.getpid()}-"
    try:
        s3 = bucket.start()
        say("uploading adapters to moto's S3")
        _upload(s3, family, names[told], mark)
        lora = {
            "dynamic_lora_loading_path": "s3://adapters",
            "max_num_adapters_per_replica": IN_MEMORY,
        }
        system = ray_serve_llm(
            model,
            {**env, **s3, "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB)},
            ray_llm_folder(),
            engine_args={**ENGINE_ARGS, **LORA_ARGS},
            lora=lora,
        )
        yield Contender(system, [f"{MODEL_NAME}:{mark}{name}" for name in names])
    finally:
        bucket.processes.end()
        for left in _RAY_CACHE.glob(f"{mark}*"):
            shutil.rmtree(left, ignore_errors=True)


def _upload(s3: Mapping[str, str], family: Path, names: Sequence[str], mark: str) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=s3["AWS_ENDPOINT_URL"],
        aws_access_key_id="id",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    _wait_for(lambda: client.create_bucket(Bucket="adapters"))
    for name in names:
        for path in sorted((family / name).iterdir()):
            client.upload_file(str(path), "adapters", f"{mark}{name}/{path.name}")


def _wait_for(attempt: Callable[[], Any]) -> None:
    give_up_s = time.monotonic() + 60.0
    while True:
        try:
            attempt()
        except Exception:
            if time.monotonic() > give_up_s:
                raise
            time.sleep(0.5)
        else:
            return
