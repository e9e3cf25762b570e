"""Dashboard: what models and their engines do."""

from cluster.monitoring.panels import Board, Panel, Query, Row, quantile, quantiles, rate

_M = 'model=~"$model"'
_V = 'model_name=~"$model"'
_INTERVAL = "[$__rate_interval]"


def _p99_by_process(metric: str) -> Query:
    return Query(quantile(0.99, metric, "", "process"), "{{process}}")


MODELS = Board(
    "arriero-models",
    "Arriero / Models and engines",
    "What engines do, what they lose, and what the processes beside them cost.",
    (
        Row(
            "Engines",
            (
                Panel(
                    "Ready",
                    "1 where every gateway can serve the model.",
                    (Query(f"min by (model) (arriero_model_ready{{{_M}}})", "{{model}}"),),
                ),
                Panel(
                    "Wanted",
                    "Engines that there are to be, and those that serve. Wanted above serving for "
                    "long: they do not start, or there is no room.",
                    (
                        Query(
                            f"max by (model) (arriero_wanted_engines{{{_M}}})", "wanted {{model}}"
                        ),
                        Query(
                            f'sum by (model) (arriero_engines{{{_M}, state="ready"}})',
                            "serving {{model}}",
                        ),
                    ),
                ),
                Panel(
                    "Woken",
                    "Requests that found their model asleep or waking, in five minutes, and their "
                    "mean seconds to the first token.",
                    (
                        Query(
                            f"sum by (model) (increase(arriero_wake_seconds_count{{{_M}}}[5m]))",
                            "{{model}} requests",
                        ),
                        Query(
                            "sum by (model) "
                            f"(increase(arriero_wake_seconds_sum{{{_M}}}[5m])) / clamp_min(sum by "
                            f"(model) (increase(arriero_wake_seconds_count{{{_M}}}[5m])), 1)",
                            "{{model}} seconds",
                        ),
                    ),
                ),
                Panel(
                    "Engines lost",
                    "That left (`left`) or died (`failed`, `silent`), in five minutes; starts that "
                    "failed in a row.",
                    (
                        Query(
                            f"max by (model) (arriero_engine_failed_starts{{{_M}}})",
                            "{{model}} failed starts",
                        ),
                        Query(
                            "sum by (model, cause) "
                            f"(increase(arriero_engines_lost_total{{{_M}}}[5m]))",
                            "{{model}} {{cause}}",
                        ),
                        Query(
                            rate("arriero_cell_migrations_total", _M, "model"),
                            "{{model}} to another cell",
                        ),
                    ),
                ),
                Panel(
                    "Batch",
                    "Requests in the batch, by engine, and its places.",
                    (
                        Query(f"arriero_engine_running_requests{{{_M}}}", "{{replica}}"),
                        Query(
                            f"max by (model) (arriero_engine_running_requests_limit{{{_M}}})",
                            "places {{model}}",
                        ),
                    ),
                ),
                Panel(
                    "KV cache in use",
                    "Share of blocks, by engine. Near 1, requests are preempted.",
                    (Query(f"arriero_engine_kv_used_ratio{{{_M}}}", "{{replica}}"),),
                    "percentunit",
                    limit=0.95,
                ),
                Panel(
                    "Output by engine",
                    "Tokens generated.",
                    (Query(rate("arriero_engine_tokens_total", _M, "replica"), "{{replica}}"),),
                    "tokens/s",
                ),
                Panel(
                    "Not begun",
                    "Requests that engines have and have not begun.",
                    (Query(f"arriero_engine_waiting_requests{{{_M}}}", "{{replica}}"),),
                ),
            ),
        ),
        Row(
            "vLLM",
            (
                Panel(
                    "Preemptions",
                    "Requests that had to leave the batch, and are computed again.",
                    (Query(rate("vllm:num_preemptions_total", _V, "replica"), "{{replica}}"),),
                    "ops",
                ),
                Panel(
                    "Prefix cache: found",
                    "Share of prompt tokens whose work was found done.",
                    (
                        Query(
                            f"{rate('vllm:prefix_cache_hits_total', _V)} / "
                            f"({rate('vllm:prefix_cache_queries_total', _V)} > 0)",
                            "found",
                        ),
                    ),
                    "percentunit",
                ),
                Panel(
                    "Tokens a step",
                    "Of prompts and answers together.",
                    quantiles("vllm:iteration_tokens_total", _V),
                    "tokens",
                ),
                Panel(
                    "In the engine: queue, prefill, decode (p99)",
                    "Where the time of a request goes once an engine has it.",
                    tuple(
                        Query(
                            quantile(0.99, f"vllm:request_{part}_time_seconds", _V),
                            part,
                        )
                        for part in ("queue", "prefill", "decode")
                    ),
                    "s",
                ),
            ),
        ),
        Row(
            "Moves",
            (
                Panel(
                    "Requests that moved",
                    "Their engine died or left, and they went on at another one. Stopped are those "
                    "under which engines died again and again.",
                    (
                        Query(rate("arriero_stopped_requests_total", _M), "stopped"),
                        Query(
                            rate("arriero_migrations_total", _M, "model, cause"),
                            "{{model}} {{cause}}",
                        ),
                    ),
                    "ops",
                ),
                Panel(
                    "Pause of a move",
                    "From the loss of the engine to the next token.",
                    quantiles("arriero_migration_gap_seconds", _M),
                    "s",
                ),
                Panel(
                    "Computed again",
                    "Tokens of prompts and answers, for moves.",
                    (Query(rate("arriero_recomputed_tokens_total", _M, "model"), "{{model}}"),),
                    "tokens/s",
                ),
                Panel(
                    "Ways to an engine",
                    "With room, or express: to a full one, where another request yields.",
                    (Query(rate("arriero_grants_total", _M, "model, kind"), "{{model}} {{kind}}"),),
                    "ops",
                ),
            ),
        ),
        Row(
            "Processes",
            (
                Panel(
                    "Event loop late (p99)",
                    "How late tasks wake. What is slow here is slow for all.",
                    (_p99_by_process("arriero_event_loop_lag_seconds"),),
                    "s",
                    limit=0.1,
                ),
                Panel(
                    "Memory",
                    "Resident, by process.",
                    (
                        Query(
                            'process_resident_memory_bytes{process!=""}',
                            "{{process}} {{replica}}",
                        ),
                    ),
                    "bytes",
                ),
                Panel(
                    "Processor",
                    "Cores in use, by process.",
                    (
                        Query(
                            f'rate(process_cpu_seconds_total{{process!=""}}{_INTERVAL})',
                            "{{process}} {{replica}}",
                        ),
                    ),
                ),
                Panel(
                    "What is to be written",
                    "Usage records that are nowhere safe; the age of what is not on disk.",
                    (
                        Query("sum(arriero_usage_records_waiting)", "usage records"),
                        Query("max(arriero_ledger_unsynced_seconds)", "ledger, seconds"),
                        Query(
                            quantile(0.99, "arriero_ledger_sync_seconds", ""),
                            "ledger's sync p99, seconds",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
