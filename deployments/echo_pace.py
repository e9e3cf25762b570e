"""How long the steps of an engine without weights take. Used by the echo engine and simulators."""

import msgspec


class Pace(msgspec.Struct, frozen=True):
    """What a step takes: some time by itself, and more for what is in it."""

    step_s: float
    """Of a step by itself: reading the weights."""
    per_sequence_s: float = 0.0
    per_kv_token_s: float = 0.0
    per_prompt_token_s: float = 0.0

    def time_step(self, n_running: int, kv_tokens: int, prompt_tokens: int) -> float:
        """Returns the seconds of a step that gives each running request a token.

        Args:
            n_running: Requests in the batch.
            kv_tokens: Tokens of all of them in the KV cache.
            prompt_tokens: Those whose prompts are computed in this step.
        """
        return (
            self.step_s
            + self.per_sequence_s * n_running
            + self.per_kv_token_s * kv_tokens
            + self.per_prompt_token_s * prompt_tokens
        )
