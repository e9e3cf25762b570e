"""Has Serve start engines again where it has given them up.

It watches how Serve stands with a router's models, remembers how each ran, asks `policy.mending`
and deploys what that says: the model as it ran, or the same as a new attempt. Routers do this, as
each knows which of its engines are missing, and Serve keeps one of each. A canary is left alone:
its requests go to the model.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from serve_app.model_entry import Entry, find_entry, go_back, makes_same_engines, try_again
from serve_app.names import ModelName
from serve_app.policy.mending import Standing, Step, choose_step
from serve_app.serve_control import Deployed, EngineDeployment, Memory

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 2.0
_NOTE_LENGTH = 500
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def find_cause(message: str) -> str:
    """Returns the line of a traceback that says what went wrong, without its colours."""
    lines = [line.strip() for line in _COLOUR.sub("", message).splitlines() if line.strip()]
    causes = [line for line in lines if "Error: " in line] or lines
    return causes[-1][:_NOTE_LENGTH] if causes else "no reason was given"


class Control(Protocol):
    """Serve, and a memory that outlives this process. Its calls may block."""

    def observe(self, models: Iterable[ModelName]) -> Deployed:
        """Returns how the application and the engines of these models stand."""

    def read_args(self) -> dict[str, Any]:
        """Returns the `args` that were deployed last."""

    def deploy(self, args: dict[str, Any]) -> None:
        """Deploys the application with other `args`."""

    def recall(self, model: ModelName) -> Memory:
        """Returns what was remembered; nothing if nothing was."""

    def remember(self, model: ModelName, memory: Memory) -> None:
        """Keeps this for whoever asks later."""


@dataclass(frozen=True, slots=True)
class Staff:
    """Engines of a model, as its router counts them."""

    n_ready: int
    n_wanted: int


class Mender:
    """Mends one router's models.

    Args:
        control: Serve.
        count_staff: Returns the engines of each model.
        now: The monotonic clock.
    """

    def __init__(
        self,
        control: Control,
        count_staff: Callable[[], Mapping[ModelName, Staff]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._control = control
        self._count_staff = count_staff
        self._now = now
        self.notes: dict[ModelName, str] = {}
        """What was done last for a model, until somebody else deploys."""
        self._memories: dict[ModelName, Memory] = {}
        self._known_s: dict[ModelName, float] = {}
        """Of the deployment whose entry is remembered."""
        self._missing_since_s: dict[ModelName, float] = {}

    async def run(self) -> None:
        """Looks regularly until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            staff = self._count_staff()
            try:
                await asyncio.to_thread(self.look, staff)
            except Exception as error:  # Ray's, of whatever kind: it is tried again.
                logger.warning("How Serve stands with the engines cannot be seen: %s", error)

    def look(self, staff: Mapping[ModelName, Staff]) -> None:
        """Remembers what runs, mends what does not; may block."""
        deployed = self._control.observe(staff)
        for model, engines in deployed.engines.items():
            self._forget_if_new(model, deployed)
            if deployed.is_running and engines.is_whole and staff[model].n_ready:
                self._remember_running(model, deployed)
            self._mend(model, staff[model], engines)

    def _forget_if_new(self, model: ModelName, deployed: Deployed) -> None:
        """What somebody else deploys begins anew."""
        memory = self._memories.get(model) or self._control.recall(model)
        if memory.n_tries and not deployed.is_mended:
            memory = Memory(memory.ran)
            self._control.remember(model, memory)
        self._know(model, memory)

    def _remember_running(self, model: ModelName, deployed: Deployed) -> None:
        if self._known_s.get(model) == deployed.deployed_s:
            return
        entry = find_entry(self._control.read_args(), model)
        if entry is not None and entry != self._memories[model].ran:
            self._keep(model, replace(self._memories[model], ran=dict(entry)))
        self._known_s[model] = deployed.deployed_s

    def _keep(self, model: ModelName, memory: Memory) -> None:
        self._control.remember(model, memory)
        self._know(model, memory)

    def _know(self, model: ModelName, memory: Memory) -> None:
        self._memories[model] = memory
        self.notes[model] = memory.note

    def _mend(self, model: ModelName, staff: Staff, engines: EngineDeployment) -> None:
        now_s = self._now()
        if not engines.is_given_up or staff.n_ready >= staff.n_wanted:
            self._missing_since_s.pop(model, None)
            return
        since_s = self._missing_since_s.setdefault(model, now_s)
        args = self._control.read_args()
        entry = find_entry(args, model)
        if entry is None:
            return
        memory = self._memories[model]
        better = memory.ran if memory.ran and not makes_same_engines(entry, memory.ran) else None
        step = choose_step(
            Standing(
                engines.is_given_up,
                staff.n_ready,
                staff.n_wanted,
                better is not None,
                memory.n_tries,
                now_s - since_s,
            )
        )
        if step != "nothing":
            self._deploy(model, step, args, better, engines.message)
            self._missing_since_s[model] = self._now()

    def _deploy(
        self,
        model: ModelName,
        step: Step,
        args: dict[str, Any],
        better: Entry | None,
        message: str,
    ) -> None:
        memory = self._memories[model]
        if step == "go_back" and better is not None:
            note = "a change of its settings was given up, and it went back to those before"
            changed = go_back(args, model, better)
        else:
            note = "its engines could not be started and are tried again"
            changed = try_again(args, model)
        note = f"{note}: {find_cause(message)}"
        logger.warning("%s: %s", model, note)
        self._control.deploy(changed)
        self._keep(model, Memory(memory.ran, memory.n_tries + 1, note))
