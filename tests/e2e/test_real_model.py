"""The real vLLM with the real small model, through Ray, the router and the gateway."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from serve_app.config_model import ModelSettings
from serve_app.embedded_model import prepare_embedded_model
from serve_app.keys import hash_key
from serve_app.policy.placement import plan_placement
from tests.support.bare_vllm import BareAnswers, ask_bare_vllm
from tests.support.clients import ask, connect, post
from tests.support.ray_platform import SMALL, RayPlatform
from tests.support.settings import write_args, write_vllm_model
from tests.support.tiny_model import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(900)]

REAL, TINY = "smollm2-135m", "tiny"
MAX_TOKENS = 24
ENGINE_ARGS = {"max_model_len": 2048, "max_num_seqs": 8, "enforce_eager": True}
# One thread each: with another number of them, sums are made in another order.
CPU = {"kind": "cpu", "cpus": 0.2, "kv_cache_gib": 1, "threads": 1}
PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "Once upon a time there was a mule driver who",
    "def fibonacci(n):\n",
    "The three primary colours are",
    "In 1969, the first man",
    "A short poem about mountains:\n",
    "2 + 2 = 4, 3 + 3 = 6, 4 + 4 =",
    "Dear Sir or Madam,\n\nI am writing to",
    "The opposite of hot is",
    "To make bread, you need",
    "La capitale de l'Espagne est",
    "SELECT name FROM users WHERE",
    "The largest planet of the solar system",
    "Monday, Tuesday, Wednesday,",
    '{"name": "Ada", "age":',
    "Photosynthesis is the process by which",
    "Q: Who wrote Hamlet?\nA:",
    "The train leaves at",
    "word " * 300,
]
CHATS = ["What is the capital of France?", "Say hello in Spanish.", "Name three animals."]


def write_real() -> dict[str, Any]:
    return write_vllm_model(
        ENGINE_ARGS,
        name=REAL,
        accelerator=CPU,
        drain_timeout_s=5.0,
        front_end={"tool_call_parser": "hermes", "enable_auto_tool_choice": True},
    )


@pytest.fixture(scope="module")
def bare() -> BareAnswers:
    environment = plan_placement(ModelSettings.model_validate(write_real())).env
    return ask_bare_vllm(
        prepare_embedded_model(), ENGINE_ARGS, environment, PROMPTS, CHATS, MAX_TOKENS
    )


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The real model beside a tiny one."""
    tiny = write_vllm_model(
        ENGINE_ARGS | {"dtype": "float32"},
        name=TINY,
        source={"kind": "local", "path": str(make_tiny_model(tmp_path_factory.mktemp("m"), 7))},
        accelerator=CPU,
        drain_timeout_s=5.0,
    )
    return write_args(write_real(), tiny, **SMALL)


@pytest.fixture(scope="module")
def platform(bare: BareAnswers, args: dict[str, Any]) -> Iterator[RayPlatform]:
    """Started after `bare`, as both want the processor."""
    with RayPlatform() as found:
        found.deploy_and_wait(args, timeout_s=600.0)
        yield found


def complete(platform: RayPlatform, prompt: str) -> list[int]:
    answer = connect(platform.url).completions.create(
        model=REAL,
        prompt=prompt,
        max_tokens=MAX_TOKENS,
        temperature=0.0,
        extra_body={"return_token_ids": True},
    )
    ids: list[int] = answer.choices[0].model_dump()["token_ids"]
    return ids


def complete_streaming(platform: RayPlatform, prompt: str) -> list[int]:
    chunks = connect(platform.url).completions.create(
        model=REAL,
        prompt=prompt,
        max_tokens=MAX_TOKENS,
        temperature=0.0,
        stream=True,
        extra_body={"return_token_ids": True},
    )
    choices = [choice.model_dump() for chunk in chunks for choice in chunk.choices]
    return [token for choice in choices for token in choice["token_ids"] or ()]


def test_greedy_answers_equal_bare_vllms(platform: RayPlatform, bare: BareAnswers) -> None:
    assert [complete(platform, prompt) for prompt in PROMPTS] == bare.texts


def test_greedy_streams_equal_bare_vllms(platform: RayPlatform, bare: BareAnswers) -> None:
    assert [complete_streaming(platform, prompt) for prompt in PROMPTS] == bare.texts_again


def test_greedy_chats_equal_bare_vllms(platform: RayPlatform, bare: BareAnswers) -> None:
    client = connect(platform.url)
    answers = [
        client.chat.completions.create(
            model=REAL,
            messages=ask(text),
            max_tokens=MAX_TOKENS,
            temperature=0.0,
            extra_body={"return_token_ids": True},
        ).choices[0]
        for text in CHATS
    ]
    assert [answer.model_dump()["token_ids"] for answer in answers] == bare.chats
    assert "Paris" in str(answers[0].message.content)


