"""The learner on real DeepSpeed (gloo): the same update however it is cut, and back again after a resume."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.tiny import write_tiny_model
from capo_ray.config.loss import LossConfig
from capo_ray.config.sections import LearnerConfig
from capo_ray.learners import Learner
from capo_ray.learners.covariance import picked_tokens
from capo_ray.learners.microbatch import Microbatch, to_inputs, to_microbatch
from capo_ray.learners.policy import load_policy
from capo_ray.learners.schedule import learning_rate
from capo_ray.packing import build_batch
from capo_ray.protocols import RunFailed
from capo_ray.types import Sample, WeightedSample
from tests.learner_group import (
    COVARIANCE,
    FSDP,
    OFFLOADED,
    VOCAB,
    Weights,
    covariance_spec,
    export,
    lora_spec,
    make_batch,
    make_samples,
    make_spec,
    run_all_stages,
    run_ranks,
    save,
    train,
    trained,
)

ROUNDING = {"loss/kl_nats": 2e-7}
"""What fp32 allows: a logprob of -4 is rounded to 2.4e-7, and KL moves by that times a log-ratio (.1 to .4 here)."""


@pytest.fixture(scope="module")
def two_ranks(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files left by two processes that trained together."""
    out = tmp_path_factory.mktemp("ranks")
    run_all_stages(model, out)
    return out


@pytest.fixture(scope="module")
def baseline(model: Path) -> tuple[Weights, dict[str, float]]:
    """Weights and metrics of one rank, ZeRO-2, everything in one cell."""
    return trained(make_spec(model))


def assert_same_update(ours: Weights, theirs: Weights, start: Weights) -> None:
    """The weights agree to 1e-5 of their size, and the moves to 1e-3 of theirs (Adam magnifies rounding)."""
    assert ours.keys() == theirs.keys()

    def distance(a: Weights, b: Weights) -> float:
        return float(sum((a[k] - b[k]).double().square().sum() for k in a)) ** 0.5

    zero = {k: torch.zeros_like(v) for k, v in start.items()}
    moved = distance(theirs, start)
    assert moved > 1e-2
    assert distance(ours, theirs) < 1e-5 * distance(theirs, zero)
    assert distance(ours, theirs) < 1e-3 * moved


def start_weights(model: Path) -> Weights:
    return {k.removeprefix("model."): v.detach() for k, v in load_policy(str(model), "float32").named_parameters()}


def test_learning_rate_warms_up_and_follows_half_a_cosine() -> None:
    def rate(move: int, **changes: object) -> float:
        options = {"peak": 1.0, "total_moves": 11, "warmup_moves": 0, "schedule": "cosine", "min_frac": 0.1}
        return learning_rate(move, **(options | changes))  # type: ignore[arg-type]

    assert [rate(m) for m in (0, 5, 10, 99)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
    assert [rate(m, warmup_moves=4) for m in (0, 1, 3, 4, 7)] == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.55])
    assert [rate(m, schedule="constant", warmup_moves=2) for m in (0, 1, 2, 50)] == [0.5, 1.0, 1.0, 1.0]


def test_padded_logprobs_equal_those_of_the_model_alone_at_a_temperature(model: Path) -> None:
    policy = load_policy(str(model), "float32")
    sequences = [list(s.token_ids) for s in make_samples(5, 4)]
    flat, _ = policy(to_inputs(sequences, [2, 1, 3, 2], torch.device("cpu")), 0.7)
    expected = []
    for ids, start in zip(sequences, [2, 1, 3, 2], strict=True):
        logits = policy.model(input_ids=torch.tensor([ids])).logits[0, :-1] / 0.7
        table = torch.log_softmax(logits, dim=-1)
        expected += table.gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)[start - 1 :].tolist()
    assert flat.tolist() == pytest.approx(expected, abs=1e-5)


def test_an_empty_cell_is_one_token_of_weight_zero() -> None:
    cell = to_microbatch((), torch.device("cpu"))
    assert cell.weights.tolist() == [0.0]
    assert cell.inputs.targets.shape == cell.sequences.shape == (1,)


