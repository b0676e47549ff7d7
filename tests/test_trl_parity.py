"""TRL's own GRPOTrainer beside ours: the same model, tokens, rewards and old logprobs; losses, gradients, advantages.

TRL divides by the sample deviation (n - 1) plus 1e-4, we by the population deviation: compared under that difference.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from benchmarks.tiny import write_tiny_model
from capo_ray.config.credit import CREDIT_METHODS
from capo_ray.credit import assign_credit
from capo_ray.learners.microbatch import to_inputs
from capo_ray.learners.policy import Policy, load_policy
from capo_ray.loss import policy_loss
from capo_ray.packing import token_weights
from tests.credit_groups import Member, group

pytest.importorskip("trl", reason="TRL is not here: pip install capo-ray[parity]")

PROMPTS = [[5, 9, 12], [7, 20, 8], [6, 6, 31], [40, 11, 10]]
LENGTHS = [6, 3, 9, 5]
MAX_TOKENS = 9
REWARDS = [1.0, 0.0, 0.0, 1.0]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    write_tiny_model(path, init_scale=3.0)
    return str(path)


def trainer_of(model_path: str, **settings: Any) -> Any:
    """TRL's trainer in evaluation mode, where its losses are not divided by accumulation steps."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    args = GRPOConfig(
        output_dir=f"{model_path}/trl",
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=len(PROMPTS),
        per_device_eval_batch_size=len(PROMPTS),
        num_generations=len(PROMPTS),
        max_completion_length=MAX_TOKENS,
        **settings,
    )
    data = Dataset.from_list([{"prompt": "a"}] * len(PROMPTS))
    trainer = GRPOTrainer(model=model_path, reward_funcs=lambda **_: REWARDS, args=args, train_dataset=data)
    trainer.model.eval()
    return trainer


