"""What the official clients see, with the echo engine: it says the prompt's tokens back."""

import asyncio
import re
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.support.clients import ask, connect, connect_anthropic, connect_async, post
from tests.support.platform import LocalPlatform

HELLO = "One two three four five six seven eight"


@pytest.fixture(scope="module")
def client(echo_platform: LocalPlatform) -> Iterator[openai.OpenAI]:
    with connect(echo_platform.url) as client:
        yield client


def test_completion_repeats_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=HELLO, max_tokens=8)
    assert answer.choices[0].text == HELLO
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_completion_streams_the_same_text(client: openai.OpenAI) -> None:
    chunks = client.completions.create(model="tiny", prompt=HELLO, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == HELLO


def test_completion_takes_several_prompts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["One two", "Three"], max_tokens=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.text for choice in answer.choices] == ["One", "Three"]


def test_completion_takes_token_ids(client: openai.OpenAI) -> None:
    by_text = client.completions.create(model="tiny", prompt=HELLO, max_tokens=8)
    ids = client.post("/../tokenize", body={"model": "tiny", "prompt": HELLO}, cast_to=object)
    assert isinstance(ids, dict)
    by_ids = client.completions.create(model="tiny", prompt=ids["tokens"], max_tokens=8)
    assert by_ids.choices[0].text == by_text.choices[0].text


def test_chat_answers_with_a_message(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=ask(HELLO), max_tokens=16)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"


def test_chat_streams_the_same_text_token_by_token(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="paced", messages=ask(HELLO), max_tokens=10)
    chunks = list(
        client.chat.completions.create(
            model="paced", messages=ask(HELLO), max_tokens=10, stream=True
        )
    )
    parts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "".join(parts) == whole.choices[0].message.content
    assert len(parts) > 5
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.usage is None for chunk in chunks)


def test_chat_stream_ends_with_usage_when_asked(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=ask(),
            max_tokens=7,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 7


def test_chat_gives_n_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=ask(), max_tokens=4, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 1
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


def test_chat_streams_n_choices(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        model="paced", messages=ask(), max_tokens=4, n=3, stream=True
    )
    finished = [
        choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason
    ]
    assert sorted(finished) == [0, 1, 2]


def test_stop_string_ends_the_text_and_frees_the_engine(echo_platform: LocalPlatform) -> None:
    answer = connect(echo_platform.url).completions.create(
        model="paced", prompt=HELLO, max_tokens=400, stop=" four"
    )
    assert answer.choices[0].text == "One two three"
    assert answer.choices[0].finish_reason == "stop"
    echo_platform.wait_until(lambda: echo_platform.count_running() == 0, 2.0, "idle")


def test_logprobs_are_given_for_each_token(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=ask(), max_tokens=5, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert [token.logprob for token in answer.choices[0].logprobs.content] == [0.0] * 5


def test_responses_api_answers(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="tiny", input=HELLO, max_output_tokens=12)
    assert answer.output_text
    assert answer.usage is not None
    assert answer.usage.output_tokens == 12


def test_responses_api_takes_null_for_the_default(client: openai.OpenAI) -> None:
    nulls = {"truncation": None, "background": None}
    answer = client.responses.create(
        model="tiny", input=HELLO, max_output_tokens=3, extra_body=nulls
    )
    assert answer.truncation == "disabled"
    assert answer.background is False


def test_responses_api_streams(client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(model="tiny", input=HELLO, max_output_tokens=12, stream=True)
    )
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")


def test_anthropic_client_is_answered(echo_platform: LocalPlatform) -> None:
    client = connect_anthropic(echo_platform.url)
    answer = client.messages.create(model="tiny", messages=ask(), max_tokens=6)
    assert answer.usage.output_tokens == 6
    assert answer.stop_reason == "max_tokens"


def test_anthropic_client_streams(echo_platform: LocalPlatform) -> None:
    client = connect_anthropic(echo_platform.url)
    with client.messages.stream(model="tiny", messages=ask(), max_tokens=6) as stream:
        text = "".join(stream.text_stream)
        assert text
        assert stream.get_final_message().stop_reason == "max_tokens"


def test_tokenize_and_detokenize_are_inverse(echo_platform: LocalPlatform) -> None:
    url = echo_platform.url
    tokens = post(url, "/tokenize", {"model": "tiny", "prompt": HELLO}).json()["tokens"]
    back = post(url, "/detokenize", {"model": "tiny", "tokens": tokens}).json()
    assert back["prompt"] == HELLO


def test_models_lists_names_and_aliases(client: openai.OpenAI) -> None:
    cards = {card.id: card for card in client.models.list()}
    assert set(cards) == {"tiny", "tiny-alias", "paced"}
    assert client.models.retrieve("tiny-alias").id == "tiny-alias"


def test_alias_is_served_by_its_model(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny-alias", prompt=HELLO, max_tokens=8)
    assert answer.choices[0].text == HELLO


def test_every_gateway_serves_every_model(echo_platform: LocalPlatform) -> None:
    assert len(echo_platform.urls) == 2
    for url in echo_platform.urls:
        for model in ("tiny", "paced"):
            answer = connect(url).completions.create(model=model, prompt=HELLO, max_tokens=3)
            assert answer.choices[0].text == "One two three"


async def test_many_streams_do_not_mix(echo_platform: LocalPlatform) -> None:
    async def read(i: int) -> str:
        async with connect_async(echo_platform.urls[i % 2]) as client:
            stream = await client.completions.create(
                model="paced", prompt=f"{i} {i} {i} {i}", max_tokens=7, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

    texts = await asyncio.gather(*(read(i) for i in range(1, 9)))
    assert texts == [f"{i} {i} {i} {i}" for i in range(1, 9)]


def test_request_id_of_the_client_comes_back(echo_platform: LocalPlatform) -> None:
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 1}
    given = post(echo_platform.url, "/v1/completions", body, **{"x-request-id": "my-id-1"})
    assert given.headers["x-request-id"] == "my-id-1"
    missing = post(echo_platform.url, "/v1/completions", body)
    assert missing.headers["x-request-id"].startswith("req-")


def test_docs_page_needs_nothing_from_elsewhere(echo_platform: LocalPlatform) -> None:
    page = httpx.get(f"{echo_platform.url}/docs").text
    addresses = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert len(addresses) >= 3
    for address in addresses:
        assert address.startswith("/"), address
        assert httpx.get(f"{echo_platform.url}{address}").status_code == 200, address
    assert "url: '/openapi.json'" in page
