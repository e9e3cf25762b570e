"""Schemathesis against /openapi.json: whatever it makes of the document, no answer is a 5xx.

Bodies are drawn both as the document wants them and against it. Where one names a model, it is
made to name the one that is served; else nearly all would end at the 404.
"""

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from serve_app.gateway.admin_adapters import LORA_PATHS
from serve_app.gateway.app import MODEL_PATHS
from tests.support.platform import LocalPlatform

STATE_PATHS = ("/health", "/ready", "/version", "/v1/models", "/v1/models/{model}")
LOADING = 503


@pytest.fixture(scope="module")
def document(echo_platform: LocalPlatform) -> Any:
    return schemathesis.openapi.from_url(f"{echo_platform.url}/openapi.json")


def test_document_has_every_path_and_no_other(document: Any) -> None:
    paths = {found.ok().path for found in document.get_all_operations()}
    of_accounts = {p for p in paths if p == "/v1/usage" or p.startswith("/admin/")}
    assert of_accounts
    assert paths - of_accounts == {*MODEL_PATHS, *STATE_PATHS, *LORA_PATHS, "/metrics/targets"}


@pytest.mark.parametrize(
    ("method", "path"),
    [*(("POST", path) for path in MODEL_PATHS), *(("GET", path) for path in STATE_PATHS)],
)
def test_no_request_makes_a_5xx(
    echo_platform: LocalPlatform, document: Any, method: str, path: str
) -> None:
    check_operation(echo_platform.url, document[path][method], max_examples=25)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_no_request_makes_a_5xx_of_the_real_engine(
    vllm_platform: LocalPlatform, document: Any, path: str
) -> None:
    check_operation(vllm_platform.url, document[path]["POST"], max_examples=40)
    assert all(process.is_alive() for process in vllm_platform.engine_processes.values())
    vllm_platform.wait_until(lambda: vllm_platform.count_running() == 0, 30.0, "idle")


def check_operation(url: str, operation: Any, max_examples: int) -> None:
    cases = operation.as_strategy(generation_mode=GenerationMode.POSITIVE) | (
        operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    )

    # Derandomized: the same requests in every run.
    @settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def check(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "tiny"
        answer = case.call(base_url=url, timeout=30.0)
        text = answer.text
        assert answer.status_code < 500, (case.as_curl_command()[:1000], text[:500])
        assert "Traceback" not in text
        if answer.status_code >= 400:
            assert json.loads(text)["error"]["message"]

    check()
