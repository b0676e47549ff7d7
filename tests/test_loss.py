"""The loss against numbers worked by hand, and against torch's own autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.loss import (
    adaptive_entropy_weights,
    correction_weights,
    covariance_band,
    covariance_penalties,
    covariances,
    head_logprobs,
    mismatch_figures,
    policy_loss,
    token_logprobs,
)
from capo_ray.loss.head import keeps_logits, tile_of
from capo_ray.loss.logprobs import rows_at_once
from tests.examples import examples

LN = math.log


def logs(*ratios: float) -> torch.Tensor:
    """Logprobs whose ratio to a behaviour logprob of 0 is `ratios`."""
    return torch.tensor([LN(r) for r in ratios])


def one_sequence(n: int) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.long)


def test_clipping_by_hand_with_asymmetric_bounds() -> None:
    policy = logs(1.5, 1.5, 0.5, 0.5, 1.1).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    weights = torch.full((5,), 0.2)
    loss, figures = policy_loss(
        policy, torch.zeros(5), advantages, weights, one_sequence(5), clip_low=0.2, clip_high=0.28
    )
    # min(rho A, clip A): 1.28, -1.5, 0.5, -0.8, 2.2
    assert loss.item() == pytest.approx(-(1.28 - 1.5 + 0.5 - 0.8 + 2.2) / 5)
    assert figures.sums["clipped"].item() == 2
    assert figures.sums["ratio"].item() == pytest.approx(5.1)
    assert figures.maxima["ratio"].item() == pytest.approx(1.5)
    loss.backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([0.0, 0.3, -0.1, 0.0, -0.44])


def test_the_worked_capo_group_gives_its_loss_at_ratio_one() -> None:
    # {right, 4 tokens; wrong, 6 tokens, 3 flagged}: advantages +1.168, -0.389, -1.168 (eq. 2 of 2508.02298).
    right, carried, flagged = 1.1677, -0.3892, -1.1677
    advantages = torch.tensor([right] * 4 + [carried] * 3 + [flagged] * 3)
    weights = torch.tensor([1 / 8] * 4 + [1 / 12] * 6)
    loss, _ = policy_loss(
        torch.zeros(10), torch.zeros(10), advantages, weights, torch.tensor([0] * 4 + [1] * 6), kl_coef=0.0
    )
    assert loss.item() == pytest.approx(-0.5 * (right + (carried + flagged) / 2), rel=1e-5)


def test_k3_penalty_by_hand() -> None:
    policy = torch.tensor([LN(0.5), LN(0.2)])
    reference = torch.tensor([LN(0.25), LN(0.4)])
    # r - ln r - 1: r = 1/2 gives 0.193147, r = 2 gives 0.306853
    loss, figures = policy_loss(
        policy,
        policy,
        torch.zeros(2),
        torch.tensor([0.5, 0.5]),
        one_sequence(2),
        reference_logprobs=reference,
        kl_coef=0.1,
    )
    assert loss.item() == pytest.approx(0.1 * 0.5 * (0.1931472 + 0.3068528))
    assert figures.sums["kl"].item() == pytest.approx(0.5)


def test_k3_tells_the_policy_from_the_reference() -> None:
    # exp(reference - policy) = 2: 2 - ln 2 - 1 and slope 1 - 2; the other way round it would be 1/2 + ln 2 - 1
    policy = logs(0.25).requires_grad_()
    nothing, weight = torch.zeros(1), torch.ones(1)
    loss, figures = policy_loss(
        policy, policy.detach(), nothing, weight, one_sequence(1), reference_logprobs=logs(0.5), kl_coef=1.0
    )
    loss.backward()
    assert loss.item() == figures.sums["kl"].item() == pytest.approx(1 - LN(2))
    assert policy.grad is not None and policy.grad.item() == pytest.approx(-1.0)


def test_sequence_ratio_is_the_geometric_mean_and_clips_the_whole_response() -> None:
    policy = logs(2.0, 1.0, 1.1).requires_grad_()  # responses {0, 1} and {2}: sqrt(2) and 1.1
    loss, figures = policy_loss(
        policy,
        torch.zeros(3),
        torch.tensor([1.0, 1.0, 1.0]),
        torch.tensor([0.25, 0.25, 0.5]),
        torch.tensor([0, 0, 1]),
        ratio="sequence",
    )
    assert loss.item() == pytest.approx(-(0.5 * 1.2 + 0.5 * 1.1))
    assert figures.sums["clipped"].item() == 2
    loss.backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([0.0, 0.0, -0.55])


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    policy = logs(3.0, 0.5).requires_grad_()
    loss, _ = policy_loss(
        policy, torch.zeros(2), torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.5]), one_sequence(2), ratio="cispo"
    )
    loss.backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([-0.6, -0.4])  # -w clip(rho) A


@pytest.mark.parametrize(("ratio", "clipped"), [("token", 2), ("cispo", 4)])
def test_ppo_clips_where_the_advantage_pushes_and_cispo_on_both_sides(ratio: str, clipped: int) -> None:
    policy, advantages = logs(1.5, 0.5, 1.5, 0.5, 1.5), torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0])
    weights = torch.full((5,), 0.2)
    _, figures = policy_loss(policy, torch.zeros(5), advantages, weights, one_sequence(5), ratio=ratio)  # type: ignore[arg-type]
    assert figures.sums["clipped"].item() == clipped


@pytest.mark.parametrize("ratio", ["token", "sequence", "cispo"])
def test_the_credit_of_one_token_reaches_exactly_that_tokens_logprob(ratio: str) -> None:
    torch.manual_seed(0)
    values = 0.05 * torch.randn(6)
    advantages = torch.randn(6)

    def gradient(credit: torch.Tensor) -> torch.Tensor:
        policy = values.clone().requires_grad_()
        sequences = torch.tensor([0, 0, 0, 1, 1, 1])
        weights = torch.full((6,), 1 / 6)
        loss, _ = policy_loss(policy, torch.zeros(6), credit, weights, sequences, ratio=ratio)  # type: ignore[arg-type]
        (grad,) = torch.autograd.grad(loss, policy)
        return grad

    changed = advantages.clone()
    changed[2] += 1.0
    difference = (gradient(changed) - gradient(advantages)).ne(0)
    assert difference.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("kind", ["entropy_weights", "imitation_weights"])
def test_the_weight_of_one_token_reaches_exactly_that_tokens_gradient(kind: str) -> None:
    torch.manual_seed(0)
    logits, weights = torch.randn(6, 5), torch.rand(6) + 0.1

    def gradient(extra: torch.Tensor) -> torch.Tensor:
        table = logits.clone().requires_grad_()
        policy, entropies = token_logprobs(table, torch.arange(6) % 5)
        loss, _ = policy_loss(
            policy,
            policy.detach(),
            torch.zeros(6),
            weights,
            torch.tensor([0, 0, 0, 1, 1, 1]),
            entropies=entropies,
            **{kind: extra},  # type: ignore[arg-type]
        )
        (grad,) = torch.autograd.grad(loss, table)
        return grad

    plain = torch.full((6,), 0.1)
    changed = plain.clone()
    changed[2] += 1.0
    rows = (gradient(changed) - gradient(plain)).abs().sum(dim=1).gt(1e-6)
    assert rows.tolist() == [False, False, True, False, False, False]


def test_entropy_and_imitation_by_hand() -> None:
    policy = torch.tensor([-1.0, -2.0, -9.0]).requires_grad_()
    loss, figures = policy_loss(
        policy,
        policy.detach(),
        torch.zeros(3),
        torch.tensor([0.5, 0.25, 0.0]),
        one_sequence(3),
        entropies=torch.tensor([1.0, 2.0, 9.0]),
        entropy_weights=torch.tensor([0.1, 0.2, 5.0]),
        imitation_weights=torch.tensor([0.0, 0.4, 5.0]),
    )
    # -(.5 x .1 x 1 + .25 x .2 x 2) for entropy, -(.25 x .4 x -2) for imitation; the last token has no weight
    assert loss.item() == pytest.approx(-0.15 + 0.2)
    assert figures.sums["entropy"].item() == pytest.approx(3.0)
    assert figures.sums["tokens"].item() == 2
    loss.backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([0.0, -0.1, 0.0])


def test_licas_bonus_grows_as_the_entropy_of_the_response_falls() -> None:
    entropies = torch.tensor([1.0, 3.0, 0.0, 0.5]).requires_grad_()
    weights = adaptive_entropy_weights(torch.full((4,), 0.1), entropies, torch.tensor([0, 0, 1, 1]), torch.ones(4))
    assert weights.tolist() == pytest.approx([0.05, 0.05, 0.4, 0.4])  # means 2 and 1/4
    assert not weights.requires_grad
    still = adaptive_entropy_weights(torch.full((2,), 0.1), torch.zeros(2), one_sequence(2), torch.ones(2))
    assert still.tolist() == pytest.approx([100.0, 100.0]), "bounded where no choice is left"


def test_means_over_a_response_leave_out_its_tokens_without_weight() -> None:
    counted, sequences = torch.tensor([0.0, 1.0, 1.0]), one_sequence(3)
    policy, behaviour = logs(64.0, 2.0, 8.0), torch.zeros(3)
    _, figures = policy_loss(policy, behaviour, torch.ones(3), counted / 2, sequences, ratio="sequence")
    assert figures.sums["ratio"].item() == pytest.approx(4.0 + 4.0), "the geometric mean of 2 and 8"
    kept = correction_weights(policy, behaviour, sequences, counted, kind="geometric_mask", low=3.9, high=4.1)
    assert kept.tolist() == [1, 1, 1]
    bonus = adaptive_entropy_weights(torch.full((3,), 0.1), torch.tensor([9.0, 1.0, 3.0]), sequences, counted)
    assert bonus.tolist() == pytest.approx([0.05] * 3)


def test_frozen_tokens_keep_their_surrogate_but_lose_its_gradient_alone() -> None:
    policy = logs(1.1, 1.1).requires_grad_()
    loss, _ = policy_loss(
        policy,
        torch.zeros(2),
        torch.tensor([1.0, 1.0]),
        torch.tensor([0.5, 0.5]),
        one_sequence(2),
        frozen=torch.tensor([True, False]),
        imitation_weights=torch.tensor([0.2, 0.0]),
    )
    assert loss.item() == pytest.approx(-1.1 - 0.5 * 0.2 * LN(1.1))
    loss.backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([-0.1, -0.55])


@settings(max_examples=examples(20))
@given(st.integers(1, 9), st.integers(2, 12), st.floats(0.3, 2.0), st.integers(1, 4), st.integers(0, 99))
def test_chunked_logprobs_and_entropies_match_autograd(n: int, vocab: int, temp: float, rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(n, vocab, generator=generator)).double().float()
    targets = torch.randint(vocab, (n,), generator=generator)
    mix = torch.randn(2, n, generator=generator)
    ours = logits.clone().requires_grad_()
    logprobs, entropies = token_logprobs(ours, targets, temp, rows=rows)
    (mix[0] * logprobs + mix[1] * entropies).sum().backward()
    plain = logits.clone().requires_grad_()
    table = torch.log_softmax(plain / temp, dim=-1)
    expected = table.gather(1, targets[:, None]).squeeze(1)
    expected_entropies = -(table.exp() * table).sum(-1)
    (mix[0] * expected + mix[1] * expected_entropies).sum().backward()
    torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(entropies, expected_entropies, atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(ours.grad, plain.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("offset", "temperature"), [(1000.0, 1.0), (100.0, 0.1)])
def test_logprobs_and_entropies_keep_their_digits_where_logits_are_large(offset: float, temperature: float) -> None:
    logits = offset + torch.tensor([[0.0, -0.5, -1.0], [0.0, -4.0, -4.0]])  # exact in fp32
    targets = torch.tensor([1, 0])
    logprobs, entropies = token_logprobs(logits, targets, temperature)
    table = torch.log_softmax((logits.double() - offset) / temperature, dim=-1)
    expected = -(table.exp() * table).sum(-1)
    torch.testing.assert_close(logprobs.double(), table.gather(1, targets[:, None]).squeeze(1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(entropies.double(), expected, atol=1e-6, rtol=1e-6)


def test_logprobs_of_bfloat16_logits_come_in_fp32_with_bfloat16_gradients() -> None:
    logits = torch.randn(3, 5).bfloat16().requires_grad_()
    logprobs, _ = token_logprobs(logits, torch.tensor([0, 1, 2]))
    logprobs.sum().backward()
    assert logprobs.dtype == torch.float32
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16


def test_microbatches_of_the_loss_add_up() -> None:
    torch.manual_seed(1)
    policy, behaviour, advantages = 0.1 * torch.randn(3, 8)
    weights = torch.rand(8)
    sequences = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    whole, _ = policy_loss(policy, behaviour, advantages, weights, sequences, ratio="sequence")
    parts = [
        policy_loss(policy[s], behaviour[s], advantages[s], weights[s], sequences[s], ratio="sequence")[0]
        for s in (slice(0, 3), slice(3, 8))
    ]
    assert sum(p.item() for p in parts) == pytest.approx(whole.item(), rel=1e-6)


def test_corrections_for_engine_and_learner_disagreement_by_hand() -> None:
    learner, sampler = logs(4.0, 1.0, 0.25, 1.0), torch.zeros(4)
    sequences = torch.tensor([0, 0, 1, 1])  # geometric means 2 and 1/2

    def weights(kind: str, low: float, high: float) -> list[float]:
        counted = torch.ones_like(learner)
        return correction_weights(learner, sampler, sequences, counted, kind=kind, low=low, high=high).tolist()  # type: ignore[arg-type]

    assert weights("none", 0.5, 2.0) == [1, 1, 1, 1]
    assert weights("truncate", 0.5, 2.0) == pytest.approx([2.0, 1.0, 0.25, 1.0]), "bounded from above alone"
    assert weights("mask", 0.5, 2.0) == pytest.approx([0.0, 1.0, 0.0, 1.0])
    assert weights("geometric_mask", 0.6, 2.5) == [1, 1, 0, 0]
    figures = mismatch_figures(learner, sampler, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert figures.sums["mismatch_kl"].item() == pytest.approx((3 - LN(4)) + 0 + (-0.75 + LN(4)))
    one_way = mismatch_figures(learner, sampler, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert one_way.sums["mismatch_kl"].item() == pytest.approx(3 - LN(4))
    assert figures.maxima["mismatch"].item() == pytest.approx(LN(4))


def test_covariance_controls_by_hand() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -3.0])
    cov = covariances(logprobs, torch.tensor([1.0, 0.0, -1.0]), mean_logprob=-2.0, mean_advantage=0.0)
    assert cov.tolist() == [1.0, 0.0, 1.0]
    assert covariance_band(torch.tensor([0.5, 1.0, 4.9, 5.0]), 0.5, 5.0).tolist() == [False, True, True, False]
    policy = logprobs.clone().requires_grad_()
    penalties = covariance_penalties(policy, torch.full((3,), -1.5), torch.tensor([True, False, True]), coef=2.0)
    assert penalties.tolist() == [1.0, 0.0, 3.0]
    penalties.sum().backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == [2.0, 0.0, -2.0]


@settings(max_examples=examples(30))
@given(
    st.tuples(st.integers(1, 9), st.integers(2, 14), st.integers(1, 6)),
    st.tuples(st.integers(1, 10), st.integers(1, 15)),
    st.floats(0.3, 2.0),
    st.booleans(),
    st.integers(0, 99),
)
def test_a_head_in_tiles_gives_the_numbers_and_gradients_of_its_logits(
    sizes: tuple[int, int, int], tile: tuple[int, int], temp: float, biased: bool, seed: int
) -> None:
    """Tiles of any size, in fp64's autograd of the naive way, the largest word in any tile, both outputs weighed."""
    (n, vocab, width), generator = sizes, torch.Generator().manual_seed(seed)
    draws = [torch.randn(*shape, generator=generator) for shape in ((n, width), (vocab, width), (vocab,))]
    targets, mix = torch.randint(vocab, (n,), generator=generator), torch.randn(2, n, generator=generator)

    def naive(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        table = torch.log_softmax((hidden @ weight.T + (bias if biased else 0)) / temp, dim=-1)
        return table.gather(1, targets[:, None]).squeeze(1), -(table.exp() * table).sum(-1)

    def ours(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return head_logprobs(hidden, weight, bias if biased else None, targets, temp, tile=tile)

    results = []
    for score, dtype in ((ours, torch.float32), (naive, torch.float64)):
        leaves = [draw.to(dtype).requires_grad_() for draw in draws]
        told = score(*leaves)
        loss = (mix[0] * told[0] + mix[1] * told[1]).sum()
        gradients = torch.autograd.grad(loss, leaves[: 2 + biased])
        results.append([x.double() for x in (*told, *gradients)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_head_in_tiles_needs_no_entropy_gradient_and_spares_what_is_frozen() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(5, 4).requires_grad_(), torch.randn(9, 4), torch.arange(5)
    logprobs, entropies = head_logprobs(hidden, weight, None, targets, 0.5, tile=(2, 4))
    (found,) = torch.autograd.grad(logprobs.sum(), hidden, retain_graph=True)
    (expected,) = torch.autograd.grad(token_logprobs(hidden @ weight.T, targets, 0.5)[0].sum(), hidden)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    (found,) = torch.autograd.grad(entropies.sum(), hidden)
    (expected,) = torch.autograd.grad(token_logprobs(hidden @ weight.T, targets, 0.5)[1].sum(), hidden)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_head_in_bfloat16_gives_fp32_logprobs_and_gradients_near_those_of_fp32() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(40, 32), 0.3 * torch.randn(300, 32), torch.randint(300, (40,))

    def gradients(dtype: torch.dtype, tile: tuple[int, int] | None) -> list[torch.Tensor]:
        leaves = [hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
        logprobs, entropies = head_logprobs(*leaves, None, targets, tile=tile)
        assert logprobs.dtype == entropies.dtype == torch.float32
        return list(torch.autograd.grad((logprobs + entropies).sum(), leaves))

    for found, expected in zip(gradients(torch.bfloat16, (16, 64)), gradients(torch.float32, None), strict=True):
        assert found.dtype == torch.bfloat16
        assert float((found.float() - expected).norm() / expected.norm()) < 0.01


@pytest.mark.parametrize(("offset", "temperature"), [(1000.0, 1.0), (100.0, 0.1)])
def test_a_head_in_tiles_keeps_its_digits_where_logits_are_large(offset: float, temperature: float) -> None:
    logits = offset + torch.tensor([[0.0, -0.5, -1.0], [-4.0, 0.0, -4.0]])  # exact in fp32
    targets = torch.tensor([1, 0])
    found = head_logprobs(logits, torch.eye(3), None, targets, temperature, tile=(1, 1))
    for ours, theirs in zip(found, token_logprobs(logits, targets, temperature), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_a_tile_is_a_number_of_bytes_and_few_logits_are_kept() -> None:
    """By hand: 4 MiB are 1,024 rows of 1,024 fp32 numbers, 256 MiB are 4,096 of 16,384."""
    assert tile_of(8192, 151_936, "cpu") == (1024, 1024) and tile_of(8192, 151_936, "cuda") == (4096, 16384)
    assert tile_of(3, 10**8, "cpu") == (3, (4 << 20) // 12) and tile_of(8, 100, "cpu") == (8, 100)
    assert keeps_logits(2048, 103, "cpu") and not keeps_logits(64, 151_936, "cpu")


def test_a_block_of_logits_is_a_number_of_bytes() -> None:
    """By hand: 16 MiB are 27 rows of 151,936 fp32 numbers, 256 MiB are 441; a row is never cut."""
    assert rows_at_once(151_936, "cpu") == 27
    assert rows_at_once(151_936, "cuda") == 441
    assert rows_at_once(10**8, "cpu") == 1
