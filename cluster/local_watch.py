"""Watching a platform come up: what Serve says, what the platform says, and a first question."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

FIRST_QUESTION = "What is the capital of France?"

_POLL_S = 0.5
_NO_ROOM = re.compile(r"required for each replica: (\{.*?\}), total resources available: (\{.*?\})")


class NotUpError(Exception):
    """The platform did not come up; the text says why and where to look."""


@dataclass(frozen=True)
class Progress:
    """How far the platform is."""

    ready: bool
    parts: Mapping[str, str]
    """What each part is doing, in words, by the part's name."""
    failure: str = ""
    """Why it will not come up by itself; empty while it may."""


def read_serve(details: Mapping[str, Any], app_name: str) -> Progress:
    """Read Serve's answer about its applications: which deployments start, and what failed.

    Args:
        details: JSON of Serve's `/api/serve/applications/`.
        app_name: Our application.
    """
    app = details.get("applications", {}).get(app_name)
    if app is None:
        return Progress(False, {"application": "waiting for Ray Serve"})
    parts: dict[str, str] = {}
    failure = str(app.get("message", "")) if app.get("status") == "DEPLOY_FAILED" else ""
    for name, deployment in sorted(app.get("deployments", {}).items()):
        status, message = deployment.get("status", ""), deployment.get("message", "")
        parts[name] = "running" if status == "HEALTHY" else _describe_start(message)
        # Serve goes on trying for minutes; the second try meets the same.
        if status in ("DEPLOY_FAILED", "UNHEALTHY") or "failed to start" in message:
            failure = failure or f"{name}: {message}"
    return Progress(app.get("status") == "RUNNING", parts, failure)


def _describe_start(message: str) -> str:
    """Says why a deployment may be starting for ever: Ray waits for room without an error."""
    found = _NO_ROOM.search(message)
    if found is None:
        return "starting"
    return (
        f"waiting for room: it asks Ray for {found[1]}, and {found[2]} is left on this machine. "
        "Lower `cpus` of the gateway, the router or the models' accelerators in the config file "
        "(Ray counts them, it fences nothing), and run make up again."
    )


def read_ready(answer: Mapping[str, Any]) -> Progress:
    """Read the platform's own `/ready`."""
    parts: dict[str, str] = {}
    failure = ""
    for name, model in answer.get("models", {}).items():
        state, detail = model.get("state", "unknown"), model.get("detail", "")
        parts[f"model {name}"] = f"{state} ({detail})" if detail and state != "ready" else state
        if state == "failed":
            failure = failure or f"model {name}: {detail or 'failed'}"
    return Progress(bool(answer.get("ready")), parts, failure)


class Watch:
    """Prints each change with the seconds since the start; a terminal also sees the clock move."""

    def __init__(self, out: Any = None) -> None:
        self._out = out or sys.stderr
        self._since_s = time.monotonic()
        self._said: dict[str, str] = {}
        self._has_status_line = False

    def say(self, line: str) -> None:
        """Print one line."""
        self._clear_status_line()
        print(f"[{self._elapsed_s():5.1f} s] {line}", file=self._out, flush=True)

    def say_changes(self, parts: Mapping[str, str]) -> None:
        """Print every part whose state is another than when it was last said."""
        changed = {name: state for name, state in parts.items() if self._said.get(name) != state}
        for name, state in changed.items():
            self.say(f"{name}: {state}")
        self._said.update(changed)
        if not changed and self._out.isatty():
            self._has_status_line = True
            print(f"\r[{self._elapsed_s():5.1f} s] ...", end="", file=self._out, flush=True)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._since_s

    def _clear_status_line(self) -> None:
        if self._has_status_line:
            print("\r\033[K", end="", file=self._out)
            self._has_status_line = False


def wait_until_ready(
    ask_serve: Callable[[], Mapping[str, Any]],
    url: str,
    app_name: str,
    watch: Watch,
    timeout_s: float,
) -> None:
    """Return when the application runs and every model answers.

    Raises:
        NotUpError: Something failed for good, or the time is over.
    """
    deadline_s = time.monotonic() + timeout_s
    progress = Progress(False, {})
    for progress in _observe(ask_serve, url, app_name):
        watch.say_changes(progress.parts)
        if progress.failure:
            raise NotUpError(progress.failure.strip())
        if progress.ready:
            return
        if time.monotonic() > deadline_s:
            break
        time.sleep(_POLL_S)
    parts = ", ".join(f"{name}: {state}" for name, state in progress.parts.items())
    raise NotUpError(
        f"not ready after {timeout_s:.0f} s ({parts}). A larger model needs more time: --timeout-s."
    )


def _observe(
    ask_serve: Callable[[], Mapping[str, Any]], url: str, app_name: str
) -> Iterator[Progress]:
    """Yield the state for ever: Serve's view, then, once the gateway answers, the models'."""
    with httpx.Client(timeout=5.0) as client:
        while True:
            serve = read_serve(ask_serve(), app_name)
            models = _ask_ready(client, url) if not serve.failure else None
            if models is None:
                yield Progress(False, serve.parts, serve.failure)
            else:
                ready = serve.ready and models.ready
                yield Progress(ready, {**serve.parts, **models.parts}, models.failure)


def _ask_ready(client: httpx.Client, url: str) -> Progress | None:
    try:
        answer = client.get(f"{url}/ready").json()
    except (httpx.HTTPError, ValueError):
        return None  # no gateway yet
    return read_ready(answer) if isinstance(answer, dict) and "models" in answer else None


def is_platform(url: str) -> bool:
    """Return whether what answers at this URL is a platform like ours."""
    try:
        with httpx.Client(timeout=2.0) as client:
            return _ask_ready(client, url) is not None
    except httpx.InvalidURL:
        return False


def ask_first_question(url: str, model: str) -> str:
    """Ask a model something over HTTP, as a client would, and return its answer.

    Raises:
        NotUpError: The answer is an error.
    """
    try:
        response = httpx.post(f"{url}/v1/chat/completions", json=question(model), timeout=120.0)
    except httpx.HTTPError as error:
        raise NotUpError(f"the first question got no answer: {error}") from error
    if response.status_code != 200:
        raise NotUpError(
            f"the first question got HTTP {response.status_code}: {response.text[:500]}"
        )
    content: str = response.json()["choices"][0]["message"]["content"]
    return content.strip()


def question(model: str) -> dict[str, Any]:
    """Return the body of the first question."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": FIRST_QUESTION}],
        "temperature": 0,
        "max_tokens": 32,
    }


def describe_first_key(url: str, config: str, state_folder: Path) -> str:
    """Returns what to do with a platform whose users need keys and have none yet."""
    arriero = shlex.quote(_shorten(Path(sys.executable).with_name("arriero")))
    folder, file = (shlex.quote(_shorten(Path(path))) for path in (state_folder, config))
    return (
        f"\nArriero is up at {url}. Its users need a key; the first one may make the others:\n\n"
        f"  ARRIERO_STATE_DIR={folder} {arriero} keys create --bootstrap {file}\n\n"
        "Stop: make down"
    )


def _shorten(path: Path) -> str:
    """Names a file as one does who stands here."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def describe_use(url: str, model: str, answer: str) -> str:
    """Return what a person needs next: the address, the answer, how to ask again, how to stop."""
    body = json.dumps(question(model))
    return f"""\

Arriero is up at {url}

  {FIRST_QUESTION}
  {model}: {answer}

Ask it yourself:
  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'

From Python, with the openai package:
  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="none")
  client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hi"}}])

API: {url}/docs     Stop: make down"""
