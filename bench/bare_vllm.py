"""vLLM's own OpenAI server, as a measured system."""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.processes import ProcessGroup, Role
from bench.systems import ENGINE_ARGS, MODEL_NAME, VLLM_ENV, free_ports, has_answer, tail_of


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
        env = {**os.environ, **VLLM_ENV, **self.env}
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
