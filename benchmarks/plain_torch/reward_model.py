"""The second models of PRIME, iStar, Q-RM and ETPO: the project's objectives around two models on bare tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from capo_ray.cli.compose import compose_train
from capo_ray.config.reward_model import RewardModelConfig
from capo_ray.learners.microbatch import to_inputs
from capo_ray.learners.reward_objectives import objective_of
from capo_ray.loss import soft_value_targets
from capo_ray.types import Group
from plain_torch.learner import Row, move, response_logprobs
from plain_torch.model import Model

CELL = 32
TRACE_DECAY, KL_COEF = 0.95, 0.01
_REDUCE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sum": torch.sum,
    "mean": torch.mean,
    "last": lambda row: row[-1],
}


class RewardModel:
    """Token rewards of one credit method; `tokens` counts what was judged.

    `reference` is the policy of the start. Trained by `train`, a move per pass over all responses at once.
    """

    def __init__(self, method: str, phi: Model, reference: Model, config: RewardModelConfig) -> None:
        self.phi, self.tokens = phi.trainable(), 0
        self._reference, self._config, self._objective = reference, config, objective_of(method, config)
        self._head = torch.zeros(phi.embedding.shape[1] + 1, requires_grad=True)  # weights and bias of a scalar head
        parameters = [*phi.parameters(), self._head]
        self._optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0)

    @property
    def work_per_token(self) -> float:
        """FLOP for one token that is trained on once and judged once: 2 per parameter forward, 4 backward."""
        reads_reference = self._objective.baseline == "reference" or self._objective.loss is None
        forward = 2.0 * self.phi.num_parameters
        return (self._config.num_epochs * 4 + 1 + reads_reference) * forward

    @torch.no_grad()
    def judge(self, groups: Sequence[Group]) -> list[list[tuple[float, ...]]]:
        """[groups][G][T]: token rewards."""
        rows = _rows(groups)
        self.tokens += sum(len(row.ids) for row in rows)
        flat = iter(tuple(x.tolist()) for at in range(0, len(rows), CELL) for x in self._outputs(rows[at : at + CELL]))
        return [[next(flat) for _ in g.members] for g in groups]

    def train(self, groups: Sequence[Group]) -> None:
        """`num_epochs` moves on the outcomes of the groups."""
        rows = _rows(groups)
        labels = [(i, float(m.verdict.reward or 0)) for i, g in enumerate(groups) for m in g.members]
        for _ in range(self._config.num_epochs):
            with torch.no_grad():
                outputs = [x for at in range(0, len(rows), CELL) for x in self._outputs(rows[at : at + CELL])]
            slopes = self._slopes(rows, outputs, labels)
            self._optimizer.zero_grad(set_to_none=True)
            for at in range(0, len(rows), CELL):
                made = self._outputs(rows[at : at + CELL])
                pairs = zip(made, slopes[at : at + CELL], strict=True)
                torch.stack([(x * slope).sum() for x, slope in pairs]).sum().backward()
            move(self._optimizer, self.phi)

    def _outputs(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """What each token of each row is given."""
        if self._objective.head == "prefix_scalar":
            inputs = to_inputs([r.ids for r in rows], [r.start for r in rows], torch.device("cpu"))
            hidden = self.phi.forward(inputs.input_ids).flatten(0, 1).index_select(0, inputs.predictors)
            return _split(hidden @ self._head[:-1] + self._head[-1], rows)
        ours = response_logprobs(self.phi, rows)
        if self._objective.baseline == "none":
            return _split(ours, rows)
        theirs = torch.tensor([x for row in rows for x in row.sampler_logprobs])
        if self._objective.baseline == "reference":
            with torch.no_grad():
                theirs = response_logprobs(self._reference, rows)
        return _split(self._config.beta * (ours - theirs), rows)

    def _slopes(
        self, rows: Sequence[Row], outputs: Sequence[torch.Tensor], labels: Sequence[tuple[int, float]]
    ) -> list[torch.Tensor]:
        """The loss's slope by each output."""
        if self._objective.loss is None:
            return [self._value_slope(r, x, outcome) for r, x, (_, outcome) in zip(rows, outputs, labels, strict=True)]
        scores = torch.stack([_REDUCE[self._objective.reduction](x.double()) for x in outputs]).requires_grad_()
        groups, outcomes = zip(*labels, strict=True)
        loss = self._objective.loss(scores, torch.tensor(outcomes), torch.tensor(groups), self._config)
        (slopes,) = torch.autograd.grad(loss, scores)
        share = [1 / len(x) if self._objective.reduction == "mean" else 1.0 for x in outputs]
        return [torch.full_like(x, float(s) * part) for x, s, part in zip(outputs, slopes, share, strict=True)]

    @torch.no_grad()
    def _value_slope(self, row: Row, values: torch.Tensor, outcome: float) -> torch.Tensor:
        kl = torch.tensor(row.sampler_logprobs) - response_logprobs(self._reference, [row])
        return (values - soft_value_targets(values, kl, outcome, KL_COEF, TRACE_DECAY)) / len(values)


def trained_on(method: str, policy: str | Path, batches: Sequence[Sequence[Group]]) -> RewardModel:
    """The method's model, begun as `policy` and trained with its preset's settings on a policy's rollouts."""
    config = compose_train([f"credit={method}"]).reward_model
    model = RewardModel(method, Model(policy), Model(policy), config)
    for batch in batches:
        model.train(batch)
    return model


def _rows(groups: Sequence[Group]) -> list[Row]:
    return [
        Row(
            tuple(m.trajectory.token_ids.tolist()),
            len(m.trajectory.prompt_ids),
            tuple(m.trajectory.response.logprobs.tolist()),
            (0.0,) * m.num_tokens,
            1.0,
        )
        for g in groups
        for m in g.members
    ]


def _split(flat: torch.Tensor, rows: Sequence[Row]) -> list[torch.Tensor]:
    return list(flat.split([len(r.ids) - r.start for r in rows]))
