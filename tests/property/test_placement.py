import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from serve_app.config_model import (
    CpuAccelerator,
    EchoEngine,
    EmbeddedSource,
    GpuAccelerator,
    ModelSettings,
    VllmEngine,
)
from serve_app.names import ModelName
from serve_app.policy.placement import plan_placement

EPSILON = 1e-6

gpus = st.builds(
    GpuAccelerator,
    kind=st.just("gpu"),
    type=st.none() | st.sampled_from(["H100", "A100"]),
    cpus_per_gpu=st.floats(0, 16),
    share=st.just(1.0) | st.floats(0.01, 0.99),
)
cpus = st.builds(
    CpuAccelerator,
    kind=st.just("cpu"),
    cpus=st.floats(0, 64),
    threads=st.none() | st.integers(1, 64),
)


@st.composite
def models(draw: st.DrawFn) -> ModelSettings:
    accelerator = draw(gpus | cpus)
    sizes = st.just(1) if accelerator.kind == "cpu" else st.integers(1, 8)
    tensor, pipeline = draw(sizes), draw(sizes)
    if accelerator.kind == "gpu" and tensor * pipeline > 1:
        assume(accelerator.share > 0.5)
    is_cpu = accelerator.kind == "cpu"
    args = {} if is_cpu else {"kv_cache_memory_bytes": 1 << 30}
    return ModelSettings(
        name=ModelName("m"),
        source=EmbeddedSource(kind="embedded"),
        engine=VllmEngine(args=args),
        accelerator=accelerator,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
    )


def share_of(model: ModelSettings) -> float:
    return model.accelerator.share if model.accelerator.kind == "gpu" else 0.0


@given(models())
def test_every_gpu_is_asked_for(model: ModelSettings) -> None:
    placement = plan_placement(model)
    asked = sum(bundle["GPU"] for bundle in placement.bundles)
    n_gpus = model.tensor_parallel_size * model.pipeline_parallel_size
    assert asked == pytest.approx(n_gpus * share_of(model))


@given(models())
def test_actor_fits_first_bundle(model: ModelSettings) -> None:
    placement = plan_placement(model)
    if placement.bundles:
        first = placement.bundles[0]
        assert placement.num_cpus <= first["CPU"] + EPSILON
        assert placement.num_gpus <= first["GPU"] + EPSILON
    else:
        assert placement.num_gpus == 0


@given(models())
def test_bundles_are_possible(model: ModelSettings) -> None:
    for bundle in plan_placement(model).bundles:
        assert bundle["GPU"] <= 1 or bundle["GPU"] == int(bundle["GPU"])


@given(models())
def test_one_node_unless_pipelined(model: ModelSettings) -> None:
    placement = plan_placement(model)
    assert (placement.strategy == "STRICT_PACK") == (model.pipeline_parallel_size == 1)


@given(models())
def test_parts_are_on_different_gpus(model: ModelSettings) -> None:
    bundles = plan_placement(model).bundles
    if len(bundles) > 1:
        assert all(2 * bundle["GPU"] > 1 for bundle in bundles)


@given(models())
def test_type_is_pinned(model: ModelSettings) -> None:
    if model.accelerator.kind == "cpu":
        return
    for bundle in plan_placement(model).bundles:
        pins = [name for name in bundle if name.startswith("accelerator_type:")]
        wanted = model.accelerator.type
        assert pins == ([] if wanted is None else [f"accelerator_type:{wanted}"])


@given(models())
def test_ray_workers_hold_one_gpu_each_and_the_actor_none(model: ModelSettings) -> None:
    placement = plan_placement(model)
    if placement.engine_args.get("distributed_executor_backend") == "ray":
        assert placement.num_gpus == 0
        assert all(bundle["GPU"] <= 1 for bundle in placement.bundles)
    else:
        assert len(placement.bundles) <= 1


@given(models())
def test_engine_takes_no_more_memory_than_its_share(model: ModelSettings) -> None:
    args = plan_placement(model).engine_args
    if 0 < share_of(model) < 1:
        assert args["gpu_memory_utilization"] <= share_of(model)
    else:
        assert "gpu_memory_utilization" not in args


def test_echo_engine_is_placed_like_any_other() -> None:
    model = ModelSettings(
        name=ModelName("m"),
        source=EmbeddedSource(kind="embedded"),
        engine=EchoEngine(kind="echo"),
        accelerator=GpuAccelerator(kind="gpu", share=0.5),
    )
    assert plan_placement(model).num_gpus == 0.5


def test_processor_settings_become_variables_of_vllm() -> None:
    model = ModelSettings(
        name=ModelName("m"),
        source=EmbeddedSource(kind="embedded"),
        accelerator=CpuAccelerator(kind="cpu", kv_cache_gib=3, threads=2),
    )
    env = plan_placement(model).env
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert env["OMP_NUM_THREADS"] == "2"
