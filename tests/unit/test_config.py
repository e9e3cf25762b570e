import pickle
from typing import Any

import pytest

from serve_app.config import (
    AuthKeys,
    AuthOff,
    CpuAccelerator,
    EmbeddedSource,
    Settings,
    VllmEngine,
    check_exposure,
    parse_settings,
)
from serve_app.errors import ConfigError
from tests.support.settings import write_args, write_model, write_vllm_model

# Importing vLLM and Ray warns about their own use of deprecated calls.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

HASH_A = "a" * 64
HASH_B = "b" * 64
GPU = {"kind": "gpu", "type": "H100"}


def refuse(args: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_settings(args)
    return str(caught.value)


def refuse_model(**changes: Any) -> str:
    return refuse(write_args(write_model(**changes)))


def refuse_vllm(args: dict[str, Any], **changes: Any) -> str:
    return refuse(write_args(write_vllm_model(args, **changes)))


def write_keyed(*models: dict[str, Any], **tenants: list[str]) -> dict[str, Any]:
    """Returns `args` with keys on and these tenants and key hashes."""
    declared = [
        {"id": tenant_id, "keys": [{"hash": key_hash} for key_hash in hashes]}
        for tenant_id, hashes in tenants.items()
    ]
    return write_args(*models, auth={"kind": "keys"}, tenants=declared)


def test_settings_need_only_name_source_and_accelerator() -> None:
    model = {
        "name": "tiny",
        "source": {"kind": "embedded"},
        "accelerator": {"kind": "cpu"},
    }
    settings = parse_settings({"models": [model]})
    assert settings.models[0].source == EmbeddedSource(kind="embedded")
    assert settings.models[0].accelerator == CpuAccelerator(kind="cpu")
    assert settings.models[0].engine == VllmEngine()
    assert settings.auth == AuthOff()


def test_settings_survive_json() -> None:
    settings = parse_settings(write_keyed(a=[HASH_A]))
    assert settings.auth == AuthKeys(kind="keys")
    assert parse_settings(settings.model_dump(mode="json")) == settings


def test_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("text")))
    assert str(error) == "text"


def test_off_is_understood_without_quotes() -> None:
    # YAML reads an unquoted `off` as false.
    assert parse_settings(write_args(auth={"kind": False})).auth == AuthOff()


@pytest.mark.parametrize(
    ("args", "path", "value", "remedy"),
    [
        ({}, "models", None, "is required"),
        ({"models": []}, "models", None, "at least 1 entry"),
        ({"models": 3}, "models", "3", "must be a list"),
        (write_args(limit={}), "limit", None, "did you mean 'limits'?"),
        (write_args(host="x"), "host", '"x"', "http_options.host"),
        (write_args(limits={"max_waiting": 0}), "limits.max_waiting", "0", "at least 1."),
        (write_args(limits={"max_waiting": "9"}), "limits.max_waiting", '"9"', "without quotes"),
        (write_args(limits={"max_waiting": True}), "limits.max_waiting", "true", "an integer"),
        (write_args(limits=[1]), "limits", "a list", "must be a mapping"),
        (write_args(gateway={"cpus": -1.0}), "gateway.cpus", "-1.0", "at least 0"),
        (write_args(gateway={"cpus": float("nan")}), "gateway.cpus", "NaN", "finite"),
        (write_args(gateway={"replica": 2}), "gateway.replica", "2", "mean 'replicas'?"),
        (write_args(gateway={"replicas": 10**60}), "gateway.replicas", "a huge number", "at most"),
        (write_args(logging={"level": "LOUD"}), "logging.level", '"LOUD"', "'WARNING'"),
        (write_args(auth={"kind": "oidc"}), "auth.kind", '"oidc"', "one of 'off', 'keys'"),
        (write_args(auth={}), "auth.kind", None, "must be one of 'off', 'keys'"),
        (write_args(auth=3), "auth", None, "mapping"),
        (write_args(tenants=[{}]), "tenants[0].id", None, "is required. Name of the tenant"),
        (write_args(tenants=[{"id": "a b"}]), "tenants[0].id", '"a b"', "1 to 64 letters"),
        (write_args(tenants=[{"id": "a", "weight": 0}]), "tenants[0].weight", "0", "at least"),
        (write_args(tenants=[{"id": "a", "tier": 10}]), "tenants[0].tier", "10", "at most 9"),
        (
            write_args(tenants=[{"id": "a", "limits": {"rpm": 3}}]),
            "tenants[0].limits.rpm",
            "3",
            "known: completion_tokens_per_min",
        ),
        (
            write_args(tenants=[{"id": "a", "allowed_models": ["a*b"]}]),
            "tenants[0].allowed_models[0]",
            '"a*b"',
            "with '*' at the end",
        ),
        (
            write_args(store={"database": {"kind": "postgresql", "url": "postgresql://u:p@h/d"}}),
            "store.database.url",
            None,
            "must be env:NAME",
        ),
        (write_args(store={"state_dir": "x"}), "store.state_dir", '"x"', "an absolute path"),
    ],
)
def test_settings_are_refused_with_path_value_and_remedy(
    args: dict[str, Any], path: str, value: str | None, remedy: str
) -> None:
    place, text = refuse(args).splitlines()[1:3]
    assert place.strip() == (path if value is None else f"{path} = {value}")
    assert remedy in text


