"""What a run passes through to vLLM, and what an engine says of itself, without a vLLM started."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from capo_ray.cli import checks
from capo_ray.cli.compose import compose_train
from capo_ray.engines import EngineSpec, VllmEngine
from capo_ray.engines.extra import check_extra
from capo_ray.protocols import RunFailed
from tests.model_files import write_model


def test_arguments_of_vllm_are_set_one_by_one_or_as_a_mapping() -> None:
    config = compose_train(
        ["engine.extra.enable_expert_parallel=true", "engine.extra.cpu_offload_gb=1.5", "critic.extra={block_size: 64}"]
    )
    assert config.engine.extra == {"enable_expert_parallel": True, "cpu_offload_gb": 1.5}
    assert config.critic.extra == {"block_size": 64}
    assert compose_train(["engine.extra.quantization=fp8"]).engine.extra == {"quantization": "fp8"}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("engine.extra.enable_expert_paralel=true", "did you mean engine.extra.enable_expert_parallel?"),
        ("engine.extra.max_num_batched_tokens=9000", "set by a key of its own; use engine.max_batched_tokens"),
        ("engine.extra.dtype=bfloat16", "set by a key of its own; use model.dtype"),
        ("critic.extra.max_model_len=900", "set by a key of its own; use critic.max_model_len"),
        ("engine.extra.trust_remote_code=true", "code of a model directory is never run"),
        ("engine.extra.async_scheduling=true", "vLLM never schedules ahead on CPUs"),
        ("engine.extra.enable_expert_parallel=4", "expected bool, got 4"),
        ("engine.extra.cpu_offload_gb=many", "expected float, got 'many'"),
        ("engine.max_batched_tokens=100", "engine.max_batched_tokens must be > 160, the model length"),
    ],
)
def test_a_wrong_argument_is_refused_by_the_dry_run_with_what_to_do(
    tmp_path: Path, override: str, sentence: str
) -> None:
    model = write_model(tmp_path / "model")
    config = compose_train([f"model={model}", f"critic={model}", "model.max_model_len=160", override])
    with pytest.raises(RunFailed) as caught:
        checks.check_plan(config)
    assert sentence in str(caught.value)


def test_a_mapping_of_other_than_plain_values_is_refused() -> None:
    with pytest.raises(RunFailed, match=r"engine\.extra\.speculative_config"):
        compose_train(["engine.extra.speculative_config={method: ngram}"])


def test_arguments_that_only_gpus_take_are_taken_on_gpus() -> None:
    check_extra({"async_scheduling": False, "kv_cache_memory_bytes": 1 << 30}, "engine", on_gpu=True)


@pytest.mark.slow
def test_vllm_is_not_imported_to_check_its_arguments() -> None:
    code = (
        "import sys; from capo_ray.engines.extra import check_extra; check_extra({'cpu_offload_gb': 2}, 'engine', "
        "on_gpu=True); print([m for m in ('vllm', 'ray', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_critics_arguments_are_refused_where_no_engine_holds_it() -> None:
    with pytest.raises(RunFailed, match=r"critic\.extra\.block_size has no effect unless critic\.backend=vllm"):
        compose_train(["critic=calculator", "critic.extra.block_size=64"])


def test_an_engine_that_is_being_built_or_taken_down_still_has_figures() -> None:
    """The stepping thread is alive and has no engine: before it is built, and while it breaks."""
    engine, go_on = VllmEngine(EngineSpec(model_path="none")), threading.Event()
    stepper: Any = engine._stepper

    def build() -> Any:
        go_on.wait(10)
        raise ZeroDivisionError

    stepper._build = build
    stepper._thread.start()
    try:
        assert engine.stats()["running_requests"] == 0
    finally:
        go_on.set()
        stepper._thread.join(10)
    assert engine.stats()["serving_frac"] == 0


def test_an_engine_is_on_the_device_that_it_is_given() -> None:
    specs = [EngineSpec.of(compose_train([words]).engine, model_path="none") for words in ("engine=cpu", "engine=gpu")]
    assert [spec.device for spec in specs] == ["cpu", "gpu"]


@pytest.mark.parametrize(
    ("device", "length", "given", "expected"),
    [
        ("gpu", 512, 0, 8192),
        ("gpu", 12000, 0, 12001),
        ("gpu", 40000, 0, 16384),
        ("cpu", 512, 0, 4096),
        ("cpu", 8192, 0, 8193),
        ("gpu", 512, 3000, 3000),
    ],
)
def test_a_steps_tokens_follow_from_device_and_length(device: Any, length: int, given: int, expected: int) -> None:
    from capo_ray.engines.runtime import batched_tokens

    spec = EngineSpec(model_path="none", device=device, max_model_len=length, max_batched_tokens=given)
    assert batched_tokens(spec) == expected
