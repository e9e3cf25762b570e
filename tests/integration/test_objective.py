"""A model's objective for the first token, over HTTP: who cannot get it in time is told so."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.integration.conftest import make_settings, write_echo
from tests.support.platform import LocalPlatform

pytestmark = pytest.mark.slow

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 40}


def test_request_that_is_late_gets_503_and_when_to_come_again(
    tiny_model: Path, tmp_path: Path
) -> None:
    settings = make_settings(
        write_echo(tiny_model, tokens_per_s=10.0, ttft_objective_s=1.0),
        limits={"max_running_per_engine": 1, "retry_after_s": 7.0},
        store={"state_dir": str(tmp_path / "state")},
    )
    with LocalPlatform(settings, tmp_path) as platform, ThreadPoolExecutor(2) as pool:
        url = f"{platform.url}/v1/chat/completions"
        running = pool.submit(httpx.post, url, json=BODY, timeout=30.0)
        platform.wait_until(lambda: platform.count_in_engines() == 1, 10.0, "running")
        late = httpx.post(url, json=BODY, timeout=30.0)
        assert late.status_code == 503
        assert late.headers["retry-after"] == "7"
        assert "ttft_objective_s" in late.json()["error"]["message"]
        assert late.elapsed.total_seconds() < 3.5, "the other one takes four"
        assert running.result().json()["usage"]["completion_tokens"] == 40
