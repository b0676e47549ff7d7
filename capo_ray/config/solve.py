"""What `capo-ray solve` reads: an evaluation's sections, a search in place of samples, and critics."""

from __future__ import annotations

from pydantic import ConfigDict, Field, model_validator

from capo_ray.config import sections as s
from capo_ray.config.base import Idle, LocalPath, Section
from capo_ray.config.credit import CapoConfig
from capo_ray.config.evaluation import BenchConfig, JudgedServeConfig, QuestionsConfig, ServeConfig
from capo_ray.config.job import idle_without_gpus
from capo_ray.config.search import NavigatorSearch, SearchBase, SearchConfig
from capo_ray.config.steps import DEFAULT_STEPS, StepsConfig

DELIMITERS = {"blank_line": "\n\n", "newline": "\n"}
"""What ends a step while it is being written, by segmenter."""


class SolveQuestionsConfig(QuestionsConfig):
    """Which questions are solved."""

    question: str = ""
    """One question in place of a suite."""


class SolveRunConfig(Section):
    """The command as a whole."""

    dir: LocalPath = "solutions"
    """Directory in which the directories of solutions are made."""
    name: str = ""
    """Name of the directory in `dir`: given again, what is missing is solved; empty: made from time and model."""
    seed: int = 0
    """Of every draw, and of the order of options."""


class SolveConfig(BenchConfig):
    """Everything that `capo-ray solve` needs; a resolved copy stands beside the solutions."""

    model_config = ConfigDict(defer_build=True)  # the searches of other packages are looked for at first use

    run: SolveRunConfig = SolveRunConfig()  # type: ignore[assignment]
    search: SearchConfig = Field(default=NavigatorSearch())
    steps: StepsConfig = Field(default=DEFAULT_STEPS)
    eval: SolveQuestionsConfig = SolveQuestionsConfig()
    critic: s.CriticConfig = s.CriticConfig()

    @model_validator(mode="after")
    def _refuse_combinations(self) -> SolveConfig:
        name, steps = self.search.method, self.steps
        if self.search.asks_critic and "entropies" in steps.reads:
            raise ValueError(f"search={name} cuts texts, so steps.segmenter must be one that reads the text alone "
                             f"(got {steps.segmenter})")  # fmt: skip
        if self.search.asks_critic and self.critic.backend == "oracle":
            raise ValueError(
                f"critic.backend=oracle knows the answer that search={name} looks for; choose another critic"
            )
        if not self.search.draws_steps:
            return self
        if steps.segmenter not in DELIMITERS:
            raise ValueError(
                f"search={name} stops the policy after each step, so steps.segmenter must be "
                f"{' or '.join(DELIMITERS)} (got {steps.segmenter})"
            )
        if steps.thinking == "leave_out":
            raise ValueError(f"search={name} judges every step as it is written, so steps.thinking must be train (got "
                             "leave_out)")  # fmt: skip
        if any(text in DELIMITERS[steps.segmenter] for text in self.model.stop_strings):
            raise ValueError(
                f"search={name} goes on after {DELIMITERS[steps.segmenter]!r}, which model.stop_strings ends a "
                "response at; remove it there, or choose another steps"
            )
        return self

    def serving(self, verifier: str = "") -> ServeConfig:
        """The same as a run without a learner, with critics where the search asks them."""
        if not self.search.asks_critic:
            return super().serving(verifier)
        votes = CapoConfig(vote=self.vote, quorum=1)
        return JudgedServeConfig(**self._parts(verifier), critic=self.critic, credit=votes, steps=self.steps)

    @property
    def settled_search(self) -> SearchBase:
        """The search with nothing left to `auto`."""
        search, critic = self.search, self.critic
        if not isinstance(search, NavigatorSearch) or search.shows != "auto":
            return search
        compact = critic.backend != "calculator" and critic.rubric == "compact"
        return search.model_copy(update={"shows": "whole" if compact else "steps"})

    @property
    def vote(self) -> str:
        """How the votes on a step are put together; of searches of other packages, as a share."""
        return str(getattr(self.search, "vote", "average"))

    def idle(self) -> tuple[Idle, ...]:
        """Seeds that are always drawn, GPUs that nobody asks for, critics and cuts that the search does not read."""
        name, asks = self.search.method, self.search.asks_critic
        return (
            *self.idle_of_server(),
            idle_without_gpus(self.engine.num_gpus > 0 or (asks and self.critic.num_gpus > 0)),
            Idle(("engine.seeded",), True, "in a search, which is always seeded; remove it"),
            Idle(("critic.show_solution",), True, "in a search, whose critic never sees the solution; remove it"),
            Idle(
                ("critic", "steps"), not asks, f"with search={name}, which asks no critic; remove it or choose another"
            ),
            *self.critic.idle_for(averages=asks and self.vote == "average", asks_once=asks and self.vote == "greedy"),
            Idle(
                ("steps.whole_blocks",),
                self.search.draws_steps,
                f"with search={name}, which cuts at each delimiter as it is written; remove it",
            ),
            Idle(
                ("suite", "eval.path", "eval.limit", "data"),
                bool(self.eval.question),
                "beside eval.question, the one question that is asked; remove one of the two",
            ),
        )