def test_second_model_answers_beside_the_first(platform: RayPlatform) -> None:
    client = connect(platform.url)
    texts = {
        client.completions.create(
            model=model, prompt="The capital of France is", max_tokens=8, temperature=0.0
        )
        .choices[0]
        .text
        for model in (REAL, TINY)
    }
    assert len(texts) == 2
    assert {card.id for card in client.models.list()} == {REAL, TINY}


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("model", [REAL, TINY])
def test_json_schema_is_followed(platform: RayPlatform, model: str) -> None:
    answer = connect(platform.url).chat.completions.create(
        model=model,
        messages=ask("Describe a person as JSON."),
        max_tokens=200,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": SCHEMA, "strict": True},
        },
    )
    assert answer.choices[0].finish_reason == "stop"
    # The grammar lets control characters stand in strings; a model of noise uses them.
    found = json.loads(answer.choices[0].message.content or "", strict=False)
    jsonschema.validate(found, SCHEMA)


def test_strict_tool_is_called_with_arguments_that_fit_its_schema(platform: RayPlatform) -> None:
    answer = connect(platform.url).chat.completions.create(
        model=REAL,
        messages=ask("Store a person called Ada, who is 36."),
        max_tokens=200,
        tools=[
            {
                "type": "function",
                "function": {"name": "store", "parameters": SCHEMA, "strict": True},
            }
        ],
        tool_choice={"type": "function", "function": {"name": "store"}},
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert calls[0].function.name == "store"
    jsonschema.validate(json.loads(calls[0].function.arguments), SCHEMA)


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_frees_the_engine_within_a_second(
    platform: RayPlatform, stream: bool
) -> None:
    def engine() -> dict[str, Any]:
        found: dict[str, Any] = platform.ready()["models"][REAL]["engines"][0]
        return found

    request = {
        "model": REAL,
        "prompt": "word " * 400,
        "max_tokens": 1500,
        "stream": stream,
        "ignore_eos": True,
    }
    with httpx.Client(timeout=5.0) as client:
        if stream:
            with client.stream("POST", f"{platform.url}/v1/completions", json=request) as answer:
                lines = answer.iter_lines()  # Held: a dropped iterator closes the stream.
                next(lines)
                platform.wait_until(lambda: engine()["running"] == 1, 5.0, "running")
                assert engine()["kv_usage"] > 0
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{platform.url}/v1/completions", json=request, timeout=2.0)
    # `/ready` is at most a second behind the engine.
    time.sleep(2.2)
    left = engine()
    assert (left["running"], left["waiting"], left["kv_usage"]) == (0, 0, 0.0), left


def test_answer_says_where_its_time_went(platform: RayPlatform) -> None:
    body = {"model": REAL, "prompt": "Once upon a time", "max_tokens": 8}
    answer = post(platform.url, "/v1/completions", body)
    names = ("gateway", "queue", "router", "adapter-load", "engine-ttft")
    parts = {name: float(answer.headers[f"x-arriero-{name}-ms"]) for name in names}
    assert sum(parts.values()) == pytest.approx(
        float(answer.headers["x-arriero-ttft-ms"]), abs=0.35
    )
    assert max(parts, key=lambda name: parts[name]) == "engine-ttft"


def test_logs_of_the_whole_run_hold_no_text_and_no_key(
    platform: RayPlatform, args: dict[str, Any]
) -> None:
    """Runs last: it turns keys on, and everything that can be logged."""
    key, secret = "key-that-nobody-may-see", "Zanzibar marmalade for breakfast"
    tenants = [{"id": "a", "keys": [{"hash": hash_key(key)}]}]
    keyed = {"auth": {"kind": "keys"}, "tenants": tenants, "logging": {"level": "DEBUG"}}
    platform.deploy_and_wait(args | keyed, timeout_s=300.0)
    headers = {"authorization": f"Bearer {key}", "x-request-id": "look-for-me"}
    body = {"model": REAL, "messages": ask(secret), "max_tokens": 24}
    answer = post(platform.url, "/v1/chat/completions", body, **headers)
    assert answer.status_code == 200, answer.text
    said = answer.json()["choices"][0]["message"]["content"]
    bad = post(platform.url, "/v1/chat/completions", body | {"temperature": -1}, **headers)
    assert bad.status_code == 400
    wrong = {"authorization": "Bearer key-that-does-not-work"}
    assert post(platform.url, "/v1/chat/completions", body, **wrong).status_code == 401
    platform.wait_until(lambda: platform.logs().count(b"look-for-me") >= 3, 20.0, "logged")
    logs = platform.logs()
    assert b"POST /v1/chat/completions" in logs
    long_prompts = [prompt.strip() for prompt in (*PROMPTS, *CHATS) if len(prompt) > 20]
    for hidden in (key, "key-that-does-not-work", secret, said, *long_prompts):
        assert hidden.encode() not in logs, hidden