def test_a_cell_without_weights_carries_none_and_one_with_some_fills_up_with_zeros() -> None:
    plain = [dataclasses.replace(s, entropy_weights=(), imitation_weights=()) for s in make_samples(1, 2)]
    weighted = dataclasses.replace(plain[0], entropy_weights=(0.1,) * plain[0].num_response_tokens)

    def cell(samples: list[Sample]) -> Microbatch:
        weights = [WeightedSample(s, (0.1,) * s.num_response_tokens) for s in samples]
        return to_microbatch(weights, torch.device("cpu"))

    assert cell(plain).entropy_weights is None and cell(plain).imitation_weights is None
    mixed = cell([weighted, plain[1]]).entropy_weights
    assert mixed is not None
    first, second = weighted.num_response_tokens, plain[1].num_response_tokens
    assert mixed.tolist() == pytest.approx([0.1] * first + [0.0] * second)


def test_spans_that_start_before_the_first_predictable_token_are_refused() -> None:
    with pytest.raises(ValueError, match="start at 1"):
        to_inputs([[1, 2, 3]], [0], torch.device("cpu"))


def test_a_model_that_is_not_there_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"model\.path must be a causal language model"):
        load_policy(str(tmp_path), "float32")


def test_impossible_specs_are_refused() -> None:
    with pytest.raises(ValueError, match="init_method"):
        make_spec("m", world_size=2)
    with pytest.raises(ValueError, match="zero_stage"):
        make_spec("m", 0, dtype="bfloat16")
    with pytest.raises(ValueError, match="behaviour=recompute"):
        LossConfig(correction="mask")


@pytest.mark.real
@pytest.mark.parametrize(("stage", "budget"), [(2, 60), (0, 4096), (0, 60), (1, 60), (3, 4096), (3, 60), (FSDP, 60)])
def test_microbatches_and_stages_do_not_change_the_update(
    model: Path, baseline: tuple[Weights, dict[str, float]], stage: int, budget: int
) -> None:
    weights, metrics = trained(make_spec(model, stage), budget)
    assert_same_update(weights, baseline[0], start_weights(model))
    assert metrics["learner/grad_norm"] == pytest.approx(baseline[1]["learner/grad_norm"], rel=1e-5)
    assert metrics["loss/kl_nats"] == pytest.approx(baseline[1]["loss/kl_nats"], rel=1e-4)


@pytest.mark.real
@pytest.mark.parametrize("stage", [0, 1, 2, 3, FSDP, *OFFLOADED])
def test_two_ranks_make_the_update_of_one(
    model: Path, baseline: tuple[Weights, dict[str, float]], two_ranks: Path, stage: int
) -> None:
    from safetensors.torch import load_file

    weights = load_file(two_ranks / f"trained{stage}.safetensors")
    assert_same_update(weights, baseline[0], start_weights(model))
    metrics = json.loads((two_ranks / f"metrics{stage}.json").read_text())
    for name in (
        "learner/grad_norm",
        "loss/objective_mean",
        "loss/entropy_nats",
        "loss/kl_nats",
        "loss/mismatch_kl_nats",
    ):
        assert metrics[name] == pytest.approx(baseline[1][name], rel=1e-5, abs=ROUNDING.get(name, 1e-8)), name
    assert metrics["learner/loss_tokens"] == baseline[1]["learner/loss_tokens"]
    assert metrics["loss/kl_nats"] > 0.005 and metrics["kl_after_refresh"] == pytest.approx(0.0, abs=1e-7)


@pytest.mark.real
@pytest.mark.parametrize("kind", COVARIANCE)
def test_covariance_control_picks_the_same_tokens_however_a_batch_is_cut(
    model: Path, two_ranks: Path, kind: str
) -> None:
    from safetensors.torch import load_file

    weights, metrics = trained(covariance_spec(model, kind))
    cut, cut_metrics = trained(covariance_spec(model, kind), budget=60)
    both = json.loads((two_ranks / f"metrics_{kind}.json").read_text())
    start = start_weights(model)
    assert_same_update(cut, weights, start)
    assert_same_update(load_file(two_ranks / f"trained_{kind}.safetensors"), weights, start)
    assert metrics["loss/covariance_frac"] == cut_metrics["loss/covariance_frac"] == both["loss/covariance_frac"]
    # kl takes the exact share, clip draws it: 0.1 of some 200 tokens
    assert metrics["loss/covariance_frac"] == pytest.approx(0.1, abs=0.005 if kind == "kl" else 0.06)
    other = trained(dataclasses.replace(covariance_spec(model, kind), loss=LossConfig(kl_coef=0.0)))[0]
    assert any(not torch.equal(weights[k], other[k]) for k in weights)


