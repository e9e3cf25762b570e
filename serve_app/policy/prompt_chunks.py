"""Decides how much of each prompt one step of an engine computes.

Inputs: what of each prompt is left, in the order in which requests started; which of them took
another's place (`express`); how much a step may take.

The rule: express requests' prompts are computed whole. Of the others', in order, no more than
`chunk` tokens together: so the step is short, and who comes while it runs waits for less.

Invariants (each a property test of that name):

1. express_is_computed_whole: nothing of an express prompt is left after the step.
2. chunk_is_kept: the others get no more than `chunk` together.
3. first_goes_on: among the others nobody gets any while one before has some left.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is left of a prompt."""

    tokens: int
    is_express: bool = False


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
