"""The arms of the learning benchmark: overrides of `capo-ray train`, and who stands behind two doors in controls.

    judge=oracle:P,R     true labels at this precision and recall, where the run would ask its critic
    judge=shuffled       the critic's flags of each response, on other steps of it
    judge=random         steps flagged by chance, as often as the critic's majority flags them
    rewards=logprobs     a token's reward is its own logprob: no verifier and no critic (credit=qrm scales it)

Any other arm is given as `--arm "name: overrides"`.
"""

from __future__ import annotations

from dataclasses import dataclass

MAIN = {
    "grpo": "credit=grpo",
    "capo_majority": "credit=capo",
    "shuffled": "credit=capo judge=shuffled",
    "random": "credit=capo judge=random",
    "oracle": "credit=capo judge=oracle:1,1 critic.num_votes=1",
    "capo_intersection": "credit=capo credit.vote=intersection",
    "capo_union": "credit=capo credit.vote=union",
    "capo_average": "credit=capo credit.vote=average",
    "capo_greedy": "credit=capo credit.vote=greedy",
    "acpo": "credit=acpo",
    "mig": "credit=mig",
    "prime": "credit=prime reward_model.lr=1e-4",
}
"""In the order in which a seed runs them."""
MORE = {
    "self_confidence": "credit=qrm credit.outcome_until=0 rewards=logprobs",
    "grpo_more_samples": "credit=grpo rollout.group_size=16",
    "capo_process_0.3": "credit=capo credit.w_process=0.3",
    "capo_process_2": "credit=capo credit.w_process=2",
    "capo_separate": "credit=capo credit.normalisation=separate",
    "capo_leave_one_out": "credit=capo credit.normalisation=leave_one_out",
    "capo_keep_sign": "credit=capo credit.keep_outcome_sign=true",
    "oracle_half_recall": "credit=capo judge=oracle:1,0.5 critic.num_votes=1",
    "oracle_half_precision": "credit=capo judge=oracle:0.5,1 critic.num_votes=1",
    "pure": "credit=pure",
    "grpo_genorm": "credit=grpo_genorm",
    "cliff": "credit=cliff",
    "vppo": "credit=vppo",
    "rlsd": "credit=rlsd",
    "istar": "credit=istar",
    "qrm": "credit=qrm",
    "etpo": "credit=etpo",
    "vineppo": "credit=vineppo",
    "rloo": "credit=rloo",
    "dr_grpo": "credit=dr_grpo",
    "dapo": "credit=dapo",
}
ARMS = MAIN | MORE


@dataclass(frozen=True)
class Arm:
    """A named list of overrides; `judge` and `rewards` are what its text says of those doors, or empty."""

    name: str
    text: str
    overrides: tuple[str, ...]
    judge: str = ""
    rewards: str = ""


def parse_arm(name: str, text: str) -> Arm:
    """The arm that a text describes."""
    words = text.split()
    doors = {key: value for key, _, value in (word.partition("=") for word in words) if key in ("judge", "rewards")}
    return Arm(name, text, tuple(w for w in words if w.partition("=")[0] not in doors), **doors)
