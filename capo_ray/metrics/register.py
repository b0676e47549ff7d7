"""Every figure that a run logs: what it says, its unit, and how the values of several workers become one.

    room/quantity_unit      rollout/reward_mean, critic/restarts_total: the last word is one of `units`

Invariants: a figure has one name, one meaning and one source; docs/metrics.md is made from here, and a test finds every
name of the code here and every name from here in the code. A name that is missing here ends no run: it is averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

Merge = Literal["", "sum", "mean", "max", "min"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure; `merge` is empty where it is measured in one place only."""

    name: str
    meaning: str
    merge: Merge = ""

    @property
    def room(self) -> str:
        return self.name.partition("/")[0]

    @property
    def unit(self) -> str:
        """The last word of the name."""
        return self.name.rpartition("_")[2]


ROOMS = {
    "rollout": "Responses of an update, and the engines that sample them (as of their last ping, within seconds)",
    "weights": "Versions of the weights on their way to the engines (`weights.transport`)",
    "environment": "Replies between the turns of responses, over the run (`environment.kind`)",
    "verifier": "Verdicts of an update, and the workers that check answers since their start",
    "critic": "Critiques of an update, of the run, and of the critic tier",
    "critic_1": "The calculator that votes beside the critic (`critic.with_calculator`)",
    "credit": "What credit did with the groups of an update, as means over groups: shares are of the tokens of valid "
    "responses unless they say otherwise",
    "loss": "The policy's loss in an update; of several passes over a batch, entropy, KL and mismatch are the first's",
    "entropy": "Entropy control (`loss.entropy_control`)",
    "learner": "The learner's work in an update",
    "reward_model": "The reward model's update, by the weights before it",
    "sft": "Supervised training (`capo-ray sft`), whose rows have `loss` (the mean of -log p over what is learnt), "
    "`learner` and `time/update_s` as well",
    "stream": "How old the trained tokens are, and what became of groups",
    "queue": "The slot buffer at the end of an update",
    "time": "Where seconds go: of groups as means over those of the update, the rest as they passed",
    "eval": "Held-out problems",
    "curriculum": "Problems met before (`data.curriculum`)",
    "metrics": "The trackers themselves",
}


def _pool(role: str) -> tuple[Metric, ...]:
    return (
        Metric(f"{role}/in_flight_calls", "Calls that workers are at."),
        Metric(f"{role}/ready_workers", "Workers that take calls."),
        Metric(f"{role}/restarts_total", "Workers that were replaced."),
        Metric(f"{role}/calls_resent_total", "Calls that a lost worker had and another one got."),
    )


def _tally(room: str) -> tuple[Metric, ...]:
    return (
        Metric(f"{room}/groups_total", "Groups asked about.", "sum"),
        Metric(f"{room}/responses_total", "Responses asked about.", "sum"),
        Metric(f"{room}/duplicates_total", "Responses judged with an equal sibling.", "sum"),
        Metric(f"{room}/votes_total", "Votes that came back, out of the store or not.", "sum"),
        Metric(f"{room}/invalid_total", "Votes that could not be read or never came.", "sum"),
        Metric(f"{room}/failed_total", "Votes that never came.", "sum"),
        Metric(f"{room}/cache_hits_total", "Votes out of the store.", "sum"),
        Metric(f"{room}/early_stopped_total", "Responses whose vote was decided before all had voted.", "sum"),
        Metric(f"{room}/prompt_tokens_total", "Prompt tokens, one prefill for each response.", "sum"),
        Metric(f"{room}/output_tokens_total", "Tokens of answers.", "sum"),
        Metric(f"{room}/store_errors_total", "Reads and writes that the store of critiques failed at.", "sum"),
        Metric(f"{room}/store_damaged_total", "Stored votes that were not what had been written.", "sum"),
    )


