"""A model as one would serve it with Ray Serve alone: a deployment that Serve scales by requests.

Its replicas pace and stream like the echo engine and hold as many requests; what is beyond waits
at Serve's proxy. They can take as long to start as ours do, so that the policies differ and the
engines do not. Ray imports this by name (`bench.autoscale_live`).
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import psutil
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.deployment import Application
from starlette.requests import Request
from starlette.responses import StreamingResponse

DEPLOYMENT = "paced"


class Paced:
    """Streams as many tokens as are asked for, one each step.

    Args:
        step_s: Seconds of a step.
        start_s: Seconds from the process's beginning until it serves, at least.
    """

    async def __init__(self, step_s: float, start_s: float) -> None:  # type: ignore[misc]
        self._step_s = step_s
        await asyncio.sleep(psutil.Process().create_time() + start_s - time.time())

    async def __call__(self, request: Request) -> StreamingResponse:
        """Answers a completion of a prompt of token ids."""
        body = await request.json()
        stream = self._stream(len(body["prompt"]), int(body["max_tokens"]))
        return StreamingResponse(stream, media_type="text/event-stream")

    async def _stream(self, n_prompt: int, n_tokens: int) -> AsyncIterator[bytes]:
        for i in range(n_tokens):
            await asyncio.sleep(self._step_s)
            reason = "length" if i == n_tokens - 1 else None
            yield _event({"choices": [{"index": 0, "text": " one", "finish_reason": reason}]})
        usage = {"prompt_tokens": n_prompt, "completion_tokens": n_tokens}
        yield _event({"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def build(args: Mapping[str, Any]) -> Application:
    """Builds the application; `args` has what `Paced` takes, `seats` and `autoscaling`."""
    deployment = serve.deployment(
        name=DEPLOYMENT,
        max_ongoing_requests=args["seats"],
        ray_actor_options={"num_cpus": 0.1},
        autoscaling_config=AutoscalingConfig(**args["autoscaling"]),
    )(Paced)
    return deployment.bind(args["step_s"], args["start_s"])
