"""Dashboard: does every tenant get its share."""

from cluster.monitoring.panels import Board, Panel, Query, Row, quantiles, rate
from cluster.monitoring.slo import TTFT_S

_M = 'model=~"$model"'
_TTFT = "arriero_time_to_first_token_seconds"

TENANTS = Board(
    "arriero-tenants",
    "Arriero / Tenants and fairness",
    "Does every tenant get its share, and who is held back by what?",
    (
        Row(
            "Shares",
            (
                Panel(
                    "Output by tenant",
                    "Tokens generated.",
                    (Query(rate("arriero_completion_tokens_total", _M, "tenant"), "{{tenant}}"),),
                    "tokens/s",
                ),
                Panel(
                    "Prompts by tenant",
                    "Tokens of prompts.",
                    (Query(rate("arriero_prompt_tokens_total", _M, "tenant"), "{{tenant}}"),),
                    "tokens/s",
                ),
                Panel(
                    "Waiting by tenant",
                    "",
                    (Query("sum by (tenant) (arriero_waiting_requests)", "{{tenant}}"),),
                ),
                Panel(
                    "Running by tenant",
                    "",
                    (Query("sum by (tenant) (arriero_running_requests)", "{{tenant}}"),),
                ),
            ),
        ),
        Row(
            "Fairness",
            (
                Panel(
                    "Gap and bound",
                    "Of two tenants that both wait, by domain, in tokens of cost. The gap has to "
                    "stay below the bound.",
                    (
                        Query("max by (domain) (arriero_fairness_gap_tokens)", "gap {{domain}}"),
                        Query(
                            "max by (domain) (arriero_fairness_gap_bound_tokens)",
                            "bound {{domain}}",
                        ),
                    ),
                    "tokens",
                ),
                Panel(
                    "Lag by tenant",
                    "How far a waiting tenant is behind the one that has got the most.",
                    (Query("max by (tenant) (arriero_fairness_lag_tokens)", "{{tenant}}"),),
                    "tokens",
                ),
                Panel(
                    "Queue wait p99 by tenant",
                    "From the router to an engine. Who sends more than its share waits longer.",
                    quantiles("arriero_queue_wait_seconds", _M, "tenant"),
                    "s",
                ),
                Panel("TTFT p99 by tenant", "", quantiles(_TTFT, _M, "tenant"), "s", limit=TTFT_S),
            ),
        ),
        Row(
            "Limits",
            (
                Panel(
                    "Refusals by limit",
                    "Requests that a tenant's own limits refused.",
                    (
                        Query(
                            rate("arriero_limit_refusals_total", "", "tenant, limit"),
                            "{{tenant}} {{limit}}",
                        ),
                    ),
                    "reqps",
                ),
                Panel(
                    "Refusals by the router",
                    "The queue was crowded, or they waited too long.",
                    (
                        Query(
                            rate("arriero_router_refusals_total", _M, "model, reason"),
                            "{{model}} {{reason}}",
                        ),
                    ),
                    "reqps",
                ),
                Panel(
                    "Reserved and settled",
                    "Tokens set aside when requests begin, and used when they have ended.",
                    (
                        Query(rate("arriero_reserved_tokens_total"), "reserved"),
                        Query(rate("arriero_settled_tokens_total"), "settled"),
                    ),
                    "tokens/s",
                ),
                Panel(
                    "Budgets used",
                    "Of the day or the month, what still runs included.",
                    (
                        Query(
                            "max by (tenant, limit) (arriero_budget_used_ratio)",
                            "{{tenant}} {{limit}}",
                        ),
                    ),
                    "percentunit",
                    limit=0.9,
                ),
            ),
        ),
    ),
)
