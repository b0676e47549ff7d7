"""What stands between the policy's turns: one small section per environment, which names the function that replies.

An environment is a class and its name in `ENVIRONMENTS` here, and the function of its `rule` in
`capo_ray/environments`; one of another package is named by an entry point of `capo_ray.environments`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, field_validator

from capo_ray.config.base import RuledSection, Scalar
from capo_ray.config.families import Family
from capo_ray.config.job import Positive

REPLY_SLOT = "{reply}"
_NO_ID = "environment.id must name a registered environment, or a function package.module:name (got '')"


class EnvironmentBase(RuledSection):
    """What all kinds share; a rule is a function of (task, what the policy has said) -> `environments.Reply`."""

    problems: ClassVar[str] = ""
    """Where its own problems come from (`data.kind=environment`): `package.module:function` of (seed, index, split,
    settings) -> `Problem`; empty: it makes none."""
    rows: ClassVar[str] = ""
    """Where they come from in place of that, if they are given: a function of (its settings, the share to hold out
    where it has no set for that) -> (to train on, held out)."""
    check: ClassVar[str] = ""
    """A function of its settings, called before Ray starts where the data are others': RunFailed with a sentence on
    what cannot be played; empty: none."""
    prepare: ClassVar[str] = ""
    """A function of its settings, called once in each of its processes before any limit holds; empty: none."""
    tells_outcome: ClassVar[bool] = False
    """Whether it knows how an episode ended; else the verifier compares the policy's last turn with the answer."""
    kind: str

    @property
    def has_problems(self) -> bool:
        """Whether `data.kind=environment` has something to take."""
        return bool(self.problems or self.rows)

    @property
    def plays(self) -> bool:
        """Whether there is one."""
        return bool(self.rule)

    def missing(self) -> str:
        """What it needs and is not there, as a sentence; empty: nothing."""
        return ""

    def seconds(self, rollout_s: float) -> float:
        """The seconds within which a group is played, where one call of the engine has `rollout_s`."""
        return rollout_s


class NoEnvironment(EnvironmentBase):
    """A response is one turn."""

    kind: Literal["none"] = "none"


class PlayedBase(EnvironmentBase):
    """What environments share that reply."""

    max_turns: Positive = 8
    """Turns of the policy in one response; rollout.max_response_tokens bounds them and the replies together."""
    turn_tokens: Positive = 64
    """Most tokens of one turn."""
    reply_template: str = "{reply}\n"
    """What the policy reads between turns, without a chat template; holds {reply} once. With model.chat_template a
    reply is a user turn."""
    on_failure: Literal["tell", "invalid"] = "tell"
    """Where the environment hangs or crashes. tell: the policy reads that it failed, and the turn changed nothing;
    invalid: the response stands outside all means and counts."""
    confined: bool = True
    """Refuse sockets, processes and the writing of files to it."""
    timeout_s: float = Field(2.0, gt=0)
    """For one reply, the wait for a free core not counted; then its process is killed."""
    memory_mib: Annotated[int, Field(ge=256)] = 1024
    """Address space of one process."""
    num_processes: Positive = 1
    """Processes of its own, beside the driver."""
    deadline_s: float = Field(60.0, gt=0)
    """For one reply, the wait for a free process included."""

    def seconds(self, rollout_s: float) -> float:
        """One call of the engine and one reply for each turn."""
        return self.max_turns * (rollout_s + self.deadline_s)

    @field_validator("reply_template")
    @classmethod
    def _holds_the_reply_once(cls, value: str) -> str:
        if value.count(REPLY_SLOT) != 1:
            raise ValueError(f"environment.reply_template must hold {REPLY_SLOT} exactly once (got {value!r})")
        return value