def test_kl_cov_takes_its_share_also_where_covariances_are_equal() -> None:
    # means -.5015 and -.005: 500 equal covariances of .504 and 500 of .496, and one token stands out with 7.5
    rows = [([0.0] * 500, [1.0] * 500), ([-1.0] * 500, [-1.0] * 500), ([-2.0], [-5.0])]
    samples = [
        dataclasses.replace(
            make_samples(i, n=i + 1)[i],
            token_ids=tuple([3] * (len(logprobs) + 1)),
            sampler_logprobs=tuple(logprobs),
            advantages=tuple(advantages),
            entropy_weights=(),
            imitation_weights=(),
        )
        for i, (logprobs, advantages) in enumerate(rows)
    ]
    device = torch.device("cpu")
    alone = SimpleNamespace(device=device, rank=0, sum_over_ranks=lambda x: x, max_over_ranks=lambda x: x)
    marks = {}
    for budget in (4096, 600):
        (column,) = zip(
            *build_batch(samples, num_ranks=1, microbatch_tokens=budget, aggregation="token_mean").grid, strict=True
        )
        cells = [to_microbatch(cell, device) for cell in column]
        held = picked_tokens(column, cells, LossConfig(covariance="kl", covariance_frac=0.1), alone, 1)  # type: ignore[arg-type]
        for cell, mask in zip(column, held, strict=True):
            assert mask is not None
            parts = mask.split([w.sample.num_response_tokens for w in cell])
            marks |= {(budget, w.sample.key): part.tolist() for w, part in zip(cell, parts, strict=True)}
    assert all(marks[4096, s.key] == marks[600, s.key] for s in samples)
    assert marks[600, samples[2].key] == [True]
    assert sum(map(sum, marks.values())) / 2 == pytest.approx(100, abs=30)


@pytest.mark.real
@pytest.mark.parametrize("stage", [0, 1, 2, 3, FSDP, *OFFLOADED])
def test_two_ranks_go_on_from_a_checkpoint_as_if_nothing_had_happened(two_ranks: Path, stage: int) -> None:
    from safetensors.torch import load_file

    after = load_file(two_ranks / f"after{stage}.safetensors")
    again = load_file(two_ranks / f"again{stage}.safetensors")
    trained_before = load_file(two_ranks / f"trained{stage}.safetensors")
    assert all(torch.equal(after[k], again[k]) for k in after)
    assert any(not torch.equal(after[k], trained_before[k]) for k in after)


@pytest.mark.real
@pytest.mark.parametrize("stage", [0, 1, 2, 3, FSDP])
def test_one_rank_of_another_backend_goes_on_from_a_checkpoint_of_two(model: Path, two_ranks: Path, stage: int) -> None:
    from safetensors.torch import load_file

    for backend in ("torch", "fsdp") if stage != FSDP else ("torch", "zero"):
        spec = make_spec(model, 3)
        spec = dataclasses.replace(spec, learner=spec.learner.model_copy(update={"backend": backend}))
        learner = Learner(spec)
        try:
            assert learner.load(str(two_ranks / f"checkpoint{stage}")) == 2
            loaded = learner.named_tensors()
            learner.update(make_batch(3).column(0))
            after = learner.named_tensors()
        finally:
            learner.close()
        assert loaded is not None and after is not None
        expected = load_file(two_ranks / f"trained{stage}.safetensors")
        assert all(torch.equal(loaded[name], expected[name]) for name in expected), "masters are the weights"
        assert_same_update(after, load_file(two_ranks / f"after{stage}.safetensors"), start_weights(model))


