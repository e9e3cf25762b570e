"""Which engines understand one another's requests: those of one dialect.

A request reaches an engine as tokens, and what has been generated moves from engine to engine as
tokens. That is right only between engines of the same model and tokenizer. While other weights
are rolled out, engines of two dialects run beside each other.
"""

import hashlib
import json

from serve_app.config_model import ModelSettings, VllmEngine

_OPERATIONAL = frozenset(
    {
        "async_scheduling",
        "block_size",
        "compilation_config",
        "cpu_offload_gb",
        "disable_custom_all_reduce",
        "enable_chunked_prefill",
        "enable_prefix_caching",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "load_format",
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "stream_interval",
    }
)
"""Arguments that say how an engine works and not what tokens mean. Any other may change that."""


def dialect_of_model(model: ModelSettings) -> str:
    """Return the dialect of a model's engines, 12 hexadecimal digits."""
    engine = model.engine
    args = (
        engine.args if isinstance(engine, VllmEngine) else {"max_model_len": engine.max_model_len}
    )
    meaning = {
        "source": model.source.model_dump(mode="json"),
        "kind": engine.kind,
        "args": {name: value for name, value in args.items() if name not in _OPERATIONAL},
        "adapters": model.adapters is not None,
    }
    text = json.dumps(meaning, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def make_config_id(dialect: str, fingerprint: str) -> str:
    """Return the id of a front end that parses requests for engines of a dialect."""
    return f"{dialect}.{fingerprint}"


def dialect_of(config_id: str) -> str:
    """Return the dialect of an engine or a front end; empty where it has not said any."""
    return config_id.partition(".")[0] if "." in config_id else ""
