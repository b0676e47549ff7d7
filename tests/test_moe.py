"""A mixture of experts: a learner's update reaches a real engine under the names of the files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from benchmarks.tiny import write_tokenizer
from capo_ray.engines import EngineSpec, VllmEngine
from capo_ray.learners.file_names import FileNames
from capo_ray.learners.microbatch import to_inputs
from capo_ray.learners.policy import Policy, load_policy
from capo_ray.weights import Apart, Canary, PayloadWriter, Witness
from tests.test_file_names import write_moe

pytestmark = pytest.mark.real
IDS = tuple((7 * i) % 90 + 3 for i in range(60))


def logprobs(policy: Policy) -> tuple[float, ...]:
    with torch.no_grad():
        return tuple(policy(to_inputs([IDS], [1], torch.device("cpu")), 1.0)[0].tolist())


def test_an_engine_serves_the_experts_that_the_learner_published(tmp_path: Path) -> None:
    write_moe(tmp_path, "qwen3_moe")
    write_tokenizer(tmp_path)
    policy = load_policy(str(tmp_path), "float32")
    engine = VllmEngine(EngineSpec(model_path=str(tmp_path), max_model_len=128, kv_cache_gib=0.1, deadline_s=60))
    engine.start()
    try:
        (before,) = asyncio.run(engine.score([IDS], [1]))
        assert before == pytest.approx(logprobs(policy), abs=1e-4)
        for version in (1, 2):  # the second time over what the first has packed
            with torch.no_grad():
                for parameter in policy.parameters():
                    parameter.add_(0.05 * torch.randn(parameter.shape))
            after = logprobs(policy)
            assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 0.01
            writer, witness, names = PayloadWriter(), Witness(), FileNames(policy.model)
            writer.begin(version)
            for side in (writer, witness):  # converted for each anew, as a rank does it
                for name, parameter in policy.named_parameters():
                    side.add(names.to_files({name: parameter.detach()}))
            handle = writer.seal(witness, Canary(IDS, after, Apart(1e-4, 1e-3)))
            assert asyncio.run(engine.load_weights(handle)) == version
            assert asyncio.run(engine.score([IDS], [1]))[0] == pytest.approx(after, abs=1e-4)
            before = after
    finally:
        engine.close()
