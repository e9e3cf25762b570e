"""What an engine's prefix cache is believed to hold."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.prefixes import (
    FIRST_MARK,
    PrefixMemory,
    mark_lengths,
    mark_prompt,
    split_marks,
)

_PARTS = st.lists(st.integers(0, 2), min_size=0, max_size=40)
"""Prompts in parts of 64 tokens, of few kinds, so that many share a prefix."""


def _prompt(parts: Sequence[int]) -> list[int]:
    return [7 * part + i % 5 for part in parts for i in range(FIRST_MARK)]


def _marks(parts: Sequence[int], salt: str = "") -> Sequence[int]:
    return split_marks(mark_prompt(_prompt(parts), salt))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))


def _marked(n_tokens: int) -> int:
    return max((length for length in mark_lengths(n_tokens)), default=0)


@given(st.lists(_PARTS, max_size=8), _PARTS)
def test_longest_common_prefix(handed: list[list[int]], asked: list[int]) -> None:
    memory = PrefixMemory(1 << 30)
    for parts in handed:
        memory.note(_marks(parts))
    longest = max((_common(parts, asked) for parts in handed), default=0)
    assert memory.match(_marks(asked)) == _marked(longest * FIRST_MARK)


@given(st.lists(_PARTS, max_size=12), st.integers(0, 2000))
def test_memory_is_bounded(handed: list[list[int]], capacity: int) -> None:
    memory = PrefixMemory(capacity)
    for parts in handed:
        memory.note(_marks(parts))
        assert memory.tokens <= capacity
    assert memory.tokens >= FIRST_MARK * len(list(memory))


@given(st.lists(_PARTS, min_size=1, max_size=12), st.integers(0, 2000))
def test_prefixes_are_closed(handed: list[list[int]], capacity: int) -> None:
    memory = PrefixMemory(capacity)
    for parts in handed:
        memory.note(_marks(parts))
    held = set(memory)
    for parts in handed:
        are_held = [mark in held for mark in _marks(parts)]
        assert are_held == sorted(are_held, reverse=True)


@given(_PARTS.filter(bool), st.text(max_size=8), st.text(max_size=8))
def test_salts_share_nothing(parts: list[int], one: str, other: str) -> None:
    shared = set(_marks(parts, one)) & set(_marks(parts, other))
    assert (not shared) == (one != other)


@given(st.integers(0, 200_000))
def test_marks_are_few_and_within_the_prompt(n_tokens: int) -> None:
    lengths = mark_lengths(n_tokens)
    assert len(lengths) <= 64
    assert lengths == sorted(set(lengths))
    assert all(length <= n_tokens for length in lengths)


def test_a_prompt_has_as_many_marks_as_lengths() -> None:
    for n_tokens in (0, 63, 64, 2047, 2048, 2049, 3071, 3072, 9000):
        marks = mark_prompt(range(n_tokens), "")
        assert len(split_marks(marks)) == len(mark_lengths(n_tokens))
        memory = PrefixMemory(1 << 30)
        memory.note(split_marks(marks))
        assert memory.match(split_marks(marks)) == _marked(n_tokens)
