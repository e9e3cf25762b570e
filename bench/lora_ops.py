"""What adapters cost an engine on a CPU: our LoRA products beside vLLM's, and beside none.

    python -m bench.lora_ops            five rounds
    python -m bench.lora_ops --quick    two

The embedded model, 32 requests of 32 tokens each, adapters of rank 8 on q and v. One process holds
two engines: one without adapters, and one whose products are switched between ours and vLLM's from
run to run. All are measured in turn, on one thread and in time of the processor, so that what else
runs counts little; ratios are to the engine without adapters in the same round.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.report import Figure, Spread, describe_run, print_figures, print_table, say
from serve_app.embedded_model import prepare_embedded_model
from tests.support.adapters import make_family

_SEQUENCES = 32
_TOKENS = 32
_PROMPT = 16
_SLOTS = 8
_TARGET = 0.6


def build(model: Path, **args: Any) -> Any:
    from vllm import LLM

    return LLM(
        str(model),
        max_model_len=512,
        max_num_seqs=_SEQUENCES,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
        **args,
    )


def find_punica(llm: Any) -> Any:
    """The wrapper that all of an engine's LoRA layers share."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    manager = worker.model_runner.lora_manager._adapter_manager
    return manager.punica_wrapper_mapping["language_model"]


def generate(llm: Any, adapters: list[Any]) -> float:
    """Returns output tokens a second of the processor; requests use adapters in turn, or none."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=_TOKENS, ignore_eos=True)
    prompts: list[Any] = [
        {"prompt_token_ids": [(i * 31 + j * 7) % 40_000 + 3 for j in range(_PROMPT)]}
        for i in range(_SEQUENCES)
    ]
    chosen = [adapters[i % len(adapters)] for i in range(_SEQUENCES)] if adapters else None
    started_s = time.process_time()
    llm.generate(prompts, params, lora_request=chosen, use_tqdm=False)
    return _SEQUENCES * _TOKENS / (time.process_time() - started_s)


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Returns tokens/s of each system and number of adapters, one value a round."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
    from vllm.lora.request import LoRARequest

    from deployments.cpu_lora_ops import CpuPunica, install

    model = prepare_embedded_model()
    names = make_family(folder, model, _SLOTS, ranks=(8,))
    plain = build(model)
    install()
    with_adapters = build(
        model, enable_lora=True, max_loras=_SLOTS, max_lora_rank=8, max_cpu_loras=_SLOTS
    )
    punica = find_punica(with_adapters)
    requests = [LoRARequest(n, i, str(folder / n)) for i, n in enumerate(names, 1)]
    speeds: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(-1, rounds):  # The first is to get warm.
        found = {"none": generate(plain, [])}
        for n_adapters in (0, 1, 2, 8):
            for name, kind in (("ours", CpuPunica), ("vLLM", PunicaWrapperCPU)):
                punica.__class__ = kind
                found[f"{name}, {n_adapters}"] = generate(with_adapters, requests[:n_adapters])
        if number >= 0:
            for name, speed in found.items():
                speeds[name].append(speed)
            say(f"round {number + 1}: " + ", ".join(f"{n}: {s:.0f}" for n, s in found.items()))
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    with tempfile.TemporaryDirectory() as folder:
        speeds = measure(Path(folder), 2 if options.quick else 5)
    ratios = {
        name: Spread.of(s / none for s, none in zip(values, speeds["none"], strict=True))
        for name, values in speeds.items()
    }
    print(describe_run("python -m bench.lora_ops " + " ".join(sys.argv[1:])))
    print_table(
        "Adapters on a CPU",
        ["products, adapters", "tokens/s", "beside no adapters"],
        [[name, Spread.of(speeds[name]).text(0), ratios[name].text()] for name in speeds],
    )
    figures = {
        "one_adapter": Figure(ratios["ours, 1"].mid, f">= {_TARGET}"),
        "one_adapter_stock": Figure(ratios["vLLM, 1"].mid),
        "eight_adapters": Figure(ratios["ours, 8"].mid),
        "eight_adapters_stock": Figure(ratios["vLLM, 8"].mid),
    }
    print_figures("lora_ops", figures, is_quick=options.quick)


if __name__ == "__main__":
    main()
