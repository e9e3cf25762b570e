"""Decides how much of each prompt one step of an engine computes, and who is in it.

Inputs: what of each prompt is left, in the order in which requests started; which of them took
another's place (`express`); how much a step may take.

The rule: express requests' prompts are computed whole. Of the others', in order, no more than
`chunk` tokens together: so the step is short, and who comes while it runs waits for less. Where a
chunk is set, an express prompt also gets a step of its own, in which all others wait.

Invariants (each a property test of that name):

1. express_is_computed_whole: nothing of an express prompt is left after the step.
2. chunk_is_kept: the others get no more than `chunk` together.
3. first_goes_on: among the others nobody gets any while one before has some left.
4. others_wait_for_one_step: of two steps one after another, one at most is somebody's own.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is left of a prompt."""

    tokens: int
    is_express: bool = False


class OwnSteps:
    """Says which steps are for express prompts alone; asked once a step."""

    def __init__(self) -> None:
        self._was_own = False

    def give(self, n_express: int, chunk: int | None) -> bool:
        """Whether the step that comes is for the express prompts that begin with it."""
        self._was_own = n_express > 0 and chunk is not None and not self._was_own
        return self._was_own


def plan_prompts(prompts: Iterable[Prompt], chunk: int | None) -> list[int]:
    """Returns the tokens of each that the step computes; without a chunk, all."""
    parts = []
    for prompt in prompts:
        part = prompt.tokens
        if chunk is not None and not prompt.is_express:
            part = min(part, chunk)
            chunk -= part
        parts.append(part)
    return parts
