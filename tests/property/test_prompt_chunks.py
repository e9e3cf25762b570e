"""Invariants of `serve_app.policy.prompt_chunks`."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.prompt_chunks import OwnSteps, Prompt, plan_prompts

_PROMPTS = st.lists(st.builds(Prompt, st.integers(0, 300), st.booleans()), max_size=8)
_CHUNK = st.integers(1, 256)


@given(_PROMPTS, _CHUNK)
def test_express_is_computed_whole(prompts: list[Prompt], chunk: int) -> None:
    for prompt, part in zip(prompts, plan_prompts(prompts, chunk), strict=True):
        assert part == prompt.tokens or not prompt.is_express


@given(_PROMPTS, _CHUNK)
def test_chunk_is_kept(prompts: list[Prompt], chunk: int) -> None:
    parts = plan_prompts(prompts, chunk)
    others = [n for prompt, n in zip(prompts, parts, strict=True) if not prompt.is_express]
    left = sum(prompt.tokens for prompt in prompts if not prompt.is_express)
    assert sum(others) == min(chunk, left), "and all of it is used"


@given(_PROMPTS, _CHUNK)
def test_first_goes_on(prompts: list[Prompt], chunk: int) -> None:
    parts = plan_prompts(prompts, chunk)
    others = [(p.tokens, n) for p, n in zip(prompts, parts, strict=True) if not p.is_express]
    for i, (tokens, part) in enumerate(others):
        if part < tokens:
            assert not any(n for _, n in others[i + 1 :])


@given(_PROMPTS)
def test_without_a_chunk_all_is_computed(prompts: list[Prompt]) -> None:
    assert plan_prompts(prompts, None) == [prompt.tokens for prompt in prompts]


@given(st.lists(st.integers(0, 3), min_size=1), _CHUNK)
def test_others_wait_for_one_step(n_express: list[int], chunk: int) -> None:
    steps = OwnSteps()
    own = [steps.give(n, chunk) for n in n_express]
    assert not any(one and other for one, other in itertools.pairwise(own))
    for i, n in enumerate(n_express):
        assert own[i] == (n > 0 and (i == 0 or not own[i - 1])), "and no newcomer goes without"


@given(st.lists(st.integers(0, 3)))
def test_without_a_chunk_no_step_is_anybodys(n_express: list[int]) -> None:
    steps = OwnSteps()
    assert not any(steps.give(n, None) for n in n_express)
