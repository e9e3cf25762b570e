"""The prefix cache of an engine without weights: whole blocks of tokens, those used last."""

from collections import OrderedDict
from collections.abc import Sequence

from vllm.v1.engine import EngineCoreRequest
from vllm.v1.metrics.stats import PrefillStats

BLOCK = 16
"""Tokens, as in vLLM."""


class BlockCache:
    """Remembers which blocks were computed; no weights, no KV.

    Args:
        capacity: Tokens that it holds; 0 holds nothing.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def match(self, tokens: Sequence[int], salt: str = "") -> int:
        """Returns how many of the first tokens are there: never all, as one is always computed."""
        if not self._blocks:
            return 0
        n_tokens = 0
        for block in _hash_blocks(tokens, salt):
            if block not in self._blocks:
                break
            n_tokens += BLOCK
        return min(n_tokens, max(len(tokens) - 1, 0))

    def hold(self, tokens: Sequence[int], salt: str = "") -> None:
        """Takes in what was computed; the longest prefix is forgotten first."""
        if not self.capacity:
            return
        for block in reversed(_hash_blocks(tokens, salt)):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) * BLOCK > self.capacity:
            self._blocks.popitem(last=False)


def _hash_blocks(tokens: Sequence[int], salt: str) -> list[int]:
    hashes, before = [], hash(salt)
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        before = hash((before, *tokens[start : start + BLOCK]))
        hashes.append(before)
    return hashes


def salt_of(request: EngineCoreRequest) -> str:
    """Returns what keeps a request's blocks apart from others'."""
    adapter = "" if request.lora_request is None else request.lora_request.lora_path
    return f"{request.cache_salt or ''}\0{adapter}"


def prefill_stats(n_prompt: int, n_cached: int) -> PrefillStats:
    """Returns what an engine says of a prompt with its first token."""
    computed = n_prompt - n_cached
    return PrefillStats(n_prompt, computed, n_cached, num_local_cached_tokens=n_cached)
