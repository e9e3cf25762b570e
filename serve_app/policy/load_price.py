"""Decides what loading an adapter counts for, in output tokens.

Inputs: loads of an engine so far and how long its steps waited for them, how fast it produces
tokens at present; what the settings say.

The rule: while an adapter is loaded the engine's steps wait, so others lose the tokens that it
would have produced: the mean wait of a load times tokens a second. Who is alone on an engine, or
finds it idle, pays next to nothing. The settings may fix the price, or set it to 0.

Invariants (each a property test of that name):

1. fixed_price_is_kept: a price in the settings is the price.
2. idle_engine_asks_nothing: without tokens produced or steps that waited, a load is free.
3. price_is_what_others_lose: all loads together cost what the engine would have produced.
"""


def price_load(
    n_loads: int, stall_s: float, tokens_per_s: float, fixed_tokens: float | None
) -> float:
    """Returns the price of one load.

    Args:
        n_loads: Of the engine since it started.
        stall_s: Seconds that its steps waited for all of them.
        tokens_per_s: Output tokens of late.
        fixed_tokens: What the settings say; None measures.
    """
    if fixed_tokens is not None:
        return fixed_tokens
    return stall_s / n_loads * tokens_per_s if n_loads > 0 else 0.0
