"""Two real engines with prefix caches: a conversation goes on where it has been."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import make_settings, write_vllm
from tests.support.platform import LocalPlatform

pytestmark = pytest.mark.slow

N_CONVERSATIONS = 4


@pytest.fixture(scope="module")
def platform(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    settings = make_settings(write_vllm(tiny_model))
    folder = tmp_path_factory.mktemp("platform")
    with LocalPlatform(settings, folder, engines_in_processes=True, n_engines=2) as platform:
        yield platform


def _ask(platform: LocalPlatform, prompt: list[int]) -> dict[str, Any]:
    answer = httpx.post(
        f"{platform.url}/v1/completions",
        json={"model": "tiny", "prompt": prompt, "max_tokens": 16, "ignore_eos": True},
        timeout=60.0,
    )
    assert answer.status_code == 200, answer.text
    usage: dict[str, Any] = answer.json()["usage"]
    return usage


def test_next_turns_find_their_prefix_in_the_cache(platform: LocalPlatform) -> None:
    prompts = [[10 + (7 * c + i * i) % 200 for i in range(150)] for c in range(N_CONVERSATIONS)]
    with ThreadPoolExecutor(N_CONVERSATIONS) as pool:
        firsts = list(pool.map(lambda prompt: _ask(platform, prompt), prompts))
        longer = [prompt + prompt[:60] for prompt in prompts]
        # In another order: by load alone, half of them would go to the other engine.
        seconds = list(pool.map(lambda prompt: _ask(platform, prompt), reversed(longer)))
    for usage in firsts:
        assert not usage["prompt_tokens_details"]["cached_tokens"]
    for usage in seconds:
        assert usage["prompt_tokens_details"]["cached_tokens"] >= 128
