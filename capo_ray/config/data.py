"""The section of the problems."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from capo_ray.config.base import Idle
from capo_ray.config.curriculum import CurriculumConfig
from capo_ray.config.job import MAX_TOLD, Positive, RowsConfig

NUMBER_SPAN = 2.0
"""How many times larger or smaller a number of a synthesised problem may be: `data.number_span`, `--span`."""
_OF_ROWS = (
    *("eval_path", "question_column", "answer_column", "answer_marker", "solution_column", "context_column"),
    *("evidence_column", "max_bad_rows", "split", "eval_split", "eval_frac"),
)


class DataConfig(RowsConfig):
    """The problems."""

    kind: Literal[
        "chains", "words", "environment", "synthetic", "haystack", "files", "jsonl", "csv", "parquet", "hub"
    ] = "chains"  # type: ignore[assignment]
    """As for supervised training, and environment: the problems that `environment.kind` makes; synthetic: the worked
    problems at `path` with other numbers, made as they are asked for; haystack: one chain, or one problem of those at
    `path`, among others whose sentences stand in the same context."""
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
    solution_column: str = ""
    """As `question_column`: the reference solution, which critics are shown (`critic.show_solution`), where it stands
    beside the answer; a row may have none. Empty: `solution`, where the answer's column is found too and is another."""
    context_column: str = ""
    """Sentences (a list, or one text) that are numbered and put before the question, for `credit=eapo`."""
    evidence_column: str = ""
    """The numbers, from 1, of those sentences that are needed: for metrics alone."""
    haystack_size: int = Field(8, ge=2, le=26)
    """kind=haystack: chains, or problems, in one context."""
    number_span: float = Field(NUMBER_SPAN, gt=1, le=10)
    """kind=synthetic: how many times larger or smaller than in the original a number may be, given or worked out; a
    given one keeps its digits, so that 10 allows any of as many."""
    chain_steps: Positive = 6
    """kind=chains and kind=haystack without a path: operations per problem."""
    min_steps: Positive = 2
    """kind=words: fewest operations per problem."""
    max_steps: int = Field(4, ge=1, le=MAX_TOLD)
    """kind=words: most operations per problem."""
    curriculum: CurriculumConfig = CurriculumConfig()

    @model_validator(mode="after")
    def _from_few_to_many(self) -> DataConfig:
        if self.min_steps > self.max_steps:
            raise ValueError(f"data.min_steps must be <= data.max_steps (got {self.min_steps} > {self.max_steps})")
        return self

    @property
    def makes_problems(self) -> bool:
        """As for supervised training, and chains in a haystack."""
        return super().makes_problems or self._hides_chains

    @property
    def has_context(self) -> bool:
        """Whether numbered sentences stand before the questions."""
        return self.kind == "haystack" or bool(self.context_column)

    @property
    def _hides_chains(self) -> bool:
        return self.kind == "haystack" and not self.path

    def idle(self) -> tuple[Idle, ...]:
        """What another kind of data, or the way in which its files are named, leaves unread."""
        return (
            Idle(
                _OF_ROWS if self._hides_chains else ("path", *_OF_ROWS),
                self.makes_problems,
                f"with data.kind={self.kind}, which makes its own problems; remove it or choose another data=…",
            ),
            Idle(
                ("chain_steps",),
                self.kind != "chains" and not self._hides_chains,
                "unless data.kind=chains; remove it or choose data=chains",
            ),
            Idle(
                ("min_steps", "max_steps"),
                self.kind != "words",
                "unless data.kind=words; remove it or choose data=words",
            ),
            Idle(("haystack_size",), self.kind != "haystack", "unless data.kind=haystack; remove it"),
            Idle(
                ("solution_column",),
                self.kind == "synthetic",
                "with data.kind=synthetic, which reads worked answers; remove it",
            ),
            Idle(("number_span",), self.kind != "synthetic", "unless data.kind=synthetic; remove it"),
            Idle(
                ("context_column", "evidence_column"),
                self.kind in ("haystack", "synthetic") and not self.makes_problems,
                "with data.kind=haystack and synthetic, which make their own problems of the rows; remove it",
            ),
            Idle(("evidence_column",), not self.context_column, "without data.context_column; give that too"),
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