@pytest.mark.parametrize(
    ("changes", "path", "value", "remedy"),
    [
        ({"name": "a:b"}, "name", '"a:b"', "without ':'"),
        ({"name": ""}, "name", '""', "1 to 128 letters"),
        ({"name": 3}, "name", "3", "put it in quotes"),
        ({"name": "x" * 200}, "name", f'"{"x" * 79}…', "1 to 128 letters"),
        ({"aliases": ["ok", "a b"]}, "aliases[1]", '"a b"', "letters"),
        ({"source": {"kind": "url"}}, "source.kind", '"url"', "'object_store'"),
        ({"source": "hub"}, "source", '"hub"', "must be a mapping of settings"),
        ({"source": {"kind": "huggingface"}}, "source.id", None, "is required. Repository"),
        ({"source": {"kind": "local", "path": "m"}}, "source.path", '"m"', "absolute path"),
        (
            {"source": {"kind": "object_store", "uri": "http://a/b"}},
            "source.uri",
            '"http://a/b"',
            "s3://bucket/folder",
        ),
        ({"engine": {"kind": "echo", "token_per_s": 1}}, "engine.token_per_s", None, "tokens_per"),
        ({"accelerator": {"kind": "tpu"}}, "accelerator.kind", '"tpu"', "'cpu', 'gpu'"),
        (
            {"accelerator": {"kind": "gpu", "type": "H1000"}},
            "accelerator.type",
            '"H1000"',
            "did you mean 'H100'?",
        ),
        ({"replicas": {"max": 0}}, "replicas.max", "0", "must be at least 1"),
        ({"replicas": {"min": 3}}, "replicas", None, "min is 3 while max is 1; raise max"),
        ({"startup_timeout_s": 0.0}, "startup_timeout_s", "0.0", "greater than 0"),
        ({"max_model_len": 5}, "max_model_len", "5", "write it as engine.args.max_model_len"),
        (
            {"front_end": {"reasoning_parser": "qwen3"}},
            "front_end.reasoning_parser",
            '"qwen3"',
            "write it as engine.args.reasoning_parser",
        ),
        (
            {"front_end": {"enable_auto_tool_choice": True}},
            "front_end",
            None,
            "enable_auto_tool_choice is true while tool_call_parser is null; name the parser",
        ),
    ],
)
def test_model_is_refused_with_path_value_and_remedy(
    changes: dict[str, Any], path: str, value: str | None, remedy: str
) -> None:
    place, text = refuse_model(**changes).splitlines()[1:3]
    assert place.strip().startswith(f"models[0].{path}")
    assert value is None or place.strip() == f"models[0].{path} = {value}"
    assert remedy in text


