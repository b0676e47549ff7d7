"""The doors between the rooms: what each part promises, whoever stands behind it (an actor, a process, a fake).

Every method is awaited and every implementation has a deadline of its own: it raises `PartTimeout` naming what it
waited for, or `PartLost` when whoever stood behind it is gone, and never waits for ever.

    TextEngine     sample, score, hold weights             engines.VllmEngine, place.RolloutPool
    Environment    whole responses, turn by turn           environments.SingleTurn, environments.Playing
    Judge          k votes on each response of a group     critics.Judge, place.CriticPool
    Verifier       verdicts on final answers               verifiers.VerifierPool, place.VerifierTier
    Trainer        batches in, checkpoints out             learners.LearnerAlone, and every LearnerGroup
    LearnerGroup   batches in, versions out                place.LearnerActors over learners.Learner
    RewardModel    token rewards of a second model         place.RewardModelActors over learners.RewardLearner
    Ledger         every trajectory, every move            ledger.SqliteLedger
    Tracker        numbers out                             metrics.*
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from capo_ray.arrays import FloatArray, IntArray
from capo_ray.types import (
    Batch,
    Completion,
    Critique,
    Group,
    Problem,
    Span,
    Trajectory,
    TrajectoryKey,
    Turn,
    UpdateReport,
    Verdict,
    WrittenFile,
)
from capo_ray.work import Logbook


class PartTimeout(TimeoutError):
    """A part did not answer within its deadline; the message names the part, the request and the seconds."""


class PartLost(RuntimeError):
    """The process behind a part died or left; the request may be sent again elsewhere."""


class RunFailed(RuntimeError):
    """A run cannot go on; the message is one sentence for the user: expected, got, what to do."""


class RunStopped(KeyboardInterrupt):
    """A run ended because a signal asked it to; the message says what was kept, `signum` which signal it was."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `max_tokens` counts response tokens; `regex` constrains the text where the engine can.

    A response ends with a token of `stop_token_ids`, beside the model's own, or once a text of `stop_strings` is in it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    n: int = 1
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    regex: str | None = None
    entropies: bool = False
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightsHandle:
    """One published version: `payload` is the flat bytes (a uint8 buffer), or a transport's own token for them.

    `manifest` is JSON text made by `weights.build_handle`: per tensor its name, dtype, shape, offset and checksum, and
    the canary (token ids and the logprobs that the learner gives them). `fingerprint` is the manifest's, as the sender
    told whoever announces the version; empty: nobody announced it. `num_bytes`: what an engine loads of it.
    """

    version: int
    manifest: str
    payload: object
    fingerprint: str = ""
    num_bytes: int = 0


