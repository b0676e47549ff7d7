"""The critic tier's section of a run's configuration."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from capo_ray.config.api import ApiConfig
from capo_ray.config.base import Idle, LocalPath
from capo_ray.config.engine import EngineBase
from capo_ray.config.job import Positive

SAME_VOTES = "with critic.backend=calculator, whose votes are all the same; remove it or choose another backend"
OF_AN_ENGINE = (
    *("model", "dtype", "num_gpus", "placement", "tensor_parallel", "max_num_seqs", "max_model_len", "kv_cache_gib"),
    *("gpu_memory_frac", "max_batched_tokens", "extra", "step_deadline_s"),
)
"""Keys of the engine that holds a critic."""
OF_A_MODEL = ("rubric", "show_solution", "temperature", "top_p", "max_tokens", "chat_template", "constrain", "store")
"""Keys of how a model is asked."""


class EndpointConfig(ApiConfig):
    """backend=endpoint: any OpenAI-compatible chat API. Tries of a group's votes share the group's deadline."""

    section: ClassVar[str] = "critic.endpoint"

    parameters: Literal["plain", "reasoning"] = "plain"
    """`reasoning`: send `max_completion_tokens` and no temperature or top_p, as OpenAI's reasoning models want it."""
    votes_per_request: int = Field(0, ge=0)
    """Votes in one request (`n`), which share its prefill; 0: all of a response's. Use 1 where `n` is refused."""