@pytest.mark.real
def test_two_ranks_that_share_each_row_make_the_update_of_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = tmp_path / "model"  # four heads of queries, and one of keys, which both ranks need
    vocab = [chr(0x100 + i) for i in range(VOCAB - 3)]
    write_tiny_model(model, vocab=vocab, init_scale=3.0, heads=4, kv_heads=1)
    run_ranks("stretches", model, tmp_path, 0, 3, FSDP)
    baseline = trained(make_spec(model))
    joined = covariance_spec(model, "kl")
    joined = dataclasses.replace(joined, loss=joined.loss.model_copy(update={"ratio": "sequence"}))
    for kind in (0, 3, FSDP):
        weights, told = trained(joined) if kind == 0 else baseline
        assert_same_update(load_file(tmp_path / f"stretches{kind}.safetensors"), weights, start_weights(model))
        metrics = json.loads((tmp_path / f"stretches{kind}.json").read_text())
        for name in told.keys() - {"learner/padded_tokens", "learner/update_microbatches"}:
            assert metrics[name] == pytest.approx(told[name], rel=1e-5, abs=ROUNDING.get(name, 1e-8)), name


@pytest.mark.real
def test_two_ranks_go_on_from_a_checkpoint_of_one(model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    spec = make_spec(model)
    learner = Learner(dataclasses.replace(spec, learner=spec.learner.model_copy(update={"backend": "torch"})))
    train(learner, 1, 0)
    save(learner, tmp_path / "one")
    weights = learner.named_tensors()
    learner.update(make_batch(3).column(0))
    after = learner.named_tensors()
    assert weights is not None and after is not None
    run_ranks("grow", model, tmp_path, 1, 2, 3, FSDP)
    for kind in (1, 2, 3, FSDP):
        loaded = load_file(tmp_path / f"loaded{kind}.safetensors")
        assert all(torch.equal(loaded[name], weights[name]) for name in weights)
        assert_same_update(load_file(tmp_path / f"grown{kind}.safetensors"), after, start_weights(model))


@pytest.mark.real
@pytest.mark.parametrize("stage", [0, 2, 3, FSDP])
def test_a_fresh_learner_resumes_with_identical_weights_and_the_first_reference(
    model: Path, tmp_path: Path, stage: int
) -> None:
    first = Learner(make_spec(model, stage))
    train(first, 1, 0)
    save(first, tmp_path)
    column = make_batch(3).column(0)
    draw = random.random()
    report = first.update(column)
    weights = first.named_tensors()
    first.close()
    second = Learner(make_spec(model, stage, seed=9))
    assert second.load(str(tmp_path)) == 2
    assert random.random() == draw
    sequences = [w.sample.token_ids for w in column[0]]
    scores = second.logprobs(sequences, [1] * len(sequences))
    second.update(column)
    second.load(str(tmp_path))  # straight after a move: nothing that was kept whole may stay behind
    assert second.logprobs(sequences, [1] * len(sequences)) == scores
    again = second.update(column)
    reloaded = second.named_tensors()
    second.close()
    assert weights is not None and reloaded is not None
    assert all(torch.equal(weights[k], reloaded[k]) for k in weights)
    assert again.version == report.version == 3
    assert again.metrics == report.metrics
    assert again.metrics["loss/kl_nats"] > 0


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_checkpoint_is_refused_beside_another_model_than_the_run_began_with(
    model: Path, tmp_path: Path, lora_rank: int
) -> None:
    """KL would be measured from it, or adapters be added to it, and no figure would tell."""
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.01
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    first = Learner(lora_spec(model, lora_rank))
    first.require_files_weights()
    train(first, 1, 0)
    save(first, tmp_path)
    second = Learner(lora_spec(other, lora_rank))
    second.require_files_weights()
    with pytest.raises(
        RunFailed, match=r"expected model.path=.*other to hold the model .*changes_allowed=\[model.path"
    ):
        second.load(str(tmp_path))
    allowed = Learner(lora_spec(other, lora_rank, other_model=True))
    allowed.require_files_weights()
    assert allowed.load(str(tmp_path)) == 2
    moved = Learner(lora_spec(shutil.copytree(model, tmp_path / "moved"), lora_rank))
    moved.require_files_weights()
    assert moved.load(str(tmp_path)) == 2


def test_with_other_passes_over_a_batch_the_learning_rate_goes_on_where_it_was(model: Path, tmp_path: Path) -> None:
    """2 of 10 updates are done, by 4 moves; of 10 moves, one an update, the next is the third: 1-based 0.1, 0.2, …"""
    first = Learner(lora_spec(model, 0))
    train(first, 1, 0)
    save(first, tmp_path)
    spec = lora_spec(model, 0)
    once = Learner(dataclasses.replace(spec, learner=spec.learner.model_copy(update={"num_epochs": 1})))
    once.load(str(tmp_path))
    rate = once.update(make_batch(3).column(0)).metrics["learner/learning_rate"]
    assert rate == pytest.approx(1e-2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 2 / 9))))


