"""What vLLM alone answers: the reference for what the platform must answer.

    python -m tests.support.bare_vllm < job.json > answers.json

A process of its own, as a vLLM engine changes its process's state.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_MARK = "ANSWERS:"


@dataclass(frozen=True)
class BareAnswers:
    """Token ids of each answer, greedily decoded, one prompt at a time.

    Attributes:
        texts: Of each text prompt.
        texts_again: The same prompts once more: their prefixes are cached by then.
        chats: Of each text as a user's message.
    """

    texts: list[list[int]]
    texts_again: list[list[int]]
    chats: list[list[int]]


def ask_bare_vllm(
    model: Path,
    engine_args: Mapping[str, Any],
    environment: Mapping[str, str],
    prompts: Sequence[str],
    chats: Sequence[str],
    max_tokens: int,
) -> BareAnswers:
    """Starts vLLM's own engine with these arguments and asks it everything."""
    job = {
        "engine_args": {"model": str(model), **engine_args},
        "prompts": list(prompts),
        "chats": list(chats),
        "max_tokens": max_tokens,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.bare_vllm"],
        input=json.dumps(job),
        cwd=_ROOT,
        env=os.environ | dict(environment),
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith(_MARK))
    return BareAnswers(**json.loads(line.removeprefix(_MARK)))


def main() -> None:
    from vllm import LLM, SamplingParams

    job = json.load(sys.stdin)
    llm = LLM(**job["engine_args"])
    params = SamplingParams(temperature=0.0, max_tokens=job["max_tokens"])

    def complete(prompt: str) -> list[int]:
        return list(llm.generate([prompt], params, use_tqdm=False)[0].outputs[0].token_ids)

    def chat(text: str) -> list[int]:
        message: Any = {"role": "user", "content": text}
        return list(llm.chat([message], params, use_tqdm=False)[0].outputs[0].token_ids)

    answers = {
        "texts": [complete(prompt) for prompt in job["prompts"]],
        "texts_again": [complete(prompt) for prompt in job["prompts"]],
        "chats": [chat(text) for text in job["chats"]],
    }
    print(f"{_MARK}{json.dumps(answers)}", flush=True)


if __name__ == "__main__":
    main()
