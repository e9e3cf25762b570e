import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.config import Settings, check_exposure, is_loopback, parse_settings
from serve_app.errors import ConfigError
from tests.support.settings import write_args, write_model

# Importing vLLM and Ray warns about their own use of deprecated calls.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
slow_start = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
json_like = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=12,
)
ARG_NAMES = [
    *("max_model_len", "max_num_seqs", "gpu_memory_utilization", "compilation_config", "dtype"),
    *("limit_mm_per_prompt", "offload_params", "kv_cache_dtype", "hf_overrides", "model", "x"),
    *("pooler_config", "quantization_config", "reasoning_parser", "reasoning_parser_plugin"),
    *("max_num_batched_tokens", "enable_chunked_prefill", "kv_cache_memory_bytes"),
]
engines = st.fixed_dictionaries(
    {"kind": st.sampled_from(["vllm", "echo", "x"]) | json_like},
    optional={
        "args": st.dictionaries(st.sampled_from(ARG_NAMES), json_like) | json_like,
        "env": st.dictionaries(st.sampled_from(["VLLM_X", "HF_TOKEN", "A"]), json_like),
    },
)
accelerators = st.fixed_dictionaries(
    {"kind": st.sampled_from(["cpu", "gpu"]) | json_like},
    optional={"type": json_like, "share": json_like, "cpus": json_like, "threads": json_like},
)
models = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["a", "b"]) | json_like,
        "aliases": json_like,
        "source": st.just({"kind": "embedded"}) | json_like,
        "engine": engines | json_like,
        "accelerator": accelerators | json_like,
        "front_end": json_like,
        "tensor_parallel_size": json_like,
        "replicas": json_like,
    },
)
almost_settings = st.fixed_dictionaries(
    {"models": st.lists(models, max_size=3) | json_like},
    optional=dict.fromkeys(
        ("gateway", "router", "limits", "auth", "tenants", "store", "logging", "other"), json_like
    ),
)


def parse_or_refuse(args: Any) -> Settings | None:
    try:
        return parse_settings(args)
    except ConfigError:
        return None


@slow_start
@given(json_like)
def test_any_json_is_parsed_or_refused(args: Any) -> None:
    parse_or_refuse(args)


@slow_start
@given(almost_settings)
def test_what_is_almost_settings_is_parsed_or_refused(args: Any) -> None:
    parse_or_refuse(args)


valid_changes: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "tensor_parallel_size": st.integers(1, 8),
        "replicas": st.integers(1, 9).map(lambda n: {"min": n, "max": n + 1}),
        "accelerator": st.sampled_from(
            [{"kind": "gpu"}, {"kind": "gpu", "type": "A100", "share": 0.6}]
        ),
        "drain_timeout_s": st.floats(0.1, 1000.0),
    },
)


@slow_start
@given(valid_changes)
def test_settings_survive_a_round_trip_through_json(changes: dict[str, Any]) -> None:
    changes = {"accelerator": {"kind": "gpu"}} | changes
    parsed = parse_settings(write_args(write_model(**changes)))
    again = parse_settings(json.loads(json.dumps(parsed.model_dump(mode="json"))))
    assert again == parsed


@slow_start
@given(st.text(min_size=1), st.sampled_from(["gateway", "limits", "logging", "router"]))
def test_an_unknown_key_is_never_ignored(key: str, section: str) -> None:
    inner: Any = Settings.model_fields[section].annotation
    if key in inner.model_fields:
        return
    with pytest.raises(ConfigError):
        parse_settings(write_args(**{section: {key: 1}}))


@slow_start
@given(st.text() | st.ip_addresses().map(str))
def test_nothing_but_loopback_is_open_without_keys(host: str) -> None:
    parsed = parse_settings(write_args())
    try:
        check_exposure(host, parsed)
    except ConfigError:
        assert not is_loopback(host)
    else:
        assert host == "localhost" or host.strip("[]").startswith(("127.", "::1", "::ffff:127."))