@pytest.mark.real
@pytest.mark.parametrize("stage", [0, 3])
def test_a_refreshed_reference_is_the_policy_of_that_moment_also_after_a_resume(
    model: Path, tmp_path: Path, stage: int
) -> None:
    column = make_batch(3).column(0)
    learner = Learner(make_spec(model, stage))
    try:
        save(learner, tmp_path / "before")
        train(learner, 1, 0)
        assert "loss/kl_nats" not in learner.update(column, kl_scale=0.0).metrics
        learner.refresh_reference()
        save(learner, tmp_path / "after")
        kept = learner.update(column).metrics
        assert kept["loss/kl_nats"] == pytest.approx(0.0, abs=1e-7) and kept["loss/kl_last_pass_nats"] > 0
        later = learner.update(column).metrics
    finally:
        learner.close()
    fresh = Learner(make_spec(model, stage))
    try:
        assert fresh.load(str(tmp_path / "after")) == 3
        assert fresh.update(column).metrics == kept
        assert fresh.update(column).metrics == later
        fresh.load(str(tmp_path / "before"))
        assert fresh.update(column).metrics["loss/kl_nats"] == pytest.approx(0.0, abs=1e-7), "the first model again"
    finally:
        fresh.close()


@pytest.mark.real
def test_a_checkpoint_of_another_layout_or_half_written_is_refused(model: Path, tmp_path: Path) -> None:
    learner = Learner(make_spec(model))
    try:
        save(learner, tmp_path)
        notes = tmp_path / "rank0.json"
        record = json.loads(notes.read_text())
        record["facts"]["world_size"] = 4
        notes.write_text(json.dumps(record))
        with pytest.raises(RunFailed, match="world_size=4"):
            learner.load(str(tmp_path))
        notes.unlink()
        with pytest.raises(RunFailed, match="must hold rank0"):
            learner.load(str(tmp_path))
    finally:
        learner.close()


@pytest.mark.real
@pytest.mark.parametrize(
    ("stage", "dtype"),
    [(0, "float32"), (2, "float32"), (3, "float32"), (1, "bfloat16"), (2, "bfloat16"), (3, "bfloat16")]
    + [(stage, "bfloat16") for stage in OFFLOADED],
)
def test_nothing_non_finite_moves_the_weights(model: Path, stage: int, dtype: str) -> None:
    learner = Learner(make_spec(model, stage, dtype=dtype))
    try:
        learner.update(make_batch(1).column(0))  # so that Adam has moments, which would move weights at zero gradient
        before = learner.named_tensors()
        for done, poison in enumerate((float("nan"), float("inf"), 1e38), start=1):
            samples = make_samples(2)
            spoiled = samples[3].num_response_tokens - 1
            samples[3] = dataclasses.replace(samples[3], advantages=(0.5,) * spoiled + (poison,))
            poisoned = build_batch(samples, num_ranks=1, microbatch_tokens=100, aggregation="token_mean")
            report = learner.update(poisoned.column(0))
            assert (report.version, report.moved, report.skipped) == (1 + done, False, True)
            assert report.nonfinite == (samples[3].key,)
            assert report.metrics == {"loss/skipped_moves_total": 2.0 * done}  # two epochs each
        # A gradient can be infinite while the loss is not.
        backend = learner._backend
        cell = to_microbatch(make_batch(3).column(0)[0], backend.device)
        backend.backward(backend.forward(cell.inputs, 1.0)[0].sum() * float("inf"))
        assert not math.isfinite(backend.move(1e-3))
        after = learner.named_tensors()
        assert before is not None and after is not None
        assert all(torch.equal(before[k], after[k]) for k in before)
        good = learner.update(make_batch(4).column(0))
        moved = learner.named_tensors()
    finally:
        learner.close()
    assert good.moved and not good.skipped and good.metrics["loss/skipped_moves_total"] == 6.0
    unspoiled = Learner(make_spec(model, stage, dtype=dtype))
    try:
        unspoiled.update(make_batch(1).column(0))
        unspoiled.update(make_batch(4).column(0))
        expected = unspoiled.named_tensors()
    finally:
        unspoiled.close()
    assert moved is not None and expected is not None
    assert all(torch.equal(moved[k], expected[k]) for k in expected), "a skipped update leaves nothing behind"


