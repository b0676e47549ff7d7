"""What each arm was tried at, and which of it it stands for: learning rates, and a KL term beside one of them.

    grpo_1e-4, grpo_2e-4, grpo_kl_1e-4  ->  the arm `grpo` at "1e-4", "2e-4" and "1e-4, KL 0.01"

An arm stands for the setting that ends best, of those with two seeds or more, on the seeds that these share.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from plain_torch.report import Row, line

Tried = dict[str, dict[str, list[Row]]]
"""Runs by arm and by what it was tried at."""
FEW = 3
"""An arm was tuned where it was tried at so many settings on one seed."""


def by_setting(rows: Sequence[Row]) -> Tried:
    """Runs by arm and setting."""
    arms: Tried = {}
    for row in rows:
        arms.setdefault(re.sub(r"(_kl)?_\de-\d$", "", row["arm"]), {}).setdefault(setting(row), []).append(row)
    return arms


def at_best(tried: Tried) -> dict[str, list[Row]]:
    """Each arm's runs at its best setting; the arm that ends best first."""
    arms = {arm: best_of(list(settings.values())) for arm, settings in tried.items()}
    return dict(sorted(arms.items(), key=lambda item: -end(item[1])))


def best_of(settings: Sequence[list[Row]]) -> list[Row]:
    """Those that end best of those with two seeds or more, if any has them, on the seeds that all of these have."""
    often = [rows for rows in settings if len(rows) > 1] or settings
    shared = set.intersection(*({row["seed"] for row in rows} for rows in often))
    return max(often, key=lambda rows: end([row for row in rows if row["seed"] in shared] or rows))


def end(rows: Sequence[Row], key: str = "greedy") -> float:
    """The mean of the last points."""
    return statistics.fmean(row["curve"][-1][key] for row in rows)


def setting(row: Row) -> str:
    """The learning rate of a run, and the coefficient of its KL term if it has one."""
    rate, kl = of(row, "learner.lr", "1e-4"), of(row, "loss.kl_coef", "0")
    return rate if float(kl) == 0 else f"{rate}, KL {kl}"


def of(row: Row, key: str, default: str) -> str:
    """What a run's overrides say of a key."""
    words = [*row["settings"]["overrides"], *row["settings"]["arm"].split()]
    return next((word.partition("=")[2] for word in reversed(words) if word.startswith(f"{key}=")), default)


def settings_cell(rows: Sequence[Row], settings: dict[str, list[Row]]) -> str:
    """The setting of these runs, and what the others ended with: their mean, and of how many seeds."""
    own = setting(rows[0])
    others = [f"{name}: {end(runs):.2f} of {len(runs)}" for name, runs in sorted(settings.items()) if name != own]
    return f"{own} ({', '.join(others)})" if others else own


def tuning_table(tried: Tried) -> str:
    """What the first seed ended with at each setting, arm by arm, the best in bold; empty where no arm was tuned."""
    ends: dict[str, dict[str, float]] = {}
    for arm, settings in tried.items():
        first = {name: min(runs, key=lambda row: row["seed"]) for name, runs in settings.items()}
        seed = min(row["seed"] for row in first.values())
        alike = {name: row["curve"][-1]["greedy"] for name, row in first.items() if row["seed"] == seed}
        if len(alike) >= FEW:
            ends[arm] = alike
    if not ends:
        return ""
    rates = sorted({name for found in ends.values() for name in found if "," not in name}, key=float)
    lines = [line(["arm", *rates, "with a KL term", "best"]), "|" + "---|" * (len(rates) + 3)]
    for arm, found in sorted(ends.items(), key=lambda item: -max(item[1].values())):
        best = max(found, key=lambda name: found[name])
        shown = {name: f"**{x:.2f}**" if name == best else f"{x:.2f}" for name, x in found.items()}
        with_kl = ", ".join(f"{text} ({name})" for name, text in shown.items() if "," in name)
        lines.append(line([f"`{arm}`", *(shown.get(rate, "-") for rate in rates), with_kl or "-", best]))
    return "\n".join(lines)
