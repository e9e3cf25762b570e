"""What is promised of answers, as dashboards and alerts have it."""

TTFT_S = 2.0
"""A first token is in time within this; one of the histogram's buckets ends there."""
TTFT_SHARE = 0.99
"""Of all first tokens, how many have to be in time."""


def ttft_burn(window: str, selector: str = "") -> str:
    """Returns how fast the allowance of late first tokens is used up: at 1 it just lasts."""
    name = "arriero_time_to_first_token_seconds"
    comma = "," if selector else ""
    good = f'sum(rate({name}_bucket{{{selector}{comma}le="{TTFT_S:g}"}}[{window}]))'
    late = f"(1 - {good} / sum(rate({name}_count{{{selector}}}[{window}])))"
    return f"{late} / {1 - TTFT_SHARE:.2g}"
