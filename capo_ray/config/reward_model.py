"""The second model of the methods that read token rewards."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from capo_ray.config.base import Idle, Section


class RewardModelConfig(Section):
    """The model that rewards tokens (PRIME, iStar, Q-RM, ETPO-like, EAPO), trained beside the policy on its groups.

    What is not here (ZeRO stage, betas, weight decay, gradient norm, microbatches, threads, deadline) is `learner`'s.
    """

    path: str = ""
    """Model directory or hub name, with the policy's tokenizer; empty: the policy's own model."""
    head: Literal["scalar", "language_model"] = "scalar"
    """credit=qrm: what gives a token its number. scalar: a head of its own, that of `path` if the model there is a
    token classifier with one label, else a new one, which may not learn in a run; language_model: the model's own head,
    as log phi(token | prefix)."""
    beta: float = Field(0.05, gt=0)
    """credit=prime, istar, eapo: scale of the log-ratios."""
    score: Literal["sum", "step_mean"] = "sum"
    """credit=istar: what siblings are compared by. sum: the rewards of all tokens (the paper); step_mean: the mean over
    steps of their sums (the authors' code), which many steps do not saturate."""
    pair_scale: float = Field(0.2, gt=0)
    """credit=qrm: scale of the difference between a right and a wrong response."""
    pair_margin: float = Field(2.0, ge=0)
    """credit=qrm: what that scaled difference is to exceed."""
    lr: float = Field(3e-5, ge=0)
    """Constant over the run."""
    num_epochs: int = Field(1, ge=1)
    """Passes over each batch, one optimizer move each."""
    stop_drop: float = Field(0.0, ge=0, lt=1)
    """It is trained no further once the share of pairs that it ranks rightly before it learns from them, mean of 5
    updates, is so far below the best such mean; 0: never."""
    num_ranks: int = Field(1, ge=1)
    num_cpus: float = Field(0.5, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    node_resource: str = ""
    """A custom Ray resource that the nodes for these workers announce: they go nowhere else; empty: any node."""

    def idle_for(self, objective: str) -> tuple[Idle, ...]:
        """The rules, with keys in full, where it is trained for the objective of that method, or (empty) not at all."""
        return (
            Idle(
                ("reward_model",),
                not objective,
                "unless the credit method reads token rewards; remove it or choose credit=prime, istar, qrm or etpo, "
                "or credit=eapo credit.scorer=learned",
            ),
            Idle(
                ("reward_model.beta",),
                objective not in ("prime", "istar", "eapo"),
                "unless credit=prime, istar or eapo, whose rewards are log-ratios; remove it or choose one of them",
            ),
            Idle(
                ("reward_model.score",),
                objective != "istar",
                "unless credit=istar, whose pairs are compared by it; remove it or choose that method",
            ),
            Idle(
                ("reward_model.head", "reward_model.pair_scale", "reward_model.pair_margin"),
                objective != "qrm",
                "unless credit=qrm, whose objective they belong to; remove it or choose that method",
            ),
        )
