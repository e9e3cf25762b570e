"""Dashboard: is it well."""

from cluster.monitoring.panels import Board, Panel, Query, Row, number, quantile, quantiles, rate
from cluster.monitoring.slo import TTFT_S, TTFT_SHARE, ttft_burn

_M = 'model=~"$model"'
_TTFT = "arriero_time_to_first_token_seconds"

OVERVIEW = Board(
    "arriero-overview",
    "Arriero / Overview",
    "Is it well? Traffic, errors, times, what is full; who waits, and what it costs.",
    (
        Row(
            "Now",
            (
                number(
                    "Requests", "That ended, a second.", rate("arriero_requests_total", _M), "reqps"
                ),
                number(
                    "Failed",
                    "Share of requests that the platform failed, of five minutes.",
                    f'(sum(increase(arriero_requests_total{{{_M},outcome="failed"}}[5m])) or '
                    f"vector(0)) / sum(increase(arriero_requests_total{{{_M}}}[5m]))",
                    "percentunit",
                    0.01,
                ),
                number(
                    "TTFT p99", "Time to the first token.", quantile(0.99, _TTFT, _M), "s", TTFT_S
                ),
                number(
                    "Output",
                    "Tokens that are generated.",
                    rate("arriero_completion_tokens_total", _M),
                    "tokens/s",
                ),
                number(
                    "Engines ready",
                    "Of all models.",
                    f'sum(arriero_engines{{{_M},state="ready"}})',
                    "short",
                ),
                number(
                    "Billed an hour",
                    "By the price list, at the present rate.",
                    f"sum(rate(arriero_cost_usd_total{{{_M}}}[5m])) * 3600",
                    "currencyUSD",
                ),
            ),
        ),
        Row(
            "Traffic and errors",
            (
                Panel(
                    "Requests by outcome",
                    "`refused`: a limit, a full queue, a mistake of the client. `failed` is ours.",
                    (Query(rate("arriero_requests_total", _M, "outcome"), "{{outcome}}"),),
                    "reqps",
                    has_tones=True,
                ),
                Panel(
                    "HTTP answers by status",
                    "All paths.",
                    (Query(rate("arriero_responses_total", "", "code"), "{{code}}"),),
                    "reqps",
                    has_tones=True,
                ),
            ),
        ),
        Row(
            "Times",
            (
                Panel(
                    "Time to the first token",
                    f"The promise is {TTFT_SHARE:.0%} within {TTFT_S:g} s.",
                    quantiles(_TTFT, _M),
                    "s",
                    limit=TTFT_S,
                ),
                Panel(
                    "TTFT promise: burn",
                    "How fast the allowance of late first tokens is used up. 1 just lasts; "
                    "14.4 over an hour and five minutes wakes someone.",
                    (
                        Query(ttft_burn("5m", _M), "5 min"),
                        Query(ttft_burn("1h", _M), "1 h"),
                    ),
                    limit=14.4,
                ),
                Panel(
                    "Between tokens",
                    "Time from one token of an answer to the next.",
                    quantiles("arriero_inter_token_seconds", _M),
                    "s",
                ),
                Panel(
                    "Whole requests",
                    "From arrival to end.",
                    quantiles("arriero_request_duration_seconds", _M),
                    "s",
                ),
            ),
        ),
        Row(
            "Load",
            (
                Panel(
                    "Tokens",
                    "`cached` are prompt tokens that an engine found computed.",
                    (
                        Query(rate("arriero_prompt_tokens_total", _M), "prompt"),
                        Query(rate("arriero_cached_tokens_total", _M), "cached"),
                        Query(rate("arriero_completion_tokens_total", _M), "completion"),
                    ),
                    "tokens/s",
                ),
                Panel(
                    "Waiting and running",
                    "What waits while engines have room is for an adapter; else add engines.",
                    (
                        Query("sum(arriero_waiting_requests) or vector(0)", "waiting"),
                        Query("sum(arriero_running_requests)", "running"),
                        Query("sum(arriero_engine_running_requests_limit)", "places"),
                    ),
                ),
                Panel(
                    "Fairness: gap to bound",
                    "Greatest difference of service of two tenants that wait, as a share of what "
                    "it may be. Above 1 is a defect.",
                    (
                        Query(
                            "max by (domain) (arriero_fairness_gap_tokens) / "
                            "(max by (domain) (arriero_fairness_gap_bound_tokens) > 0)",
                            "{{domain}}",
                        ),
                    ),
                    "percentunit",
                    limit=1.0,
                ),
                Panel(
                    "Engines by state",
                    "",
                    (Query(f"sum by (state) (arriero_engines{{{_M}}})", "{{state}}"),),
                    has_tones=True,
                ),
            ),
        ),
    ),
)