METRICS = (
    Metric("rollout/reward_mean", "Reward of the responses with a valid verdict."),
    Metric("rollout/response_tokens_mean", "Tokens of a response."),
    Metric("rollout/steps_mean", "Steps of a response."),
    Metric("rollout/truncated_frac", "Responses cut at `rollout.max_response_tokens`."),
    Metric("rollout/value_tokens_mean", "Tokens sampled for step values, for each response."),
    Metric("rollout/quarantined_total", "Responses left out for numbers that are not finite."),
    *_pool("rollout"),
    Metric("rollout/requests_total", "Requests served.", "sum"),
    Metric("rollout/generated_tokens_total", "Tokens sampled.", "sum"),
    Metric("rollout/prompt_tokens_total", "Prompt tokens.", "sum"),
    Metric("rollout/cached_prompt_tokens_total", "Prompt tokens found in the prefix cache.", "sum"),
    Metric("rollout/running_requests", "Requests being computed.", "sum"),
    Metric("rollout/waiting_requests", "Requests in the engines' queues.", "sum"),
    Metric("rollout/version_updates", "Version of the weights that all engines hold at least.", "min"),
    Metric("rollout/swaps_total", "Weights taken over, summed over engines.", "sum"),
    Metric("rollout/refused_swaps_total", "Weights refused.", "sum"),
    Metric("rollout/swap_s", "Pause of an engine for its last weights.", "mean"),
    Metric("rollout/swap_s_max", "Longest pause of an engine for weights.", "max"),
    Metric("weights/sent_mib", "Size of the last version on its way, once for all engines; not with `host`."),
    Metric("weights/changed_frac", "Weights whose bits changed since the version before; with weights.delta_frac."),
    Metric("weights/fallbacks_total", "Versions that went through host memory because their transport failed."),
    Metric("rollout/busy_s_total", "Seconds that engines computed.", "sum"),
    Metric("rollout/up_s_total", "Seconds that they were there, as of the same pings.", "sum"),
    Metric("rollout/idle_frac", "Their seconds without anything to compute, of those since the row before."),
    Metric("rollout/engine_steps_total", "Steps that engines made.", "sum"),
    Metric("rollout/serving_frac", "Engines that serve.", "mean"),
    Metric("rollout/turns_mean", "Turns of a response, where an environment replies."),
    Metric("rollout/illegal_turns_frac", "Of these, those that were no move, or that the environment failed on."),
    Metric("environment/replies_total", "Replies asked for."),
    Metric("environment/failures_total", "Of these, those that ended in a hang, a crash or a refusal."),
    Metric("environment/process_starts_total", "Processes started in which it runs."),
    Metric("verifier/invalid_frac", "Responses of the update without a valid verdict."),
    *_pool("verifier"),
    Metric("verifier/pairs_total", "Answers compared with a reference.", "sum"),
    Metric("verifier/fast_frac", "Of these, settled without a child process.", "mean"),
    Metric("verifier/cached_frac", "Of these, known from before.", "mean"),
    Metric("verifier/no_answer_frac", "Of these, responses without an answer.", "mean"),
    Metric("verifier/invalid_total", "Of these, without a verdict.", "sum"),
    Metric("verifier/checks_total", "Comparisons by child processes.", "sum"),
    Metric("verifier/timeouts_total", "Comparisons ended at `verifier.timeout_s`.", "sum"),
    Metric("verifier/late_total", "Comparisons that took longer than allowed and ended by themselves.", "sum"),
    Metric("verifier/suspects_total", "Pairs moved to the lane of slow ones.", "sum"),
    Metric("verifier/crashes_total", "Checkers that ended in a comparison.", "sum"),
    Metric("verifier/refused_total", "Answers not computed, for what they would cost.", "sum"),
    Metric("verifier/open_lanes", "Lanes with a child process.", "sum"),
    Metric("verifier/process_starts_total", "Child processes started.", "sum"),
    Metric("verifier/checker_starts_total", "Checkers forked by them.", "sum"),
    Metric("verifier/audit_events_total", "Attempts to leave the process; 0 in health.", "sum"),
    Metric("verifier/slowest_check_s", "The slowest comparison so far.", "max"),
    Metric("verifier/peak_mib", "The most memory that a checker held.", "max"),
    Metric("verifier/cpu_s_total", "Processor time of the children.", "sum"),
    Metric("verifier/busy_s_total", "Seconds that children had something to do.", "sum"),
    Metric("verifier/up_s_total", "Seconds that they were there, as of the same pings.", "sum"),
    Metric("verifier/idle_frac", "Their seconds without anything to do, of those since the row before."),
    Metric("verifier/queued_pairs", "Pairs that wait for a child.", "sum"),
    Metric("critic/votes_per_response", "Votes that came back."),
    Metric("critic/valid_votes_per_response", "Votes that could be read."),
    Metric("critic/agreement_frac", "Pairs of valid votes that say the same of a step."),
    Metric("critic/invalid_frac", "Votes that could not be read or never came."),
    Metric("critic/abstained_frac", "Judged responses without any valid vote."),
    Metric("critic/early_stopped_frac", "Judged responses whose vote was decided before all had voted."),
    Metric("critic/cache_hit_frac", "Votes out of the store."),
    Metric("critic/critique_s", "Seconds for an answer; of answers made for this run."),
    Metric("critic/tokens_per_critique", "Tokens of an answer; of answers made for this run."),
    Metric("critic/prompt_tokens_per_critique", "Tokens of its prompt; of answers made for this run."),
    Metric("critic/exposed_s", "Seconds that the batch came later for being judged, as far as the learner waited."),
    Metric("critic/step_time_frac", "`exposed_s` over the update's seconds (wait, update, publish)."),
    Metric("critic/verifier_gap_frac", "Responses on which the critics' majority word is not the verifier's."),
    Metric("critic/lenient_gap_frac", "Of these, the critics say right."),
    Metric("critic/strict_gap_frac", "Of these, the critics say wrong."),
    Metric("critic/verifier_gap_alarm", "Whether the gap is above `critic.max_verifier_gap`."),
    Metric("critic/precision_frac", "Steps that a vote flagged which are wrong, where the truth of steps is known."),
    Metric("critic/recall_frac", "Wrong steps that a vote flagged, likewise."),
    Metric("critic/voted_precision_frac", "The same of what the vote rule flags."),
    Metric("critic/voted_recall_frac", "The same of what the vote rule flags."),
    Metric("critic/skipped_frac", "Responses of the run that no critic was asked about."),
    Metric("critic/outcome_only_frac", "Of the last 50 judged groups, those with a response below the quorum."),
    Metric("critic/outages_total", "Times that no critic answered."),
    Metric("critic/outage_s_total", "Seconds of that."),
    Metric("critic/waiting_groups", "Groups that wait for critics to come back."),
    Metric("critic/lost_groups_total", "Groups given up with a response that no critic answered."),
    *_pool("critic"),
    Metric("critic/retried_groups_total", "Groups sent to a second worker after the first was late."),
    Metric("critic/hedged_groups_total", "Groups sent to a second worker beside the first (`critic.hedge_after_s`)."),
    *_tally("critic"),
    Metric("critic/retries_total", "Requests to an endpoint sent again, hedges included.", "sum"),
    Metric("critic/breaker_opened_total", "Times that an endpoint was left alone after failures in a row.", "sum"),
    Metric("critic/running_requests", "Requests that the critics' engines compute.", "sum"),
    Metric("critic/waiting_requests", "Requests in the critics' engines' queues.", "sum"),
    Metric("critic/engine_busy_s_total", "Seconds that the critics' engines computed.", "sum"),
    Metric("critic/engine_up_s_total", "Seconds that they were there, as of the same pings.", "sum"),
    Metric("critic/idle_frac", "Their seconds without anything to compute, of those since the row before."),
    Metric("critic/prefix_hit_tokens_total", "Prompt tokens found in the prefix cache.", "sum"),
    Metric("critic/canary_recall_frac", "Wrong steps of the canaries that were found.", "mean"),
    Metric("critic/canary_precision_frac", "Flagged steps of the canaries that are wrong.", "mean"),
    Metric("critic/canary_invalid_frac", "Votes on the canaries that could not be read.", "mean"),
    Metric("critic/canary_alarm", "Whether a worker's canaries are below `critic.canary_min_recall`.", "max"),
    *_tally("critic_1"),
    Metric("credit/sign_flip_frac", "Tokens whose advantage goes against the outcome."),
    Metric("credit/flagged_frac", "Weight of steps held to be wrong."),
    Metric("credit/advantage_abs_mean", "Size of a token's advantage."),
    Metric("credit/penalty_mass_frac", "Share of all |advantage| that is blame on flagged tokens."),
    Metric("credit/positive_on_wrong_frac", "Of the tokens of wrong responses, those that are raised."),
    Metric("credit/length_corr", "Mean advantage of a response against its length; above 0, verbosity is taught."),
    Metric("credit/num_steps_corr", "Mean advantage of a response against its number of steps."),
    Metric("credit/outcome_signal_frac", "Groups whose outcomes differ."),
    Metric("credit/saved_by_process_frac", "Groups with credit although their outcomes do not differ."),
    Metric("credit/imitated_frac", "Valid responses with an imitation term."),
    Metric("credit/valid_critiques_frac", "Critiques that could be read."),
    Metric("credit/no_valid_critique_frac", "Critiqued responses without a readable critique."),
    Metric("credit/invalid_frac", "Responses without a valid verdict."),
    Metric("credit/evidence_format_frac", "Responses that quote sentences of the context and nothing else."),
    Metric("credit/evidence_precision_frac", "Of the sentences that these quote, those that are needed."),
    Metric("credit/evidence_recall_frac", "Of the sentences that are needed, those that a response quotes."),
    Metric("credit/lucky_frac", "Of right responses, those that do not quote all that is needed."),
    Metric("credit/sampler_entropy_nats", "Surprisal of a sampled token, on average."),
    Metric("loss/objective_mean", "What is minimised: the surrogate and all terms."),
    Metric("loss/surrogate_mean", "The surrogate alone."),
    Metric("loss/clip_frac", "Trained tokens whose ratio was clipped."),
    Metric("loss/ratio_mean", "Policy probability over the sampler's, of a token."),
    Metric("loss/ratio_max", "The largest of these."),
    Metric("loss/entropy_nats", "The policy's entropy at a token, at the sampling temperature."),
    Metric("loss/mismatch_kl_nats", "KL(sampler || learner) of a token (k3), before the first move."),
    Metric("loss/mismatch_max_nats", "The largest difference of the two logprobs."),
    Metric("loss/mismatch_alarm", "Whether the KL is above `loss.max_mismatch_nats`."),
    Metric("loss/kl_nats", "KL to the reference of a token."),
    Metric("loss/kl_last_pass_nats", "The same in the last pass over the batch."),
    Metric("loss/covariance_frac", "Share of tokens picked by covariance control (`loss.covariance`)."),
    Metric("loss/skipped_moves_total", "Moves not made, for a loss or gradient that is not finite."),
    Metric("entropy/bonus_coef", "What the batch's entropy is multiplied by."),
    Metric("entropy/target_nats", "The entropy that is steered to."),
    Metric("entropy/weight_mean", "Weight of a token's entropy."),
    Metric("entropy/weighted_frac", "Tokens with such a weight."),
    Metric("learner/idle_frac", "Share of the update's seconds (wait, update, publish) spent waiting for its batch."),
    Metric("learner/grad_norm", "Gradient before clipping; the mean over passes."),
    Metric("learner/learning_rate", "In the last pass."),
    Metric("learner/loss_tokens", "Tokens that the loss counts."),
    Metric("learner/padded_tokens", "Tokens computed: each shared prompt once, padding included."),
    Metric("learner/update_microbatches", "Forward passes of a rank for a pass over the batch."),
    Metric("reward_model/loss_mean", "Its loss."),
    Metric("reward_model/grad_norm", "Its gradient before clipping."),
    Metric("reward_model/accuracy_frac", "Pairs of a right and a wrong sibling that it ranks rightly."),
    Metric("reward_model/consistent_frac", "Responses whose outcome and evidence agree (credit.scorer=learned)."),
    Metric("reward_model/accuracy_alarm", "Whether it fell by `reward_model.stop_drop`: trained no further."),
    Metric("reward_model/skipped_moves_total", "Moves not made, for a loss or gradient that is not finite."),
    Metric("sft/examples_total", "Examples trained."),
    Metric("sft/too_long_total", "Examples left out for `max_tokens`."),
    Metric("stream/age_max", "Age of the oldest trained token, in versions."),
    Metric("stream/age_mean", "Age of a trained token, in versions."),
    Metric("stream/masked_frac", "Tokens older than `stream.max_age`, which are not trained."),
    Metric("stream/stale_responses_frac", "Responses all of whose tokens are too old."),
    Metric("stream/stale_groups_total", "Groups dropped in the buffer for their age."),
    Metric("stream/creditless_groups_total", "Groups without any credit."),
    Metric("stream/trained_length_ratio", "Mean length of responses as trained over that of all; 1 without bias."),
    Metric("queue/in_flight_groups", "Groups under way or waiting to be trained."),
    Metric("queue/finished_groups", "Groups waiting to be trained."),
    Metric("time/rollout_s", "Generating a group."),
    Metric("time/verify_s", "Verifying it."),
    Metric("time/evidence_s", "Gathering all its evidence."),
    Metric("time/critique_s", "Of that, critiques."),
    Metric("time/credit_s", "Assigning credit."),
    Metric("time/wait_for_batch_s", "The learner waited for its batch."),
    Metric("time/update_s", "The learner's update."),
    Metric("time/reward_model_s", "The reward model's update, beside the learner's."),
    Metric("time/publish_s", "Until all engines hold the new weights."),
    Metric("eval/accuracy_frac", "Mean over problems of right answers among valid verdicts, of sampled responses."),
    Metric("eval/accuracy_low_frac", "Lower end of its bootstrap 95% interval over problems."),
    Metric("eval/accuracy_high_frac", "Upper end of it."),
    Metric("eval/greedy_accuracy_frac", "Right greedy answers."),
    Metric("eval/response_tokens_mean", "Tokens of a sampled response."),
    Metric("eval/truncated_frac", "Sampled responses cut at `rollout.max_response_tokens`."),
    Metric("eval/invalid_responses", "Responses without a verdict, sampled and greedy."),
    Metric("eval/failed_requests", "Requests without a response, sampled and greedy."),
    Metric("eval/too_long_problems", "Held-out problems that do not fit the context: they are in no accuracy."),
    Metric("curriculum/known_problems", "Problems that are remembered."),
    Metric("curriculum/pass_rate_mean", "Running pass rate of these."),
    Metric("curriculum/repeated_frac", "Draws of a problem that had been met."),
    Metric("metrics/dropped_trackers", "Trackers that failed and were left behind."),
)
_MERGES: dict[str, Callable[[Sequence[float]], float]] = {"sum": sum, "max": max, "min": min}
REGISTER = {metric.name: metric for metric in METRICS}


def merge(name: str, values: Sequence[float]) -> float:
    """The one value of a figure that several workers tell."""
    how = REGISTER[name].merge if name in REGISTER else ""
    return _MERGES.get(how, fmean)(values)


def unregistered(names: Iterable[str]) -> list[str]:
    """Those of the names that are no figure of a run."""
    return sorted(set(names) - REGISTER.keys())
