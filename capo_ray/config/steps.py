"""Where a response is cut into steps: one small section per segmenter, which says what the segmenter reads.

A segmenter is a class and its name in `SEGMENTERS` here, and the function of its `rule` in `capo_ray/steps`; one of
another package is named by an entry point of `capo_ray.segmenters`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from capo_ray.config.base import Idle, RuledSection
from capo_ray.config.families import Family

Reads = Literal["text", "entropies", "turns"]


class StepsBase(RuledSection):
    """What all segmenters share; a rule is a function of (response, this section) -> the token ends of its steps."""

    reads: ClassVar[frozenset[Reads]] = frozenset({"text"})
    """What of a response the cut depends on; the engine gives entropies only where somebody reads them."""
    segmenter: str
    """Where a response is cut into steps."""
    whole_blocks: bool = True
    """Keep code blocks, displayed formulas, tables and the paragraphs of a list item whole, and make no step of a
    heading or rule alone; false: cut wherever the segmenter says (CAPO's paper: `\\n\\n`)."""
    thinking: Literal["train", "leave_out"] = "train"
    """What precedes the last `</think>`: cut, judged and trained as the rest, or left out: critics do not see it, and
    its tokens count as the prompt's. A response without the tag, or with nothing behind it, stays whole."""


class BlankLineSteps(StepsBase):
    """Steps end at blank lines (CAPO's `\\n\\n`, 2508.02298)."""

    rule: ClassVar[str] = "capo_ray.steps.segmenters:blank_lines"
    segmenter: Literal["blank_line"] = "blank_line"


class NewlineSteps(StepsBase):
    """Steps are lines."""

    rule: ClassVar[str] = "capo_ray.steps.segmenters:newlines"
    segmenter: Literal["newline"] = "newline"


class SentenceSteps(StepsBase):
    """Steps are sentences and lines."""

    rule: ClassVar[str] = "capo_ray.steps.segmenters:sentences"
    segmenter: Literal["sentence"] = "sentence"


class EntropySteps(StepsBase):
    """Steps end at sentences and lines where the policy then has a decision to make (after ACPO; numbers our own)."""

    rule: ClassVar[str] = "capo_ray.steps.entropy:decisions"
    reads: ClassVar[frozenset[Reads]] = frozenset({"text", "entropies"})
    segmenter: Literal["entropy"] = "entropy"
    top_frac: float = Field(0.1, gt=0, le=1)
    """Share of a response's tokens, those of the highest entropy, that count as decisions (p)."""
    window: int = Field(8, ge=1)
    """A delimiter is a cut where a decision follows within so many tokens (w)."""
    min_tokens: int = Field(4, ge=1)
    """Shorter steps are joined to the one after (L_min)."""
    max_steps: int = Field(32, ge=1)
    """Most steps of a response; the cuts before the highest entropies stay (K_max)."""


class TurnSteps(StepsBase):
    """Steps are turns with an environment, each with the words that it brought; a response of one turn is one step."""

    rule: ClassVar[str] = "capo_ray.steps.segmenters:turns"
    reads: ClassVar[frozenset[Reads]] = frozenset({"turns"})
    segmenter: Literal["turn"] = "turn"

    def idle(self) -> tuple[Idle, ...]:
        """What is cut by nobody."""
        return (Idle(("whole_blocks",), True, "with steps=turn, which cuts no text; remove it"),)


class EvidenceSteps(StepsBase):
    """The first step is all up to the end of the evidence block (`</evidence>`); behind it steps end at blank lines."""

    rule: ClassVar[str] = "capo_ray.steps.segmenters:evidence"
    segmenter: Literal["evidence"] = "evidence"


DEFAULT_STEPS = BlankLineSteps()
SEGMENTERS = Family(
    "steps",
    "segmenter",
    StepsBase,
    "capo_ray.segmenters",
    (BlankLineSteps, NewlineSteps, SentenceSteps, EntropySteps, TurnSteps, EvidenceSteps),
)
StepsConfig: TypeAlias = Annotated[StepsBase, SEGMENTERS]
"""The section of any segmenter, told by `segmenter`."""

MOVED = {name: name for name in ("segmenter", "whole_blocks", "thinking")} | {
    f"cut_{name}": name for name in ("top_frac", "window", "min_tokens", "max_steps")
}
"""Keys that stood in `credit` before the steps had a section of their own, and their names now."""


def move_older(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree of a run's config.yaml from before `steps` was a section, as it would be written now."""
    credit = dict(tree.get("credit") or {})
    moved = {new: credit.pop(old) for old, new in MOVED.items() if old in credit}
    if not moved:
        return tree
    segmenter = moved.setdefault("segmenter", DEFAULT_STEPS.segmenter)
    keys = SEGMENTERS[segmenter].model_fields
    return {**tree, "credit": credit, "steps": {name: value for name, value in moved.items() if name in keys}}
