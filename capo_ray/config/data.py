"""The section of the problems."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from capo_ray.config.base import Idle
from capo_ray.config.curriculum import CurriculumConfig
from capo_ray.config.job import Positive, RowsConfig


class DataConfig(RowsConfig):
    """The problems."""

    kind: Literal["chains", "environment", "synthetic", "files", "jsonl", "csv", "parquet", "hub"] = "chains"  # type: ignore[assignment]
    """As for supervised training, and environment: the problems that `environment.kind` makes; synthetic: the worked
    problems at `path` with other numbers, made as they are asked for."""
    eval_path: str = ""
    """Held-out file, folder or pattern; empty: the last `eval_frac` of the rows is held out."""
    eval_frac: float = Field(0.1, ge=0, lt=1)
    eval_split: str = "test"
    answer_column: str = ""
    """As `question_column`: `reward_model.ground_truth`, `answers.0`. A list is a list of answers. Empty: found too."""
    answer_marker: str = ""
    """The answer is what follows the last such mark in the column (`####` in GSM8K); empty: the whole column, or what
    an answer column that was found shows.

    `\\boxed`: the content of the boxes; rows with different ones are bad unless they are one list. What precedes the
    answer (or, with `\\boxed`, the whole column) is the reference solution.
    """
    chain_steps: Positive = 6
    """kind=chains: operations per problem."""
    curriculum: CurriculumConfig = CurriculumConfig()

    def idle(self) -> tuple[Idle, ...]:
        """What another kind of data, or the way in which its files are named, leaves unread."""
        return (
            Idle(
                (
                    "path",
                    "eval_path",
                    "question_column",
                    "answer_column",
                    "answer_marker",
                    "max_bad_rows",
                    "split",
                    "eval_split",
                    "eval_frac",
                ),
                self.makes_problems,
                f"with data.kind={self.kind}, which makes its own problems; remove it or choose another data=…",
            ),
            Idle(("chain_steps",), self.kind != "chains", "unless data.kind=chains; remove it or choose data=chains"),
            Idle(
                ("eval_split",),
                not self.eval_path or self._names_files(self.eval_path),
                "unless data.eval_path names a data set or a folder of several splits; remove it, or add "
                "data.eval_path",
            ),
            Idle(
                ("eval_frac",),
                bool(self.eval_path),
                "beside data.eval_path, which names the held-out file; remove one of the two",
            ),
            *super().idle(),
        )
