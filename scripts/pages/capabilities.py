"""What each method can do, found out by running it on two small groups: the table of `docs/methods.md`.

`python -m scripts.pages.capabilities` prints it.
"""

from __future__ import annotations

import numpy as np

from capo_ray.config.credit import CREDIT_METHODS
from capo_ray.credit import assign_credit
from capo_ray.types import (
    Completion,
    Critique,
    Evidence,
    Group,
    GroupCredit,
    Judged,
    Problem,
    Provenance,
    Trajectory,
    TrajectoryKey,
    Verdict,
    VersionRun,
)

HEADER = (
    "| `credit=` | arXiv | reads, beside the verdict | tells steps apart | credit where all answers are wrong "
    "| may blame a right answer or raise a wrong one |\n"
    "|---|---|---|---|---|---|"
)


def capability_matrix() -> str:
    """A Markdown table with one row per method; yes and no are what the rules did, not what we say of them."""
    mixed, wrong = _probe((1, 1, 0)), _probe((0, 0, 0))
    lines = [HEADER]
    for name, kind in CREDIT_METHODS.items():
        config = kind(method=name)
        credit = assign_credit(mixed, config)
        cells = (
            f"`{name}`",
            kind.source,
            ", ".join(sorted(name for asked in config.evidence() for name in asked.reads)) or "nothing",
            _word(any(len(set(row)) > 1 for row in credit.advantages)),
            _word(assign_credit(wrong, config).has_signal),
            _word(_crosses(mixed, credit) or _crosses(wrong, assign_credit(wrong, config))),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _word(yes: bool) -> str:
    return "yes" if yes else "no"


def _crosses(group: Group, credit: GroupCredit) -> bool:
    """Whether any token's advantage goes against its response's outcome."""
    return any(
        a * (1 if member.verdict.reward else -1) < 0
        for member, row in zip(group.members, credit.advantages, strict=True)
        for a in row
    )


def _probe(rewards: tuple[int, ...]) -> Group:
    """Responses of two steps (3 and 5 tokens); the first of each pair of critics calls an early step wrong."""
    evidence = (
        Evidence(
            _critics({0}, {0}),
            (-3.0, -4.0, -0.5),
            (0.5, 0.2, 0.9),
            np.repeat((-0.2, 0.4), (3, 5)),
            hint_gains=np.repeat((0.5, -0.5), (3, 5)),
            more={"turns": [["start", 0.0, True], ["near", 0.0, False]], "evidence_score": 0.2},
        ),
        Evidence(
            _critics(set(), set()),
            (-3.0, -2.0, -0.2),
            (0.5, 0.7, 1.0),
            np.repeat((0.3, 0.6), (3, 5)),
            hint_gains=np.repeat((0.1, 0.3), (3, 5)),
            more={"turns": [["start", 0.0, True], ["near", 0.0, True]], "evidence_score": 0.9},
        ),
        Evidence(
            _critics({1}, {1}),
            (-3.0, -1.0, -2.0),
            (0.5, 0.8, 0.0),
            np.repeat((0.5, -0.9), (3, 5)),
            hint_gains=np.repeat((-0.4, 0.2), (3, 5)),
            more={"turns": [["start", 0.0, True], ["far", 0.0, True]], "evidence_score": 0.4},
        ),
    )
    quote = "<evidence>[1] a</evidence>\n\n"
    response = Completion(
        token_ids=np.arange(8),
        logprobs=np.full(8, -0.5),
        char_ends=np.array([1, 2, len(quote), *range(len(quote) + 1, len(quote) + 6)]),
        text=f"{quote}bbbbb",
        versions=(VersionRun(0, 8),),
        finish="stop",
    )
    members = tuple(
        Judged(
            Trajectory(TrajectoryKey("probe", 0, i), np.zeros(1, np.int32), response),
            Verdict(reward, "", "1"),
            ((0, 3), (3, 8)),
            evidence[i],
        )
        for i, reward in enumerate(rewards)
    )
    return Group(0, Problem("probe", "[1] a\n?", ""), members)


def _critics(*flags: set[int]) -> tuple[Critique, ...]:
    return tuple(
        Critique(frozenset(flag), not flag, "", "", Provenance("probe", "", vote)) for vote, flag in enumerate(flags)
    )


if __name__ == "__main__":
    print(capability_matrix())
