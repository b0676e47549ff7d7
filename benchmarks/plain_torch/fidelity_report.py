"""The tables and the plot of the credit-fidelity benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("auc_within", "auc_over_all", "blamed_precision", "blamed_recall", "value_rank_corr")
HEADER = "AUC within a response | AUC over all steps | pushed down: precision | recall | rank correlation with values |"


def show(record: dict[str, Any]) -> None:
    """Prints the tables."""
    rows = record["methods"]
    print(f"{record['responses']} responses, {record['steps']} steps, {record['seconds']} s, {record['cores']} cores\n")
    print(f"| method | critic | k | {HEADER}\n|" + "---|" * 8)
    for row in rows:
        if row["k"] in (0, 8) or row["method"] == "capo greedy":
            print(line(row))
    print("\nAUC within a response against k\n")
    for critic in dict.fromkeys(r["critic"] for r in rows if r["critic"] != "-"):
        for method in dict.fromkeys(
            r["method"] for r in rows if r["critic"] == critic and r["method"] != "capo greedy"
        ):
            found = [r for r in rows if (r["critic"], r["method"]) == (critic, method)]
            print(f"| {critic} | {method} | " + " | ".join(text(r["auc_within"]) for r in found) + " |")
    print("\nAUC within a response by kind of error, k = 8\n")
    for row in rows:
        if row["k"] in (0, 8) and "blamed_by_kind" in row and row["critic"] in ("-", "real", "90% of steps"):
            kinds = ", ".join(f"{kind} {value:.2f}" for kind, value in row["blamed_by_kind"].items())
            print(f"{row['method']} ({row['critic']}): {kinds}")
    print("\nCalibration of average votes (expected error)\n")
    for row in record["calibration"]:
        if row["k"] == 8:
            print(f"{row['critic']}: {row['ece']}")


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    return (
        f"| {row['method']} | {row['critic']} | {row['k'] or '-'} | " + " | ".join(text(row[c]) for c in COLUMNS) + " |"
    )


def text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def draw(record: dict[str, Any], images: Path) -> None:
    """Writes credit-fidelity.png: AUC against k per vote, and the calibration of average votes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    images.mkdir(exist_ok=True)
    critics = ["90% of steps", "90% of steps, half the errors shared", "real"]
    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3.8))
    for axis, critic in zip(axes, critics, strict=False):
        draw_votes(axis, record["methods"], critic)
    axes[0].set_ylabel("AUC of blame within a response")
    axes[2].legend(fontsize=7, loc="center right")
    for row in record["calibration"]:
        if row["k"] == 8 and row["critic"] in critics:
            bins = [b for b in row["bins"] if b["steps"] >= 10]
            axes[3].plot([b["weight"] for b in bins], [b["wrong_frac"] for b in bins], marker="o", label=row["critic"])
    axes[3].plot([0, 1], [0, 1], color="gray", linestyle=":")
    axes[3].set(xlabel="weight by vote=average, k = 8", ylabel="share of steps really wrong", title="calibration")
    axes[3].title.set_fontsize(9)
    axes[3].legend(fontsize=7, loc="upper left")
    figure.suptitle(
        f"{record['responses']} responses with planted errors; one of {record['cores']} CPU cores", fontsize=9
    )
    figure.tight_layout()
    figure.savefig(images / "credit-fidelity.png", dpi=110)
    pyplot.close(figure)


def draw_votes(axis: Any, rows: Sequence[dict[str, Any]], critic: str) -> None:
    """AUC within a response against k for each method that reads critiques."""
    for method in ("capo intersection", "capo majority", "capo union", "capo average", "pure", "grpo_genorm"):
        found = [r for r in rows if (r["critic"], r["method"]) == (critic, method)]
        axis.plot([r["k"] for r in found], [r["auc_within"] for r in found], marker="o", label=method)
    axis.set(title=f"critic: {critic}", xlabel="votes k", ylim=(0.45, 1.02), xticks=[1, 2, 4, 8])
    axis.title.set_fontsize(9)