class CriticConfig(EngineBase):
    """The LLM that judges steps."""

    section: ClassVar[str] = "critic"

    backend: Literal["vllm", "calculator", "endpoint", "oracle"] = "vllm"
    """`vllm`: in-cluster workers; `calculator`: checks arithmetic, no model; `endpoint`: an API; `oracle`: the truth of
    chains and word problems, with errors as asked: a control."""
    endpoint: EndpointConfig = EndpointConfig()
    model: str = "laptop"
    """Model directory or hub name; `laptop`: the small critic shipped with the package."""
    rubric: str = "compact"
    """`paper`, `every_step`, `compact` (the laptop critic's own) or the path of a template."""
    show_solution: bool = True
    """Show the reference solution where the problem has one."""
    num_votes: Positive = 4
    """Critiques per response (k)."""
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.9, gt=0, le=1)
    max_tokens: Positive = 64
    max_model_len: Positive = 512
    deadline_s: float = Field(120.0, gt=0)
    """For all critiques of a group."""
    critique_deadline_s: float = Field(0.0, ge=0)
    """For the votes on one response: those not in by then are invalid; 0: only the group's deadline."""
    max_retries: int = Field(1, ge=0, le=3)
    """Other workers that a group is sent to when the first did not judge it in time. What a dead worker had is always
    sent again."""
    hedge_after_s: float = Field(0.0, ge=0)
    """Send a group to a second worker too when the first has not answered after this long; 0: never."""
    outage_budget_s: float = Field(600.0, ge=0)
    """How long groups wait for a critic that answers nothing at all before the run ends with the critic's own words; 0:
    they do not wait and keep their outcome alone."""
    early_stop: bool = True
    """Ask first for the votes that decide a response in which they find nothing; stop once the vote cannot change."""
    skip: Literal["none", "no_gradient"] = "none"
    """no_gradient: a group whose advantages no critique can change is not judged (a method of another package
    has none)."""
    constrain: bool = False
    """Hold the verdict (not the reasoning before it) to its grammar while decoding (vLLM and its endpoints)."""
    chat_template: bool = True
    """Ask as a user turn of the critic's chat template, where rubric and tokenizer have one."""
    store: LocalPath = ""
    """SQLite file of critiques already paid for; empty: `critiques.sqlite` in the run directory. One run holds it at a
    time, from the driver's machine."""
    with_calculator: bool = False
    """Let the calculator cast one more vote on each response in which it finds arithmetic."""
    calculator_modulus: int = Field(0, ge=0)
    """Check arithmetic modulo this (10 for data=chains); 0: ordinary arithmetic."""
    oracle_precision: float = Field(1.0, gt=0, le=1)
    """Share of the oracle's flags that are on wrong steps, while `oracle_wrong_frac` of the steps are wrong. Where
    fewer are, since the policy has learnt, it falls: the same share of right steps is still flagged."""
    oracle_recall: float = Field(1.0, ge=0, le=1)
    """Share of the wrong steps that a vote of the oracle flags, without what `flag_unasked` adds."""
    oracle_wrong_frac: float = Field(0.25, gt=0, lt=1)
    """Share of wrong steps by which false alarms are made as frequent as `oracle_precision` asks for."""
    flag_unasked: bool = False
    """In chains and word problems, flag in every critique also the steps that a rule sees not to be the ones asked for
    (another operand, operator or digit, or no step at all; of word problems a number that is neither in the question
    nor an earlier result); it does no arithmetic, so a critic need only know results."""
    canary_every: int = Field(0, ge=0)
    """Groups per worker between judgements of solutions whose wrong steps are known; 0: never."""
    canary_path: LocalPath = ""
    """JSONL of such solutions (`question`, `steps`, `wrong_steps`); empty: those shipped for the rubric."""
    canary_min_recall: float = Field(0.5, ge=0, le=1)
    """Recall or precision on the canaries below which `critic/canary_alarm` is 1."""
    max_verifier_gap: float = Field(0.5, ge=0, le=1)
    """Share of responses on which critics and verifier may differ; above it `critic/verifier_gap_alarm` is 1."""
    min_f1: float = Field(0.0, ge=0, le=1)
    """ProcessBench's F1 (first errors found, right solutions passed) that the critic must reach on solutions whose
    wrong steps are known before a run begins with it; 0: not measured. One that flags nothing, or everything, has 0."""
    trust_file: LocalPath = ""
    """Those solutions, in any layout that `capo-ray critique` reads; empty: the ones shipped for the rubric."""
    placement: Literal["anywhere", "same_node", "colocated"] = "anywhere"
    """Each worker on any node, on the node of a rollout worker, or on that worker's own GPU (shares of one)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_outcome_only_frac: float = Field(0.5, ge=0, le=1)
    """Share of recent groups that may fall back to outcome-only credit before the run ends."""

    @property
    def oracle_false_alarm(self) -> float:
        """Share of the right steps that a vote of the oracle flags."""
        odds = self.oracle_wrong_frac / (1 - self.oracle_wrong_frac)
        return self.oracle_recall * odds * (1 - self.oracle_precision) / self.oracle_precision

    @model_validator(mode="after")
    def _refuse_out_of_reach(self) -> CriticConfig:
        if self.backend == "oracle" and self.oracle_false_alarm > 1 + 1e-9:
            found, right = self.oracle_recall * self.oracle_wrong_frac, 1 - self.oracle_wrong_frac
            raise ValueError(
                f"critic.oracle_precision must be at least {found / (found + right):.3g}, that of an oracle which "
                f"flags every right step, with critic.oracle_recall={self.oracle_recall:g} and "
                f"critic.oracle_wrong_frac={self.oracle_wrong_frac:g} (got {self.oracle_precision:g}); raise it, or "
                "lower critic.oracle_recall"
            )
        return self

    def idle(self) -> tuple[Idle, ...]:
        """What the backend leaves unread, and what other keys leave no work."""
        return (*super().idle(), *self._idle_by_backend(), *self._idle_of_oracle(), *self._idle_by_others())

    def idle_for(self, averages: bool, asks_once: bool) -> tuple[Idle, ...]:
        """The rules, with keys in full, where the credit method averages all votes, or asks for a greedy one."""
        return (
            Idle(
                ("critic.early_stop",),
                averages or asks_once or self.num_votes == 1,
                "with a single vote or an average, which every vote changes; remove it or choose another credit.vote",
            ),
            Idle(
                ("critic.num_votes", "critic.temperature", "critic.top_p"),
                asks_once,
                "with credit.vote=greedy, which asks once at temperature 0; remove it or choose another vote",
            ),
        )

    def _idle_by_backend(self) -> tuple[Idle, ...]:
        return (
            Idle(
                ("endpoint",),
                self.backend != "endpoint",
                "unless critic.backend=endpoint; remove it or choose that backend",
            ),
            Idle(("num_votes", "early_stop"), self.backend == "calculator", SAME_VOTES),
            Idle(
                ("with_calculator",),
                self.backend == "calculator",
                "with critic.backend=calculator, which is that vote already; remove it or choose another backend",
            ),
            Idle(
                ("calculator_modulus",),
                self.backend != "calculator" and not self.with_calculator,
                "unless critic.backend=calculator or critic.with_calculator=true; remove it or choose one of them",
            ),
            Idle(
                ("temperature", "top_p"),
                self.backend == "endpoint" and self.endpoint.parameters == "reasoning",
                "with critic.endpoint.parameters=reasoning, which sends neither; remove it",
            ),
            Idle(
                OF_AN_ENGINE,
                self.backend != "vllm",
                "unless critic.backend=vllm, which alone holds a model in the cluster; remove it or choose that "
                "backend",
            ),
            Idle(
                OF_A_MODEL,
                self.backend == "calculator",
                "with critic.backend=calculator, which asks no model; remove it or choose another backend",
            ),
        )

    def _idle_of_oracle(self) -> tuple[Idle, ...]:
        return (
            Idle(
                ("oracle_precision", "oracle_recall", "oracle_wrong_frac"),
                self.backend != "oracle",
                "unless critic.backend=oracle; remove it or choose that backend",
            ),
            Idle(
                ("oracle_precision", "oracle_wrong_frac"),
                self.oracle_recall == 0,
                "with critic.oracle_recall=0, which flags nothing; raise that, or remove this",
            ),
            Idle(
                ("oracle_wrong_frac",),
                self.oracle_precision == 1,
                "with critic.oracle_precision=1, which flags no right step; lower that, or remove this",
            ),
            Idle(
                OF_A_MODEL,
                self.backend == "oracle",
                "with critic.backend=oracle, which asks no model; remove it or choose another backend",
            ),
        )

    def _idle_by_others(self) -> tuple[Idle, ...]:
        return (
            Idle(
                ("early_stop",),
                self.with_calculator,
                "with critic.with_calculator=true, where all votes are asked for; remove one of the two",
            ),
            Idle(
                ("top_p",),
                self.temperature == 0,
                "with critic.temperature=0, which takes the likeliest token; remove it or raise critic.temperature",
            ),
            Idle(
                ("canary_path", "canary_min_recall"),
                self.canary_every == 0,
                "with critic.canary_every=0, which judges no canaries; raise it, or remove this",
            ),
            Idle(
                ("trust_file",),
                self.min_f1 == 0,
                "with critic.min_f1=0, which measures no critic; raise it, or remove this",
            ),
            Idle(
                ("critique_deadline_s",),
                self.backend in ("calculator", "oracle") or 0 < self.deadline_s <= self.critique_deadline_s,
                "unless it is shorter than critic.deadline_s and the critic is a model; lower it or remove it",
            ),
            Idle(
                ("hedge_after_s",),
                self.num_workers == 1 or self.max_retries == 0,
                "unless critic.num_workers>1 and critic.max_retries>0: a second copy goes to another worker",
            ),
        )