class Batch:
    """Four responses with old and reference logprobs near the policy's, as TRL's padded tensors and as ours, flat."""

    def __init__(self, policy: Policy, advantages: torch.Tensor) -> None:
        torch.manual_seed(0)
        self.policy = policy
        self.responses = [torch.randint(3, 60, (n,)).tolist() for n in LENGTHS]
        rows = [p + r for p, r in zip(PROMPTS, self.responses, strict=True)]
        self.inputs = to_inputs(rows, [len(p) for p in PROMPTS], torch.device("cpu"))
        with torch.no_grad():
            now = policy(self.inputs, 1.0)[0]
        self.old = now + 0.3 * torch.randn_like(now)
        self.reference = now + 0.3 * torch.randn_like(now)
        self.advantages = advantages  # [4] or [4, MAX_TOKENS]
        self.sequences = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
        self.mask = (torch.arange(MAX_TOKENS) < torch.tensor(LENGTHS)[:, None]).long()

    def padded(self, flat: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(LENGTHS), MAX_TOKENS, dtype=flat.dtype)
        out[self.mask.bool()] = flat
        return out

    def theirs(self, trainer: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """TRL's loss and gradients."""
        trainer.model.load_state_dict(self.policy.model.state_dict())
        inputs = {
            "prompt_ids": torch.tensor(PROMPTS),
            "prompt_mask": torch.ones(len(PROMPTS), len(PROMPTS[0]), dtype=torch.long),
            "completion_ids": self.padded(torch.tensor([t for r in self.responses for t in r])),
            "completion_mask": self.mask,
            "advantages": self.advantages,
            "old_per_token_logps": self.padded(self.old),
            "ref_per_token_logps": self.padded(self.reference),
            "num_items_in_batch": self.mask.sum(),
        }
        loss = trainer._compute_loss(trainer.model, inputs)
        return loss, gradients(loss, trainer.model)

    def ours(self, aggregation: str, **settings: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Our loss and gradients."""
        weights = token_weights(LENGTHS, aggregation, MAX_TOKENS)
        each = self.advantages if self.advantages.dim() == 2 else self.advantages[:, None].expand_as(self.mask)
        logprobs, _ = self.policy(self.inputs, 1.0)
        loss, _ = policy_loss(
            logprobs,
            self.old,
            each[self.mask.bool()],
            torch.tensor(weights)[self.sequences],
            self.sequences,
            reference_logprobs=self.reference if "kl_coef" in settings else None,
            **settings,
        )
        return loss, gradients(loss, self.policy.model)


def gradients(loss: torch.Tensor, model: torch.nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


def assert_same(batch: Batch, trainer: Any, aggregation: str, **settings: Any) -> None:
    (their_loss, their_gradients), (our_loss, our_gradients) = (
        batch.theirs(trainer),
        batch.ours(aggregation, **settings),
    )
    assert abs(our_loss.item()) > 1e-3, "a loss of nought would agree with anything"
    assert our_loss.item() == pytest.approx(their_loss.item(), abs=1e-5)
    for ours, theirs in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


SCALARS = torch.tensor([1.6, -0.7, -0.4, 0.9])
PER_TOKEN = torch.linspace(-1.5, 1.0, len(LENGTHS) * MAX_TOKENS).reshape(len(LENGTHS), MAX_TOKENS)


@pytest.mark.parametrize("advantages", [SCALARS, PER_TOKEN], ids=["per_response", "per_token"])
@pytest.mark.parametrize(
    ("loss_type", "aggregation"),
    [
        ("grpo", "sequence_mean"),
        ("bnpo", "token_mean"),
        ("dapo", "token_mean"),
        ("dr_grpo", "constant_length"),
    ],
)
def test_clipped_losses_and_gradients_are_those_of_trl(
    model_path: str, loss_type: str, aggregation: str, advantages: torch.Tensor
) -> None:
    trainer = trainer_of(model_path, loss_type=loss_type, epsilon=0.2, epsilon_high=0.28, beta=0.0)
    batch = Batch(load_policy(model_path, "float32"), advantages)
    assert_same(batch, trainer, aggregation, clip_low=0.2, clip_high=0.28)


@pytest.mark.parametrize(
    ("loss_type", "aggregation"), [("grpo", "sequence_mean"), ("dapo", "token_mean"), ("dr_grpo", "constant_length")]
)
def test_the_kl_term_is_that_of_trl(model_path: str, loss_type: str, aggregation: str) -> None:
    """TRL's default multiplies k3 by the ratio (2512.02556) and is switched off here; ours is the plain k3."""
    trainer = trainer_of(model_path, loss_type=loss_type, epsilon=0.2, beta=0.3, use_bias_correction_kl=False)
    batch = Batch(load_policy(model_path, "float32"), SCALARS)
    assert_same(batch, trainer, aggregation, kl_coef=0.3)


def test_the_sequence_ratio_of_gspo_is_that_of_trl(model_path: str) -> None:
    trainer = trainer_of(
        model_path, loss_type="grpo", importance_sampling_level="sequence", epsilon=0.02, epsilon_high=0.04, beta=0.0
    )
    batch = Batch(load_policy(model_path, "float32"), SCALARS)
    assert_same(batch, trainer, "sequence_mean", ratio="sequence", clip_low=0.02, clip_high=0.04)


def test_cispo_is_that_of_trl(model_path: str) -> None:
    """TRL's epsilon_high is the largest ratio itself; ours is how far it may stand above 1."""
    trainer = trainer_of(model_path, loss_type="cispo", epsilon_high=1.2, beta=0.0)
    batch = Batch(load_policy(model_path, "float32"), SCALARS)
    assert_same(batch, trainer, "token_mean", ratio="cispo", clip_low=1.0, clip_high=0.2)


def their_advantages(trainer: Any, rewards: list[float | None]) -> torch.Tensor:
    """What TRL makes of rewards, by its own code with generation and reward functions replaced."""
    completions = [[5] * n for n in LENGTHS]
    texts = [""] * len(LENGTHS)
    trainer._generate = lambda prompts: (PROMPTS, completions, None, texts, None, {}, None, None)
    values = [math.nan if r is None else r for r in rewards]
    trainer._calculate_rewards = lambda *_: torch.tensor(values)[:, None]
    return trainer._generate_and_score_completions([{"prompt": "a"} for _ in LENGTHS])["advantages"]


def our_advantages(method: str, rewards: list[float | None]) -> list[float]:
    members = [Member(None if r is None else int(r), [n]) for r, n in zip(rewards, LENGTHS, strict=True)]
    return [row[0] for row in assign_credit(group(*members), CREDIT_METHODS[method](method=method)).advantages]


@pytest.mark.parametrize("rewards", [[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0], [1.0, None, 0.0, 0.0], [1.0] * 4])
def test_grpo_advantages_are_those_of_trl_but_for_its_deviation(model_path: str, rewards: list[float | None]) -> None:
    valid = [r for r in rewards if r is not None]
    population = float(torch.tensor(valid).std(correction=0))
    theirs = their_advantages(trainer_of(model_path), rewards)
    factor = population / (population * math.sqrt(len(valid) / (len(valid) - 1)) + 1e-4)
    ours = [a * factor for a in our_advantages("grpo", rewards)]
    assert ours == pytest.approx(theirs.tolist(), abs=1e-5)


@pytest.mark.parametrize("rewards", [[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0], [1.0, None, 0.0, 0.0]])
def test_dr_grpo_advantages_are_those_of_trl_unscaled(model_path: str, rewards: list[float | None]) -> None:
    theirs = their_advantages(trainer_of(model_path, scale_rewards="none"), rewards)
    assert our_advantages("dr_grpo", rewards) == pytest.approx(theirs.tolist(), abs=1e-5)


def test_without_a_clip_the_losses_differ(model_path: str) -> None:
    """The negative control: with another clip the numbers part, so the tests above can tell."""
    trainer = trainer_of(model_path, loss_type="grpo", epsilon=0.2, beta=0.0)
    batch = Batch(load_policy(model_path, "float32"), SCALARS)
    assert (
        abs(float(batch.theirs(trainer)[0]) - float(batch.ours("sequence_mean", clip_low=1.0, clip_high=9.0)[0])) > 1e-3
    )
