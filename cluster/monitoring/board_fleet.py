"""Dashboard: which nodes there are, and what tokens cost."""

from cluster.monitoring.panels import Board, Panel, Query, Row, number, rate

_TOKENS = ("arriero_prompt_tokens_total", "arriero_completion_tokens_total")


def _tokens_a_second(by: str = "") -> str:
    return " + ".join(rate(metric, "", by) for metric in _TOKENS)


FLEET = Board(
    "arriero-fleet",
    "Arriero / Fleet and cost",
    "Which nodes there are, which were taken back, and what a million tokens cost.",
    (
        Row(
            "Now",
            (
                number("Nodes", "All.", "sum(arriero_fleet_nodes)", "short"),
                number(
                    "On spot",
                    "Share of nodes.",
                    'sum(arriero_fleet_nodes{market="spot"}) / sum(arriero_fleet_nodes)',
                    "percentunit",
                ),
                number(
                    "Cost an hour",
                    "Of all nodes.",
                    "sum(arriero_fleet_cost_usd_per_hour)",
                    "currencyUSD",
                ),
                number(
                    "Cost of a million tokens",
                    "Nodes' cost over tokens of prompts and answers.",
                    f"sum(arriero_fleet_cost_usd_per_hour) / 3600 / ({_tokens_a_second()}) * 1e6",
                    "currencyUSD",
                ),
                number(
                    "Billed an hour",
                    "By the price list.",
                    "sum(rate(arriero_cost_usd_total[5m])) * 3600",
                    "currencyUSD",
                ),
                number(
                    "Reclaimed",
                    "Nodes, in an hour.",
                    "sum(increase(arriero_fleet_reclaims_total[1h]))",
                    "short",
                ),
            ),
        ),
        Row(
            "Nodes",
            (
                Panel(
                    "Nodes by zone and market",
                    "",
                    (
                        Query(
                            "sum by (zone, market, state) (arriero_fleet_nodes)",
                            "{{zone}} {{market}} {{state}}",
                        ),
                    ),
                ),
                Panel(
                    "Cost an hour by cloud and market",
                    "",
                    (
                        Query(
                            "sum by (cloud, market) (arriero_fleet_cost_usd_per_hour)",
                            "{{cloud}} {{market}}",
                        ),
                    ),
                    "currencyUSD",
                ),
                Panel(
                    "Reclaims",
                    "Nodes taken back in ten minutes, by zone.",
                    (
                        Query(
                            "sum by (zone) (increase(arriero_fleet_reclaims_total[10m]))",
                            "{{zone}}",
                        ),
                    ),
                ),
                Panel(
                    "Notices",
                    "What nodes heard from their clouds in ten minutes: a reclaim is likely, or "
                    "certain; questions that got no answer.",
                    (
                        Query(
                            "sum by (cloud, kind) (increase(arriero_reclaim_notices_total[10m]))",
                            "{{cloud}} {{kind}}",
                        ),
                        Query(
                            "sum by (cloud) (increase(arriero_reclaim_unanswered_total[10m]))",
                            "{{cloud}} unanswered",
                        ),
                    ),
                ),
                Panel(
                    "Time left at a notice",
                    "When a node that is taken back began to drain.",
                    (Query("arriero_reclaim_notice_left_seconds", "{{cloud}} {{replica}}"),),
                    "s",
                ),
            ),
        ),
        Row(
            "Tenants",
            (
                Panel(
                    "Billed a million tokens, by tenant",
                    "By the price list, over tokens of prompts and answers.",
                    (
                        Query(
                            f"{rate('arriero_cost_usd_total', '', 'tenant')} / "
                            f"(({_tokens_a_second('tenant')}) > 0) * 1e6",
                            "{{tenant}}",
                        ),
                    ),
                    "currencyUSD",
                ),
                Panel(
                    "Billed an hour, by tenant",
                    "",
                    (
                        Query(
                            "sum by (tenant) (rate(arriero_cost_usd_total[5m])) * 3600",
                            "{{tenant}}",
                        ),
                    ),
                    "currencyUSD",
                ),
            ),
        ),
    ),
    has_models=False,
)
