"""Dashboard: where adapters are, and what waits for them."""

from cluster.monitoring.panels import Board, Panel, Query, Row, quantiles, rate

_M = 'model=~"$model"'
_HITS = 'result="hit"'

ADAPTERS = Board(
    "arriero-adapters",
    "Arriero / Adapters",
    "Are adapters where their requests are, and what does it cost to bring them?",
    (
        Row(
            "Use",
            (
                Panel(
                    "In memory when asked for",
                    "Share of requests whose adapter some engine had in memory.",
                    (
                        Query(
                            f"{rate('arriero_adapter_requests_total', f'{_M},{_HITS}', 'model')} / "
                            f"({rate('arriero_adapter_requests_total', _M, 'model')} > 0)",
                            "{{model}}",
                        ),
                    ),
                    "percentunit",
                ),
                Panel(
                    "Requests by adapter",
                    "The ten most used.",
                    (
                        Query(
                            "topk(10, "
                            + rate("arriero_requests_total", f'{_M},adapter!=""', "adapter")
                            + ")",
                            "{{adapter}}",
                        ),
                    ),
                    "reqps",
                ),
                Panel(
                    "Output by adapter",
                    "The ten with the most tokens.",
                    (
                        Query(
                            "topk(10, "
                            + rate(
                                "arriero_completion_tokens_total", f'{_M},adapter!=""', "adapter"
                            )
                            + ")",
                            "{{adapter}}",
                        ),
                    ),
                    "tokens/s",
                ),
                Panel(
                    "Resident",
                    "Adapters on disk, in host memory, in slots of the batch; all engines.",
                    (
                        Query(
                            f"sum by (model, tier) (arriero_adapters_resident{{{_M}}})",
                            "{{model}} {{tier}}",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Loading",
            (
                Panel(
                    "Loads",
                    "Adapters brought into host memory, and those that could not be.",
                    (
                        Query(
                            rate("arriero_adapter_loads_total", _M, "model, outcome"),
                            "{{model}} {{outcome}}",
                        ),
                    ),
                    "ops",
                ),
                Panel(
                    "Time of a load",
                    "Fetch, check, disk and memory together.",
                    quantiles("arriero_adapter_load_seconds", _M),
                    "s",
                ),
                Panel(
                    "Evictions",
                    "Adapters that left memory for another. As many as loads: it is too small.",
                    (Query(rate("arriero_adapter_evictions_total", _M, "model"), "{{model}}"),),
                    "ops",
                ),
            ),
        ),
    ),
)
