"""The real vLLM with more adapters than slots: nobody waits for ever, nobody harms another."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from serve_app.messages import Standing
from serve_app.names import TenantId
from tests.support.adapters import make_adapter
from tests.support.core_run import CoreRun

_ROOT = Path(__file__).parents[2]
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
_LENGTH = 40
_SLOTS = 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_adapters_share_slots_and_do_no_harm(tiny_model: Path) -> None:
    # In a process of its own: vLLM's core changes the process's state, and may be had once.
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.test_adapter_engine", str(tiny_model)],
        cwd=_ROOT,
        env=os.environ | _ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-4000:]


def check_third_adapter_is_served(run: CoreRun) -> None:
    """Two tenants keep both slots busy; a third's request is served in a request's length."""
    n_sent = 0

    def send(adapter: int, counter: int) -> None:
        nonlocal n_sent
        n_sent += 1
        tenant = Standing(TenantId(f"hot-{adapter}"), 0, counter, 10)
        # Of different lengths, so that some of each adapter's always run.
        length = _LENGTH - 5 * (n_sent % 5)
        run.send(f"hot-{adapter}-{n_sent}", [5, 6, n_sent], length, adapter, tenant)

    def refill(ended: list[str]) -> None:
        for name in ended:
            if name.startswith("hot"):
                send(int(name.split("-")[1]), 1000 + 10 * n_sent)

    for i in range(8):
        send(1 + i % 2, 1000)
    while len(run.started) < 6:
        refill(run.read())
    sent_at = run.n_steps
    run.send("third", [5, 6, 7], 5, 3, Standing(TenantId("cold"), 0, 20, 10))
    while "third" not in run.started:
        refill(run.read())
        assert run.n_steps - sent_at <= _LENGTH + 10, "not served within one request's length"
    names = {"hot-1", "hot-2"}
    before = len(run.started)
    while "third" not in run.ended:
        refill(run.read())
    while len(run.started) < before + 8:  # And the others go on, both of them.
        refill(run.read())
    assert names == {name.rpartition("-")[0] for name in run.started[before:]}
    run.core.abort([f"hot-{adapter}-{i}" for adapter in (1, 2) for i in range(n_sent + 1)])


def check_misfit_harms_nobody(run: CoreRun, folder: Path, tiny_model: Path) -> None:
    """An adapter that does not fit is refused with both sizes; who runs goes on."""
    from safetensors.torch import load_file, save_file

    bad = make_adapter(folder / "bad", tiny_model)
    weights = load_file(bad / "adapter_model.safetensors")
    name = next(name for name in weights if "q_proj.lora_B" in name)
    weights[name] = weights[name][:-1].contiguous()
    save_file(weights, bad / "adapter_model.safetensors", metadata={"format": "pt"})
    too_high = make_adapter(folder / "too-high", tiny_model, rank=16)
    run.send("bystander", [5, 6, 7], 30, 1)
    with pytest.raises(ValueError, match=r"is for 64 inputs and 63 outputs; .* has 64 and 64"):
        run.hold(9, bad)
    with pytest.raises(ValueError, match="16"):
        run.hold(10, too_high)
    with pytest.raises(Exception, match="missing"):
        run.hold(11, folder / "missing")
    run.read_until("bystander")
    assert len(run.tokens["bystander"]) == 30


def check_read_ahead_says_the_same(run: CoreRun, folder: Path) -> None:
    """An adapter that was read beside the steps is the one that vLLM reads itself."""
    run.hold(21, folder)
    run.hold(22, folder, is_read_ahead=False)
    for name, adapter in (("ahead", 21), ("by vLLM", 22), ("base", 0)):
        run.send(name, [5, 6, 7], 12, adapter)
        run.read_until(name)
    assert run.tokens["ahead"] == run.tokens["by vLLM"] != run.tokens["base"]


def check_slot_keeps_nothing_of_another(run: CoreRun, folder: Path, model: Path) -> None:
    """What another adapter has left in a slot changes nothing for one that has less."""
    for adapter in (41, 42):
        wide = make_adapter(
            folder / str(adapter), model, modules=["v_proj", "o_proj"], seed=adapter
        )
        run.hold(adapter, wide)
        run.core.activate_adapter(adapter).result(60.0)
    run.hold(43, folder / "2")
    run.core.activate_adapter(43).result(60.0)
    run.send("after others", [5, 6, 7], 12, 43)
    run.read_until("after others")
    run.send("by vLLM alone", [5, 6, 7], 12, 2)
    run.read_until("by vLLM alone")
    assert run.tokens["after others"] == run.tokens["by vLLM alone"] != run.tokens["base"]


def check_adapter_for_other_modules_is_refused(run: CoreRun, folder: Path, model: Path) -> None:
    """What this engine was told not to adapt would be an answer without the adapter."""
    other = make_adapter(folder / "other", model, modules=["down_proj"])
    with pytest.raises(
        ValueError, match="down_proj is not among the modules that this engine adapts"
    ):
        run.hold(31, other)


def main(model: Path) -> None:
    run = CoreRun(
        model,
        max_model_len=256,
        max_num_seqs=6,
        enforce_eager=True,
        dtype="float32",
        enable_lora=True,
        max_loras=_SLOTS,
        max_cpu_loras=8,
        max_lora_rank=8,
        lora_target_modules=["q_proj", "v_proj", "o_proj"],
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for adapter in (1, 2, 3):
            run.hold(adapter, make_adapter(folder / str(adapter), model, seed=adapter))
        check_third_adapter_is_served(run)
        check_misfit_harms_nobody(run, folder, model)
        check_read_ahead_says_the_same(run, folder / "1")
        check_adapter_for_other_modules_is_refused(run, folder, model)
        check_slot_keeps_nothing_of_another(run, folder, model)
    run.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
