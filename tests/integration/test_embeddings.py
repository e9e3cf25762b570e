"""/v1/embeddings, with the real engine and a tiny model that embeds."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.integration.conftest import CONTEXT, make_settings, write_vllm
from tests.support.clients import connect, post, read_error
from tests.support.platform import LocalPlatform

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
HIDDEN = 64


@pytest.fixture(scope="module")
def platform(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    args = {"runner": "pooling", "convert": "embed"}
    settings = make_settings(write_vllm(tiny_model, args=args))
    folder = tmp_path_factory.mktemp("embed")
    with LocalPlatform(settings, folder, engines_in_processes=True) as found:
        yield found


def test_embedding_has_the_models_size_and_length_one(platform: LocalPlatform) -> None:
    answer = connect(platform.url).embeddings.create(model="tiny", input="One two three")
    vector = answer.data[0].embedding
    assert len(vector) == HIDDEN
    assert sum(x * x for x in vector) == pytest.approx(1.0, abs=1e-3)
    assert answer.usage.prompt_tokens == 3


def test_embeddings_of_a_list_keep_its_order(platform: LocalPlatform) -> None:
    client = connect(platform.url)
    texts = ["One two", "A quite different text", "One two"]
    together = client.embeddings.create(model="tiny", input=texts)
    assert [item.index for item in together.data] == [0, 1, 2]
    first, second, third = (item.embedding for item in together.data)
    assert first == pytest.approx(third, abs=1e-4)
    assert first != pytest.approx(second, abs=1e-2)


@pytest.mark.parametrize(
    "text", [[[-1]], [[49_152]], [[2**40]], [], [[]], None, {"a": 1}, [5] * (CONTEXT + 1)]
)
def test_input_that_cannot_be_embedded_is_400(platform: LocalPlatform, text: object) -> None:
    response = post(platform.url, "/v1/embeddings", {"model": "tiny", "input": text})
    assert response.status_code == 400, response.text
    read_error(response)
    assert connect(platform.url).embeddings.create(model="tiny", input="hi").data


def test_chat_with_a_model_that_only_embeds_is_400(platform: LocalPlatform) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        connect(platform.url).completions.create(model="tiny", prompt="hi")
    assert "cannot serve" in str(caught.value)
