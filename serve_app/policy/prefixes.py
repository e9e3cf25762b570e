"""Says how much of a prompt an engine's prefix cache is believed to hold.

Inputs: marks of prompts, in the order in which they were handed to the engine.

The rule:
  - A mark stands for the first so many tokens of a prompt (`mark_lengths`), for all of them and for
    nothing else: it is a hash of them, and of the salt that keeps caches apart.
  - An engine has the marks of what it was handed. Those used last are kept, as far as its cache
    holds that many tokens; of one prompt, the longest prefix is forgotten first.

It may be wrong: the engine's cache forgets by other rules, and a prompt that was dropped before its
turn was never computed. What was really cached is known when a request ends.

Invariants (each a property test of that name):

1. longest_common_prefix: without a bound, what is believed is the longest marked prefix that a
   prompt shares with one that was handed over.
2. memory_is_bounded: marks for more tokens than the cache holds are never kept.
3. prefixes_are_closed: whoever has a mark has all shorter ones of that prompt.
4. salts_share_nothing: prompts with different salts have no mark in common.

Source: the caches of vLLM and SGLang are trees of blocks in which parents outlive children; that a
router guesses what they hold from what it sent is SGLang's router's and Preble's idea (Srivatsa et
al., *Preble: Efficient Distributed Prompt Scheduling*, 2024).
"""

from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import pairwise

FIRST_MARK = 64
"""Tokens. Shorter prefixes are not worth a detour."""
_FINE_UP_TO = 2048
_COARSE = 1024
_MAX_MARKS = 64
_MARK_BYTES = 8


def mark_lengths(n_tokens: int) -> list[int]:
    """Returns how many tokens each mark of a prompt stands for: fine at first, then coarse."""
    fine = range(FIRST_MARK, min(n_tokens, _FINE_UP_TO) + 1, FIRST_MARK)
    coarse = range(_FINE_UP_TO + _COARSE, n_tokens + 1, _COARSE)
    return [*fine, *coarse][:_MAX_MARKS]


def mark_prompt(token_ids: Sequence[int], salt: str) -> bytes:
    """Returns a prompt's marks, 8 bytes each. A long prompt takes about 10 ns a token.

    Args:
        token_ids: From 0 to 2**32 - 1.
        salt: Whatever keeps this prompt's cache apart from others'.
    """
    lengths = mark_lengths(len(token_ids))
    if not lengths:
        return b""
    tokens = memoryview(array("I", token_ids[: lengths[-1]]))
    key = blake2b(salt.encode(), digest_size=_MARK_BYTES).digest()
    digest = blake2b(key=key, digest_size=_MARK_BYTES)
    marks = bytearray()
    for start, end in pairwise([0, *lengths]):
        digest.update(tokens[start:end])
        marks += digest.digest()
    return bytes(marks)


def split_marks(marks: bytes) -> Sequence[int]:
    """Returns the marks that `mark_prompt` wrote, the shortest prefix first.

    Raises:
        ValueError: The bytes are not whole marks.
    """
    return array("Q", marks)


class PrefixMemory:
    """What one engine's prefix cache is believed to hold.

    Args:
        capacity: Tokens that the cache holds; 0 is an engine without one.
    """

    def __init__(self, capacity: int = 0) -> None:
        self.capacity = capacity
        self._held: OrderedDict[int, int] = OrderedDict()
        """Marks with the tokens that each stands for beyond the one before, the oldest first."""
        self._tokens = 0

    @property
    def tokens(self) -> int:
        """How many tokens it is believed to hold."""
        return self._tokens

    def match(self, marks: Sequence[int]) -> int:
        """Returns how many of a prompt's first tokens are believed to be held."""
        if not marks or not self._held or marks[0] not in self._held:
            return 0
        # A prompt's marks are held up to one of them and not beyond.
        n_held = bisect_left(range(len(marks)), True, key=lambda i: marks[i] not in self._held)
        return _length(n_held - 1)

    def note(self, marks: Sequence[int]) -> None:
        """Takes note of a prompt that was handed to the engine."""
        if not self.capacity:
            return
        # The shortest prefix is noted last, so that the longest is forgotten first.
        for i in range(len(marks) - 1, -1, -1):
            if marks[i] not in self._held:
                width = _length(i) - (_length(i - 1) if i else 0)
                self._held[marks[i]] = width
                self._tokens += width
            self._held.move_to_end(marks[i])
        while self._tokens > self.capacity:
            self._tokens -= self._held.popitem(last=False)[1]

    def __iter__(self) -> Iterator[int]:
        return iter(self._held)


def _length(index: int) -> int:
    """The tokens that the mark at an index stands for."""
    n_fine = _FINE_UP_TO // FIRST_MARK
    if index < n_fine:
        return FIRST_MARK * (index + 1)
    return _FINE_UP_TO + _COARSE * (index + 1 - n_fine)
