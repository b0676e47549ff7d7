"""What `capo-ray eval` and `solve` read: the suites, and of a run's sections those that neither trains."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from capo_ray.config import sections as s
from capo_ray.config.api import ApiConfig
from capo_ray.config.base import Idle, LocalPath, Section
from capo_ray.config.job import idle_without_gpus
from capo_ray.config.train import TrainConfig


class Suite(Section):
    """A benchmark, as a file of `conf/suite` (or one's own) declares it."""

    title: str
    dataset: str = ""
    """On the Hugging Face hub, `NAME` or `NAME:CONFIG`; empty: it only comes from `eval.path`."""
    split: str = "test"
    question: str = ""
    answer: str = ""
    """Columns of the data set, or paths into them. In a file at `eval.path` they are looked for as in training data."""
    options: str | tuple[str, ...] = ()
    """Multiple choice: the column of the list of options, or a column for each."""
    labels: str = ""
    """The column of the options' labels; empty: A, B, …."""
    answer_is: Literal["label", "text"] = "label"
    """What the answer column says of the right option."""
    kind: Literal["", "math", "exact", "choice", "numeric"] = "math"
    """Which verifier judges it; empty: `verifier.kind`."""
    instruction: str = ""
    """Put after each question, a blank line between."""
    problems: int = 0
    licence: str = ""
    get: str = ""
    """Where its data is to be had, for people."""


class EvalRunConfig(Section):
    """The evaluation as a whole."""

    dir: LocalPath = "evals"
    """Directory in which the directories of evaluations are made."""
    name: str = ""
    """Name of the directory in `dir`: given again, the evaluation goes on; empty: made from time and model."""
    seed: int = 0
    """Of samples, and of the order of options."""


class QuestionsConfig(Section):
    """Which questions are asked, and how they are put."""

    limit: int = Field(0, ge=0)
    """Only the first so many problems of each suite; 0: all."""
    path: LocalPath = ""
    """The suite's file, folder or pattern; of several suites a folder in which each has a file or folder NAME*. Empty:
    its data set on the hub, or in the hub's cache."""
    instruction: str | None = None
    """In place of each suite's own; empty: none."""


class SamplingConfig(QuestionsConfig):
    """What is asked of the policy."""

    num_samples: s.Positive = 4
    """Sampled responses to each problem (k)."""
    temperature: float = Field(0.6, ge=0)
    """Of the sampled responses; 0: each is greedy."""
    top_p: float = Field(0.95, gt=0, le=1)
    greedy: bool = True
    """A greedy response to each problem beside the sampled ones."""


class EvalDataConfig(Section):
    """Where things stand in the rows, if not where the suite has them. Suites with options know their own columns."""

    question_column: str = ""
    answer_column: str = ""
    answer_marker: str = ""
    split: str = ""
    max_bad_rows: int = Field(10, ge=0)


class EvalRolloutConfig(Section):
    """Limits of the responses."""

    max_response_tokens: s.Positive = 2048
    """Less where the prompt leaves less of `model.max_model_len`."""
    deadline_s: float = Field(3600.0, gt=0)
    """For all responses to a problem, the wait in the engine included."""


class ServeConfig(TrainConfig):
    """A run without a learner, and whatever else it would need one for: engines and verifiers alone."""

    endpoint: ApiConfig = ApiConfig()
    """In place of the engines, where it names an address."""


class JudgedServeConfig(ServeConfig):
    """The same with critics, whose votes are put together as `credit` says."""


class BenchConfig(Section):
    """What `capo-ray eval` and `capo-ray solve` share."""

    run: EvalRunConfig = EvalRunConfig()
    suite: tuple[str, ...] = ()
    """Names of `conf/suite` or files like those, as `gsm8k,math500`."""
    model: s.ModelConfig = s.ModelConfig()
    eval: QuestionsConfig = QuestionsConfig()
    data: EvalDataConfig = EvalDataConfig()
    rollout: EvalRolloutConfig = EvalRolloutConfig()
    engine: s.EngineConfig = s.EngineConfig()
    endpoint: ApiConfig = ApiConfig()
    """A server of completions (vLLM's, SGLang's, …) in place of engines of our own; `model.path` is then where the
    tokenizer of what it serves is read."""
    verifier: s.VerifierConfig = s.VerifierConfig()
    cluster: s.ClusterConfig = s.ClusterConfig()
    resume: str = ""
    """Directory of an evaluation to go on with."""

    def serving(self, verifier: str = "") -> ServeConfig:
        """The same as a run without a learner; `verifier`: the kind of another verifier."""
        return ServeConfig(**self._parts(verifier))

    @property
    def is_served(self) -> bool:
        """Whether a server elsewhere answers, and no engine of ours."""
        return bool(self.endpoint.base_url)

    def idle_of_server(self) -> tuple[Idle, ...]:
        """The keys of whichever does not answer."""
        return (
            Idle(
                ("engine", "model.dtype"),
                self.is_served,
                "with endpoint.base_url, whose engines are its own; remove it",
            ),
            Idle(("endpoint",), not self.is_served, "without endpoint.base_url; set it too"),
        )

    def _parts(self, verifier: str) -> dict[str, Any]:
        judge = self.verifier.model_copy(update={"kind": verifier}) if verifier else self.verifier
        return {
            "run": s.RunConfig(seed=self.run.seed),
            "model": self.model,
            "rollout": s.RolloutConfig(**self.rollout.model_dump()),
            "engine": self.engine,
            "endpoint": self.endpoint,
            "verifier": judge,
            "cluster": self.cluster,
        }


class EvalConfig(BenchConfig):
    """Everything that `capo-ray eval` needs; a resolved copy stands beside the responses."""

    eval: SamplingConfig = SamplingConfig()

    def idle(self) -> tuple[Idle, ...]:
        """Seeds that are always drawn, samples that are all greedy, and GPUs that nobody asks for."""
        return (
            *self.idle_of_server(),
            idle_without_gpus(self.engine.num_gpus > 0),
            Idle(("engine.seeded",), True, "in an evaluation, which is always seeded; remove it"),
            Idle(
                ("eval.top_p", "eval.greedy"),
                self.eval.temperature == 0,
                "with eval.temperature=0, where every response is greedy; remove it",
            ),
        )
