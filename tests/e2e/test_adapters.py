"""Eight adapters and the base model in one batch say what each says alone in bare vLLM."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serve_app.embedded_model import prepare_embedded_model
from tests.support.adapters import ALL_LINEAR, ATTENTION, make_adapter

_ROOT = Path(__file__).parents[2]
_MARK = "ANSWERS:"
_ADAPTERS = 8
_TOKENS = 16
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
_ENGINE: dict[str, Any] = {
    "max_model_len": 256,
    "max_num_seqs": 32,
    "enforce_eager": True,
    "dtype": "float32",  # In float32 greedy decoding does not depend on who else is in the batch.
    "enable_lora": True,
    "max_loras": _ADAPTERS,
    "max_cpu_loras": _ADAPTERS,
    "max_lora_rank": 64,
}


def make_prompts() -> list[list[int]]:
    """One for each adapter and, last, for the base model; of unlike lengths."""
    return [[(i * 31 + j * 7) % 40_000 + 3 for j in range(5 + 9 * i)] for i in range(_ADAPTERS + 1)]


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_mixed_batch_says_what_each_adapter_says_alone(tmp_path: Path) -> None:
    model = prepare_embedded_model()
    for i in range(_ADAPTERS):
        rank = (8, 16, 32, 64)[i % 4]
        modules = ALL_LINEAR if i % 2 else ATTENTION
        make_adapter(tmp_path / str(i + 1), model, rank=rank, modules=modules, seed=i, strength=2.0)
    alone = ask("bare", model, tmp_path)
    mixed = ask("mixed", model, tmp_path)
    assert mixed == alone
    assert len({tuple(tokens) for tokens in alone}) == _ADAPTERS + 1


def ask(how: str, model: Path, folder: Path) -> list[list[int]]:
    """Returns the answers, in a process of its own: vLLM changes its process's state."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.test_adapters", how, str(model), str(folder)],
        cwd=_ROOT,
        env=os.environ | _ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith(_MARK))
    answers: list[list[int]] = json.loads(line.removeprefix(_MARK))
    return answers


def answer_alone(model: Path, folder: Path) -> list[list[int]]:
    """One request after the other, in vLLM's own engine with vLLM's own products."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(str(model), **_ENGINE)
    params = SamplingParams(temperature=0.0, max_tokens=_TOKENS, ignore_eos=True)
    answers = []
    for i, prompt in enumerate(make_prompts(), 1):
        lora = LoRARequest(str(i), i, str(folder / str(i))) if i <= _ADAPTERS else None
        said = llm.generate({"prompt_token_ids": prompt}, params, lora_request=lora, use_tqdm=False)
        answers.append(list(said[0].outputs[0].token_ids))
    return answers


def answer_mixed(model: Path, folder: Path) -> list[list[int]]:
    """All at once, three times over, in our core."""
    from tests.support.core_run import CoreRun

    run = CoreRun(model, **_ENGINE)
    for i in range(1, _ADAPTERS + 1):
        run.hold(i, folder / str(i))
    prompts = make_prompts()
    names = [f"{copy}-{i}" for copy in range(3) for i in range(len(prompts))]
    for name in names:
        i = int(name.partition("-")[2])
        run.send(name, prompts[i], _TOKENS, adapter=(i + 1) % (_ADAPTERS + 1))
    run.read_until(*names)
    run.stop()
    for copy in (1, 2):
        for i in range(len(prompts)):
            assert run.tokens[f"{copy}-{i}"] == run.tokens[f"0-{i}"], f"copies of {i} differ"
    return [run.tokens[f"0-{i}"] for i in range(len(prompts))]


if __name__ == "__main__":
    how, model, folder = sys.argv[1:]
    answer = answer_alone if how == "bare" else answer_mixed
    print(_MARK + json.dumps(answer(Path(model), Path(folder))), flush=True)
