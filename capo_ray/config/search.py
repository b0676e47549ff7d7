"""How `capo-ray solve` looks for a solution: one small section per search, which says what the search reads.

A search is a class and its name in `SEARCHES` here, and the function of its `rule` in `capo_ray/search`; one of another
package is named by an entry point of `capo_ray.searches`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from capo_ray.config.base import Idle, RuledSection
from capo_ray.config.families import Family

Votes = Literal["average", "greedy"]


class SearchBase(RuledSection):
    """What all searches share; a rule is an async function of (one problem's `search.Asking`, this section)."""

    asks_critic: ClassVar[bool] = False
    draws_steps: ClassVar[bool] = False
    """Whether the policy is stopped after each step."""
    method: str
    """How a solution is looked for."""
    temperature: float = Field(0.6, ge=0)
    """Of what the policy draws; 0: the likeliest token each time."""
    top_p: float = Field(0.95, gt=0, le=1)

    def idle(self) -> tuple[Idle, ...]:
        """The nucleus of greedy draws."""
        why = "with search.temperature=0, which takes the likeliest token; remove it or raise search.temperature"
        return (Idle(("top_p",), self.temperature == 0, why),)


class _Several(SearchBase):
    """Searches that choose among draws, which therefore must differ."""

    @model_validator(mode="after")
    def _refuse_equal_draws(self) -> _Several:
        if self.temperature == 0:
            raise ValueError(
                f"search.temperature must be > 0 with search={self.method}, whose draws would all be one (got 0); "
                "choose search=sample for one greedy response"
            )
        return self


class SampleSearch(SearchBase):
    """One response as it comes; with `search.temperature=0` the greedy one."""

    rule: ClassVar[str] = "capo_ray.search.whole:sample"
    method: Literal["sample"] = "sample"


class MajoritySearch(_Several):
    """The commonest answer of several responses (self-consistency, 2203.11171); ties go to the one drawn first."""

    rule: ClassVar[str] = "capo_ray.search.whole:majority"
    method: Literal["majority"] = "majority"
    num_samples: int = Field(8, ge=2)
    """Responses (n)."""


class BestOfNSearch(_Several):
    """The response with the fewest flagged steps; ties go to the likeliest (our choice)."""

    rule: ClassVar[str] = "capo_ray.search.whole:best_of_n"
    asks_critic: ClassVar[bool] = True
    method: Literal["best_of_n"] = "best_of_n"
    num_samples: int = Field(8, ge=2)
    """Responses (n)."""
    vote: Votes = "average"
    """average: the share of `critic.num_votes` votes that flag a step; greedy: one vote at temperature 0."""


class NavigatorSearch(_Several):
    """Greedy search over steps with backtracking, each step judged before the next is drawn (2310.10080)."""

    rule: ClassVar[str] = "capo_ray.search.navigator:navigate"
    asks_critic: ClassVar[bool] = True
    draws_steps: ClassVar[bool] = True
    method: Literal["navigator"] = "navigator"
    breadth: int = Field(4, ge=1)
    """Most draws of a step before the one above it is taken back."""
    budget: int = Field(64, ge=1)
    """Most steps of a problem that are judged; then the response is finished greedily. About 8 times the steps that a
    response has is a good value (our choice)."""
    shows: Literal["auto", "steps", "whole"] = "auto"
    """What the critic is shown of a response under way: the steps so far, or these and the rest as the policy would
    write it greedily, for critics that were taught on whole solutions. auto: whole with `critic.rubric=compact`, the
    form of the shipped critic; steps with any other."""
    vote: Votes = "average"
    """As of search=best_of_n. A step that no vote flags is positive, one that less than half do is neutral, others are
    negative; with `greedy` there are no neutral ones but those whose verdict cannot be read."""


SEARCHES = Family(
    "search", "method", SearchBase, "capo_ray.searches", (NavigatorSearch, BestOfNSearch, MajoritySearch, SampleSearch)
)
SearchConfig: TypeAlias = Annotated[SearchBase, SEARCHES]
"""The section of any search, told by `method`."""