class Tokenizer(Protocol):
    """Text to token ids and back; trusted text and data go in by different doors."""

    eos_id: int

    def encode(self, text: str) -> list[int]:
        """The ids of trusted text, control tokens recognised, nothing added before or after."""

    def encode_data(self, text: str) -> list[int]:
        """The ids of untrusted text: no special or control token can come out, whatever the text spells."""

    def chat_frame(self, system: str, **names: object) -> tuple[str, str] | None:
        """The trusted text before and after a user turn, generation prompt included; None without a chat template.

        `names` are what the template reads beside the turns.
        """

    def encode_pieces(self, pieces: Sequence[tuple[str, bool]], *, begins: bool) -> list[int]:
        """The ids of pieces (text, trusted) as one running text; control tokens come out of trusted ones alone.

        `begins`: after what the tokenizer itself puts before a text, such as a begin-of-sequence token.
        """

    def stop_ids(self, tokens: Sequence[str]) -> tuple[int, ...]:
        """The ids of tokens given by their texts; raises `ValueError` on a text that is not one token."""

    def reply_frame(self, **names: object) -> tuple[str, str] | None:
        """The text from the end of a model's turn to the user's, and that after it; None without a chat template."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the ids, special tokens left out."""

    def decode_pieces(self, token_ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """The text of the ids and, per token, the length of the text once it is decoded."""


class TextEngine(Protocol):
    """A language model that samples and scores. `version` counts the updates behind its weights (0 at the start)."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        """The `sampling.n` completions of a prompt, in sample order."""

    async def score(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """For each sequence, the logprobs of tokens [start, end) given what precedes them, at temperature 1."""


class StreamingEngine(Protocol):
    """A language model whose samples are read one by one."""

    def stream(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Completion, None]:
        """The completions as each ends, in any order; closing the generator aborts the others."""


@dataclass(frozen=True, slots=True)
class Played:
    """One response as it was played, and to which prompt; `turns` and `told` as in `Trajectory`."""

    prompt_ids: tuple[int, ...]
    response: Completion
    turns: tuple[Turn, ...] = ()
    told: Verdict | None = None


class Environment(Protocol):
    """Who is on the other side of the policy's turns."""

    async def play(self, problem: Problem, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Played, ...]:
        """`sampling.n` responses of any number of turns, in sample order; `max_tokens` counts what was read too.

        A hang or crash of the environment is read by the policy, or is an invalid `told`.
        """

    def figures(self) -> dict[str, float]:
        """What a run watches, names as in metrics."""


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """What a critic is shown of one response: the text cut into its steps."""

    steps: tuple[str, ...]


class Judge(Protocol):
    """A critic tier."""

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        """Up to `num_votes` critiques of each response, in vote order; fewer where the vote was already decided.

        A failed critique is an invalid `Critique`, never an exception; losing the whole tier raises `PartLost`.
        """


class Verifier(Protocol):
    """A rule that compares final answers."""

    async def verify(self, answer: str, responses: Sequence[str]) -> tuple[Verdict, ...]:
        """One verdict per response text, in order; a hang or crash of the check is an invalid verdict."""


class Trainer(Protocol):
    """The policy under training; its version is the number of batches behind its weights."""

    async def update(self, batch: Batch) -> UpdateReport:
        """The report of one batch trained; a move whose loss or gradient is not finite is skipped and reported."""

    async def snapshot(self) -> int:
        """The version of which a copy is now held, apart from training: weights, optimizer, scheduler and RNG."""

    async def save(self, path: str) -> Sequence[WrittenFile]:
        """The snapshot's files, written under `path` (a directory made by the caller) while updates may go on."""

    async def load(self, path: str) -> int:
        """The version restored from `path`."""

    async def export(self, path: str) -> Sequence[WrittenFile]:
        """The snapshot's policy as a Hugging Face directory (safetensors, config, tokenizer); ends the snapshot."""


class LearnerGroup(Trainer, Protocol):
    """A policy under training that engines sample from."""

    async def refresh_reference(self) -> None:
        """From now on KL is measured from the present weights, which checkpoints then keep."""

    async def logprobs(
        self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> tuple[tuple[float, ...], ...]:
        """As `TextEngine.score`, by the learner's own forward pass."""


class Publisher(Protocol):
    """Both ends of a publish in one hand: the learner's weights to every engine, whatever the transport."""

    async def publish(self) -> int:
        """The version of the learner's weights, which every engine now holds, verified; raises `RunFailed` otherwise.

        An engine that comes later is brought to it before it serves.
        """


class RewardModel(Protocol):
    """A second model, trained beside the policy, that gives every token of a response a reward.

    A group is rewarded when its evidence is gathered and trained on later: its rewards are those of weights that have
    not seen it, as old as any of the updates made while it waited. Calls are served one after the other.
    """

    async def token_rewards(self, trajectories: Sequence[Trajectory]) -> Sequence[FloatArray]:
        """[T] rewards of each response under the present weights."""

    async def update(self, groups: Sequence[Group]) -> UpdateReport:
        """The report of one update on judged groups; metrics are named `reward_model/...`.

        Responses with an invalid verdict do not count. `reward_model/accuracy_frac`, the share of right/wrong sibling
        pairs ranked rightly by the weights before the update, is left out where the groups hold no such pair; a loss of
        pairs then moves nothing and is left out too. A move whose loss is not finite is skipped and reported.
        """

    async def snapshot(self) -> int:
        """As `Trainer.snapshot`, in turn with the other calls."""

    async def save(self, path: str) -> Sequence[WrittenFile]:
        """As `Trainer.save`; ends the snapshot."""

    async def load(self, path: str) -> int:
        """As `Trainer.load`."""


class Ledger(Logbook, Protocol):
    """The durable account of every trajectory: generated -> verified -> critiqued -> credited -> trained | dropped."""

    def record(
        self,
        keys: Sequence[TrajectoryKey],
        state: str,
        *,
        reason: str = "",
        update: int | None = None,
        votes: Sequence[tuple[int, int]] | None = None,
        masked: Sequence[int] | None = None,
    ) -> None:
        """Move trajectories to `state` in one durable transaction; raises `ledger.BadMove` on any other move.

        `critiqued` goes with the (valid, asked) votes of each, `trained` with the masked tokens of each.
        """

    def check(self) -> None:
        """Nothing, if the account is where it was and can be read; else raises `RunFailed` naming its file."""


class Tracker(Protocol):
    """Where metrics go. Names are `room/quantity_unit`."""

    def log(self, metrics: Mapping[str, float], *, update: int) -> None:
        """Record the figures of one update."""

    def close(self) -> None:
        """Flush and release; called once."""


def step_texts(text: str, char_ends: Sequence[int] | IntArray, steps: Sequence[Span]) -> tuple[str, ...]:
    """The text of each step: the characters that its tokens contribute (delimiters included)."""
    return tuple(text[char_ends[start - 1] if start else 0 : char_ends[end - 1]] for start, end in steps)