@pytest.mark.real
def test_recompute_takes_the_learners_own_logprobs_and_kl_starts_at_zero(model: Path) -> None:
    config = LearnerConfig(num_epochs=1)
    loss = LossConfig(behaviour="recompute", correction="truncate", kl_coef=0.01)
    learner = Learner(make_spec(model, loss=loss, learner=config))
    try:
        metrics = learner.update(make_batch(1).column(0)).metrics
    finally:
        learner.close()
    assert metrics["loss/ratio_max"] == 1.0
    assert metrics["loss/ratio_mean"] == pytest.approx(1.0)
    assert metrics["loss/kl_nats"] == pytest.approx(0.0, abs=1e-7)
    assert metrics["loss/mismatch_kl_nats"] > 0.01


@pytest.mark.parametrize("packing", ["shared", "padded"])
def test_of_watched_samples_the_tokens_are_told_as_the_weights_before_the_update_had_them(
    model: Path, packing: str
) -> None:
    spec = make_spec(model, loss=LossConfig(kl_coef=0.0))
    options = {"backend": "torch", "num_epochs": 2, "packing": packing, "microbatch_tokens": 60}
    learner = Learner(dataclasses.replace(spec, learner=spec.learner.model_copy(update=options)))
    samples = make_samples(3)
    watched = frozenset({samples[2].key, samples[7].key})
    told = learner.update(make_batch(3, budget=60, packing=packing).column(0), watched=watched).watched
    learner.close()
    assert told.keys() == watched
    policy = load_policy(str(model), "float32")
    for sample in (samples[2], samples[7]):
        ids, length = list(sample.token_ids), sample.num_response_tokens
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([ids])).logits[0, -length - 1 : -1] / spec.temperature
        table = torch.log_softmax(logits, dim=-1)
        wanted = table.gather(1, torch.tensor(ids[-length:])[:, None]).squeeze(1)
        entropies = -(table.exp() * table).sum(-1)
        assert told[sample.key]["policy_logprobs"] == pytest.approx(wanted.numpy(), abs=1e-5)
        assert told[sample.key]["policy_entropies"] == pytest.approx(entropies.numpy(), abs=1e-5)


@pytest.mark.real
def test_no_reference_model_is_held_without_kl(model: Path) -> None:
    learner = Learner(make_spec(model, loss=LossConfig(kl_coef=0.0)))
    try:
        assert learner._reference is None
        assert "loss/kl_nats" not in learner.update(make_batch(1).column(0)).metrics
    finally:
        learner.close()


@pytest.mark.real
@pytest.mark.parametrize("stage", [2, 3, FSDP])
def test_an_export_is_a_model_directory_that_scores_as_the_learner_does(
    model: Path, tmp_path: Path, stage: int
) -> None:
    learner = Learner(make_spec(model, stage))
    sequences = [s.token_ids for s in make_samples(7, 5)]
    try:
        learner.update(make_batch(1).column(0))
        scores = learner.logprobs(sequences, [1, 2, 1, 2, 1])
        export(learner, tmp_path / "model")
    finally:
        learner.close()
    exported = load_policy(str(tmp_path / "model"), "float32")
    for ids, start, score in zip(sequences, [1, 2, 1, 2, 1], scores, strict=True):
        expected, _ = exported(to_inputs([ids], [start], torch.device("cpu")), 1.0)
        assert score == pytest.approx(expected.tolist(), abs=1e-5)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= names
