"""What this platform is compared with, as measured systems: LiteLLM's proxy and Ray Serve LLM."""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.processes import ProcessGroup, Role
from bench.ray_served import RayServed
from bench.systems import ENGINE_ARGS, MODEL_NAME, free_ports, has_answer, tail_of
from cluster.bootstrap import ROOT

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