@pytest.mark.parametrize(
    ("args", "path", "value", "remedy"),
    [
        ({"max_model_len": "4k"}, "max_model_len", '"4k"', "must be an integer."),
        ({"max_model_len": True}, "max_model_len", "true", "must be an integer."),
        ({"max_num_seq": 3}, "max_num_seq", "3", "did you mean 'max_num_seqs'?"),
        ({"max-model-len": 3}, "max-model-len", "3", "did you mean 'max_model_len'?"),
        ({"max_num_seqs": 0}, "max_num_seqs", "0", "must be at least 1."),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization", "1.5", "at most 1"),
        ({"kv_cache_dtype": "fp9"}, "kv_cache_dtype", '"fp9"', "did you mean 'fp8'?"),
        ({"enforce_eager": "yes"}, "enforce_eager", '"yes"', "must be true or false"),
        ({"compilation_config": 3}, "compilation_config", "3", "must be a mapping"),
        (
            {"compilation_config": {"modee": 3}},
            "compilation_config.modee",
            "3",
            "did you mean 'mode'?",
        ),
        ({"limit_mm_per_prompt": {"image": "x"}}, "limit_mm_per_prompt", None, "entry"),
        ({"model": "x/y"}, "model", '"x/y"', "set the model's source"),
        ({"served_model_name": "x"}, "served_model_name", '"x"', "name and aliases"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size", "2", "tensor_parallel_size"),
        ({"data_parallel_size": 2}, "data_parallel_size", "2", "set replicas"),
        ({"scheduler_cls": "a.B"}, "scheduler_cls", '"a.B"', "own scheduler"),
        ({"reasoning_parser": "qwen33"}, "reasoning_parser", '"qwen33"', "did you mean 'qwen3'?"),
    ],
)
def test_engine_argument_is_refused_with_path_value_and_remedy(
    args: dict[str, Any], path: str, value: str | None, remedy: str
) -> None:
    place, text = refuse_vllm(args, accelerator=GPU).splitlines()[1:3]
    assert place.strip().startswith(f"models[0].engine.args.{path}")
    assert value is None or place.strip() == f"models[0].engine.args.{path} = {value}"
    assert remedy in text


@pytest.mark.parametrize(
    "args",
    [
        {"max_model_len": None},
        {"max_model_len": -1},
        {"enable_prefix_caching": None, "seed": 3, "dtype": "bfloat16"},
        {"compilation_config": {"cudagraph_capture_sizes": [1, 2]}},
        {"hf_overrides": {"anything": [1, {}]}, "quantization": "fp8"},
        {"offload_params": ["a"], "limit_mm_per_prompt": {"image": 2}},
        {"speculative_config": {"method": "ngram"}, "kv_cache_dtype": "fp8"},
    ],
)
def test_engine_argument_is_passed_through(args: dict[str, Any]) -> None:
    settings = parse_settings(write_args(write_vllm_model(args)))
    engine = settings.models[0].engine
    assert isinstance(engine, VllmEngine)
    assert engine.args == args


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("VLLM_LOGING_LEVEL", "did you mean 'VLLM_LOGGING_LEVEL'?"),
        ("VLLM_CPU_KVCACHE_SPACE", "set accelerator.kv_cache_gib"),
        ("HF_TOKEN", "environment of the machines"),
        ("PATH", "must begin with one of VLLM_"),
    ],
)
def test_engine_variable_is_refused_without_its_value(name: str, remedy: str) -> None:
    engine = {"kind": "vllm", "env": {name: "hush"}}
    message = refuse_model(engine=engine)
    assert f"models[0].engine.env.{name}\n" in message
    assert remedy in message
    assert "hush" not in message


