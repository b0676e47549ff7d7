"""The critic tier's figures of one update, from the groups that it trained: what the votes said, cost and delayed.

the learner waits for its batch         |-----------------------------------------|
the last group of the batch ends                                                  x
it would have ended without critiques                               x
exposed: waiting that critiques caused                              |-- exposed --|
"""

from __future__ import annotations

from collections.abc import Sequence

from capo_ray.config import TrainConfig
from capo_ray.evidence.critiques import votes_wanted
from capo_ray.flow.figures import agreement, mean
from capo_ray.flow.group import CreditedGroup
from capo_ray.types import Judged
from capo_ray.votes import majority_word


def judge_figures(
    groups: Sequence[CreditedGroup], config: TrainConfig, *, waited_s: float, step_s: float
) -> dict[str, float]:
    """`critic/…` of one update, which took `step_s`, of which it waited `waited_s` for its batch.

    Nothing where none of its responses was judged.
    """
    judged = [m for g in groups for m in g.group.members if m.evidence.critiques]
    if not judged:
        return {}
    exposed = exposed_s(groups, waited_s)
    figures = _vote_figures(judged, votes_wanted(config)) | _cost_figures(judged)
    figures |= _gap_figures(judged, config.critic.max_verifier_gap)
    figures |= {"critic/exposed_s": exposed, "critic/step_time_frac": exposed / step_s if step_s > 0 else 0.0}
    if shares := [share for group in groups for share in agreement(group)]:
        figures["critic/agreement_frac"] = mean(shares)
    return figures


def exposed_s(groups: Sequence[CreditedGroup], waited_s: float) -> float:
    """The seconds of `waited_s` that the batch of these groups came later for being judged."""
    ended = max(g.ended_at for g in groups)
    unjudged = max(g.ended_at - g.stage_s.get("critique", 0.0) for g in groups)
    return min(waited_s, ended - unjudged)


def _vote_figures(judged: Sequence[Judged], num_votes: int) -> dict[str, float]:
    votes = [c for m in judged for c in m.evidence.critiques]
    return {
        "critic/votes_per_response": len(votes) / len(judged),
        "critic/valid_votes_per_response": sum(c.valid for c in votes) / len(judged),
        "critic/invalid_frac": mean([not c.valid for c in votes]),
        "critic/abstained_frac": mean([not any(c.valid for c in m.evidence.critiques) for m in judged]),
        "critic/early_stopped_frac": mean([_ended_early(m, num_votes) for m in judged]),
        "critic/cache_hit_frac": mean([c.provenance.cached for c in votes]),
    }


def _ended_early(member: Judged, num_votes: int) -> bool:
    """Whether fewer votes than wanted were taken, and not for want of an answer."""
    critiques = member.evidence.critiques
    return len(critiques) < num_votes and any(c.valid for c in critiques)


def _cost_figures(judged: Sequence[Judged]) -> dict[str, float]:
    """Of answers made for this run; none where all came out of the store."""
    fresh = [c.provenance for m in judged for c in m.evidence.critiques if not c.provenance.cached and c.text]
    if not fresh:
        return {}
    return {
        "critic/critique_s": mean([p.seconds for p in fresh]),
        "critic/tokens_per_critique": mean([p.output_tokens for p in fresh]),
        "critic/prompt_tokens_per_critique": mean([p.prompt_tokens for p in fresh]),
    }


def _gap_figures(judged: Sequence[Judged], max_gap: float) -> dict[str, float]:
    """How often the critics' majority word on the answer is not the verifier's; none where they say none."""
    pairs = [(majority_word(m.evidence.critiques), bool(m.verdict.reward)) for m in judged]
    words = [(word, right) for word, right in pairs if word is not None]
    if not words:
        return {}
    lenient, strict = mean([w and not v for w, v in words]), mean([v and not w for w, v in words])
    return {
        "critic/verifier_gap_frac": lenient + strict,
        "critic/lenient_gap_frac": lenient,
        "critic/strict_gap_frac": strict,
        "critic/verifier_gap_alarm": float(lenient + strict > max_gap),
    }