class CalculatorEnvironment(PlayedBase):
    """A tool: `calc EXPRESSION` on the last line of a turn is answered with its exact value; any other turn ends."""

    rule: ClassVar[str] = "capo_ray.environments.calculator:reply"
    problems: ClassVar[str] = "capo_ray.environments.calculator:make_problem"
    kind: Literal["calculator"] = "calculator"
    max_operations: int = Field(1, ge=0)
    """Operations in one call; 0: as many as fit."""
    num_operations: Positive = 2
    """data.kind=environment: operations of a problem."""
    max_number: int = Field(99, ge=1)
    """data.kind=environment: largest number in a problem."""


class GridEnvironment(PlayedBase):
    """A box is to be pushed onto a goal: a turn is a move (u, d, l, r), the reply is the board."""

    rule: ClassVar[str] = "capo_ray.environments.grid:reply"
    problems: ClassVar[str] = "capo_ray.environments.grid:make_problem"
    tells_outcome: ClassVar[bool] = True
    kind: Literal["grid"] = "grid"
    size: int = Field(4, ge=3, le=9)
    """data.kind=environment: side of the board, its walls left out."""
    min_moves: Positive = 2
    """data.kind=environment: fewest moves of the shortest solution."""
    most_moves: Positive = 5
    """data.kind=environment: most moves of the shortest solution."""


class GymnasiumEnvironment(PlayedBase):
    """Any environment with Gymnasium's `reset` and `step`, played again from its seed for each reply."""

    rule: ClassVar[str] = "capo_ray.environments.gymnasium:reply"
    problems: ClassVar[str] = "capo_ray.environments.gymnasium:make_problem"
    tells_outcome: ClassVar[bool] = True
    kind: Literal["gymnasium"] = "gymnasium"
    id: str = ""
    """A registered id, or `package.module:function` that makes one."""
    success_reward: float = 1.0
    """The sum of rewards from which on an episode that ended is a success, unless its info says `is_success`."""

    def missing(self) -> str:
        if not self.id:
            return _NO_ID
        if ":" in self.id or find_spec("gymnasium"):
            return ""
        return (
            f"environment.id={self.id} needs the package gymnasium, and it is not installed; pip install gymnasium, "
            "or name a function that makes the environment, package.module:function"
        )


class VerifiersEnvironment(PlayedBase):
    """A text environment of the package `verifiers` (0.1.14 to 0.3), with its data and its rubric."""

    rule: ClassVar[str] = "capo_ray.environments.verifiers:reply"
    rows: ClassVar[str] = "capo_ray.environments.verifiers_rows:rows"
    check: ClassVar[str] = "capo_ray.environments.verifiers_rows:check"
    prepare: ClassVar[str] = "capo_ray.environments.verifiers:prepare"
    tells_outcome: ClassVar[bool] = True
    kind: Literal["verifiers"] = "verifiers"
    id: str = ""
    """As `verifiers.load_environment` finds it, or `package.module:function` that makes one."""
    args: dict[str, Scalar] = Field(default_factory=dict)
    """What it is made with, as `environment.args.num_examples=100`."""
    success_reward: float = 1.0
    """The rubric's reward from which on an episode is a success."""
    turn_tokens: Positive = 512
    on_failure: Literal["tell", "invalid"] = "invalid"
    timeout_s: float = Field(10.0, gt=0)
    memory_mib: Annotated[int, Field(ge=256)] = 4096
    deadline_s: float = Field(180.0, gt=0)

    def missing(self) -> str:
        if not self.id:
            return _NO_ID
        if find_spec("verifiers"):
            return ""
        return (
            "environment=verifiers needs the package verifiers, and it is not installed; pip install "
            "'verifiers>=0.1.14,<0.4'"
        )


ENVIRONMENTS = Family(
    "environment",
    "kind",
    EnvironmentBase,
    "capo_ray.environments",
    (NoEnvironment, CalculatorEnvironment, GridEnvironment, GymnasiumEnvironment, VerifiersEnvironment),
)
EnvironmentConfig: TypeAlias = Annotated[EnvironmentBase, ENVIRONMENTS]
"""The section of any environment, told by `kind`."""
