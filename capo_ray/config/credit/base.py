"""What the configs of all credit methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from pydantic import model_validator

from capo_ray.config.base import Section
from capo_ray.config.credit.requests import Entropies, Request

Asked = TypeVar("Asked", bound=Request)
Segmenter = Literal["blank_line", "newline", "sentence", "entropy"]


@dataclass(frozen=True, slots=True)
class EntropyCuts:
    """Where segmenter=entropy cuts; the rule and its numbers are our own."""

    top_frac: float = 0.1
    window: int = 8
    min_tokens: int = 4
    max_steps: int = 32


class CreditBase(Section):
    """What all credit methods share."""

    rule: ClassVar[str] = ""
    """Its function, `package.module:function` of (group, this config, progress 0..1), found when credit is assigned."""
    source: ClassVar[str] = ""
    """arXiv id of the paper that defines the method."""
    required_loss: ClassVar[dict[str, str]] = {}
    """Keys of the loss section without which the method is another one."""
    reads_sampler_logprobs: ClassVar[bool] = False
    """Whether the evidence is made from the sampler's logprobs."""
    method: str
    segmenter: Segmenter = "blank_line"
    """Where a response is cut into steps."""
    whole_blocks: bool = True
    """Keep code blocks, displayed formulas, tables and the paragraphs of a list item whole, and make no step of a
    heading or rule alone; false: cut wherever the segmenter says (the paper's `\\n\\n`)."""
    thinking: Literal["train", "leave_out"] = "train"
    """What precedes the last `</think>`: cut, judged and trained as the rest, or left out: critics do not see it, and
    its tokens count as the prompt's. A response without the tag, or with nothing behind it, stays whole."""

    @model_validator(mode="after")
    def _refuse_requests(self) -> CreditBase:
        self.evidence()  # a request that cannot be met raises where it is made
        return self

    def evidence(self) -> tuple[Request, ...]:
        """What the method reads beside the verdict, one request of a kind."""
        return ()

    def asked(self, kind: type[Asked]) -> Asked | None:
        """The request for one kind of evidence; None where the method does not read it."""
        return next((request for request in self.evidence() if isinstance(request, kind)), None)

    @property
    def whitens_batch(self) -> bool:
        """Whether advantages are standardised over all valid tokens of a batch."""
        return False

    @property
    def entropy_cuts(self) -> EntropyCuts:
        """Where segmenter=entropy cuts."""
        return EntropyCuts()

    @property
    def reads_entropies(self) -> bool:
        """Whether the engine is to give the entropy of each token's distribution."""
        return self.segmenter == "entropy" or self.asked(Entropies) is not None

    @property
    def reads_extracted(self) -> bool:
        """Whether it matters for the credit which answer the verifier extracted."""
        return False

    @property
    def shares_bonus(self) -> bool:
        """Whether any token of the run gets a share of the entropy bonus."""
        return True

    @property
    def reference_from(self) -> float | None:
        """Share of the run at which the policy of that moment becomes the one that KL is measured from; None: never."""
        return None

    def kl_scale(self, progress: float) -> float:
        """What multiplies loss.kl_coef at this share of the run."""
        return 1.0