def test_tool_parser_is_refused_if_vllm_has_none_of_that_name() -> None:
    message = refuse_vllm({}, front_end={"tool_call_parser": "hermess"})
    assert 'models[0].front_end.tool_call_parser = "hermess"' in message
    assert "did you mean 'hermes'?" in message


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            write_model(tensor_parallel_size=2),
            ("tensor_parallel_size is 2 while accelerator.kind is 'cpu'", "set tensor_parallel"),
        ),
        (
            write_model(pipeline_parallel_size=2, accelerator=GPU),
            ("pipeline_parallel_size is 2 while engine.kind is 'echo'", "size to 1"),
        ),
        (
            write_vllm_model({"gpu_memory_utilization": 0.5}),
            ("gpu_memory_utilization is 0.5 while accelerator.kind is 'cpu'", "kv_cache_gib"),
        ),
        (
            write_model(tensor_parallel_size=2, accelerator=GPU | {"share": 0.5}),
            ("accelerator.share is 0.5 while one engine uses 2 GPUs", "above 0.5"),
        ),
        (
            write_vllm_model({}, accelerator=GPU | {"share": 0.5}),
            ("share is 0.5 while engine.args.kv_cache_memory_bytes is not set", "set the bytes"),
        ),
        (
            write_vllm_model(
                {"kv_cache_memory_bytes": 1 << 30, "gpu_memory_utilization": 0.9},
                accelerator=GPU | {"share": 0.5},
            ),
            ("gpu_memory_utilization is 0.9 while accelerator.share is 0.5", "lower one"),
        ),
        (
            write_vllm_model(
                {
                    "max_model_len": 4096,
                    "max_num_batched_tokens": 2048,
                    "enable_chunked_prefill": False,
                }
            ),
            ("max_num_batched_tokens is 2048 while max_model_len is 4096", "to 4096"),
        ),
        (
            write_vllm_model({"max_num_batched_tokens": 16, "max_num_seqs": 32}),
            ("max_num_batched_tokens is 16 while max_num_seqs is 32", "raise the first"),
        ),
    ],
)
def test_contradiction_names_both_settings_and_the_remedy(
    model: dict[str, Any], words: tuple[str, str]
) -> None:
    message = refuse(write_args(model))
    assert "  models[0]\n" in message
    for part in words:
        assert part in message


@pytest.mark.parametrize("alias", ["b", "a"])
def test_name_of_two_models_is_refused(alias: str) -> None:
    first, second = write_model("a"), write_model("b", aliases=[alias])
    message = refuse(write_args(first, second))
    assert f"models[1].aliases[0] are both {alias!r}" in message
    assert "rename or remove" in message


def test_key_of_two_tenants_is_refused_without_showing_it() -> None:
    message = refuse(write_keyed(a=[HASH_A], b=[HASH_B, HASH_A]))
    assert "is listed for tenant 'a' and again for 'b'" in message
    assert HASH_A not in message


def test_tenant_that_is_declared_twice_is_refused() -> None:
    message = refuse(write_args(tenants=[{"id": "a"}, {"id": "a"}]))
    assert "the tenant 'a' is declared twice" in message


def test_keys_that_nobody_would_look_at_are_refused() -> None:
    message = refuse(write_keyed(a=[HASH_A]) | {"auth": {"kind": "off"}})
    assert "tenants has keys for 'a' while auth.kind is 'off'" in message


def test_password_of_the_store_is_not_shown() -> None:
    url = "postgresql://user:hush-hush@host/database"
    assert "hush" not in refuse(write_args(store={"database": {"kind": "postgresql", "url": url}}))


def test_key_in_the_clear_is_refused_without_showing_it() -> None:
    message = refuse(write_keyed(a=["sk-secret"]) | {"api_key": "sk-other"})
    assert "tenants[0].keys[0].hash\n" in message
    assert "SHA-256" in message
    assert "sk-secret" not in message
    assert "sk-other" not in message


def test_one_message_lists_every_problem() -> None:
    message = refuse(
        write_args(
            write_vllm_model({"max_num_seq": 1, "model": "x"}, name="a:b"),
            write_model(source={"kind": "huggingface"}),
            limits={"max_waiting": 0},
        )
    )
    assert message.startswith("The settings are not valid (5 problems):")


def test_message_has_no_jargon() -> None:
    message = refuse({"models": [{"source": {"kind": 3}}], "gateway": 1, "auth": {"kind": []}})
    for word in ("pydantic", "http", "Input", "extra_forbidden", "discriminator", "union"):
        assert word not in message


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8"])
def test_loopback_is_accepted_without_keys(host: str) -> None:
    check_exposure(host, parse_settings(write_args()))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.3", "example.org", "localhost.example"])
def test_other_address_is_refused_without_keys(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_exposure(host, parse_settings(write_args()))
    assert f"http_options.host is {host!r} while auth.kind is 'off'" in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_other_address_is_accepted_with_keys() -> None:
    check_exposure("0.0.0.0", parse_settings(write_keyed(a=[HASH_A])))


def test_settings_are_frozen() -> None:
    settings: Any = parse_settings(write_args())
    with pytest.raises(ValueError, match="frozen"):
        settings.models = ()
    assert isinstance(settings, Settings)
