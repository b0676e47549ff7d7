"""EAPO and its worlds: quotes found exactly, credited apart by hand-made numbers, and asked for as a run asks."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from capo_ray.cli.compose import compose_train
from capo_ray.cli.schema import ConfigError
from capo_ray.config import CREDIT_METHODS
from capo_ray.config.credit import TokenRewards
from capo_ray.config.data import DataConfig
from capo_ray.config.steps import EvidenceSteps
from capo_ray.credit import EvidenceError, assign_credit, audit
from capo_ray.evidence.offline import credit_of_line
from capo_ray.flow import GroupWay
from capo_ray.learners.reward_batch import to_batch, to_lesson
from capo_ray.metrics.transcripts import group_line
from capo_ray.problems import build_problems
from capo_ray.problems.haystack import with_context
from capo_ray.protocols import RunFailed, Sampling
from capo_ray.steps import split_text
from capo_ray.steps.quotes import needed, quote, quoted, read_context
from capo_ray.types import Completion, Group, Problem
from tests.credit_groups import Member, group
from tests.fakes import FakeEngine, completion, fake_parts

A, B, BOTH = (quote(("a", "b"), numbers) for numbers in ((1,), (2,), (1, 2)))
GSM8K = Path(__file__).parent / "data" / "gsm8k"


def test_a_context_stands_in_its_question_and_quotes_are_found_word_for_word() -> None:
    sentences, rest = read_context("[1] Ann has 3 pears.\n[2] Bob sings.\n[4] no more\nHow many?")
    assert sentences == ("Ann has 3 pears.", "Bob sings.") and rest == "[4] no more\nHow many?"
    assert read_context("How many?") == ((), "How many?")
    both = quote(sentences, (2, 1))
    assert both == "<evidence>[2] Bob sings.\n[1] Ann has 3 pears.</evidence>\n\n"
    assert quoted(f"{both}3\n\n\\boxed{{3}}", sentences) == (2, 1)
    assert quoted("<evidence>\n [2] Bob sings.\n[2] Bob sings.\n</evidence>", sentences) == (2,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<evidence></evidence>",
        "<evidence>[1] Bob sings.</evidence>",  # the number of another
        "<evidence>[2] Bob sings</evidence>",
        "<evidence>[3] Bob sings.</evidence>",
        "<evidence>[0] Bob sings.</evidence>",
        "<evidence>[2] Bob sings.\nso</evidence>",
        "<evidence>[2] Bob sings.</evidence><evidence>[2] Bob sings.</evidence>",
        "</evidence>[2] Bob sings.<evidence>",
    ],
)
def test_what_is_no_block_of_the_contexts_sentences_quotes_nothing(text: str) -> None:
    assert quoted(text, ("Ann has 3 pears.", "Bob sings.")) is None


def test_the_evidence_is_the_first_step_and_the_rest_is_cut_at_blank_lines() -> None:
    cut = EvidenceSteps()
    assert split_text("so\n\n<evidence>[1] a\n\n[2] b</evidence>\n\n3\n\n4", cut) == (
        "so\n\n<evidence>[1] a\n\n[2] b</evidence>\n\n",
        "3\n\n",
        "4",
    )
    assert split_text("3\n\n4", cut) == ("3\n\n", "4")
    assert split_text("<evidence>[1] a</evidence>\n", cut) == ("<evidence>[1] a</evidence>\n",)
    assert split_text("<evidence>[1] a\n\n3", cut) == ("<evidence>[1] a\n\n", "3")


def test_eapo_by_hand() -> None:
    # z of outcomes 1, 0: +1, -1; of e 0.8, 0.4: +1, -1. Only the first step has half of the second.
    made = group(Member(1, [2, 3], evidence_score=0.8, text=A), Member(0, [1, 2], evidence_score=0.4, text=B))
    credit = assign_credit(made, CREDIT_METHODS["eapo"](w_format=0))
    assert credit.advantages == ((1.5, 1.5, 1.0, 1.0, 1.0), (-1.5, -1.0, -1.0))
    assert credit.token_rewards[0] == pytest.approx((1.4, 1.4, 1.0, 1.0, 1.0))
    # The better quotes are the wrong answer's: e 0.25, 0.75.
    made = group(Member(1, [1, 1], evidence_score=0.25, text=A), Member(0, [1, 1], evidence_score=0.75, text=B))
    assert assign_credit(made, CREDIT_METHODS["eapo"](w_format=0)).advantages == ((0.5, 1.0), (-0.5, -1.0))
    assert assign_credit(made, CREDIT_METHODS["eapo"](w_evidence=0, w_format=0)).advantages == (
        (1.0, 1.0),
        (-1.0, -1.0),
    )


def test_eapo_holds_worthless_what_is_not_in_format_and_counts_no_invalid_member() -> None:
    # Rewards 1 + 1/2, 1: +1, -1. e f: 1, 0: +1, -1, although the second's score is as high. The third is in no mean.
    lucky = Member(1, [1, 1], evidence_score=1.0)
    invalid = Member(None, [1], evidence_score=0.5, text=A)
    made = group(Member(1, [1, 1], evidence_score=1.0, text=A), lucky, invalid)
    credit = assign_credit(made, CREDIT_METHODS["eapo"](w_format=0.5))
    assert credit.advantages == ((1.5, 1.0), (-1.5, -1.0), (0.0,)) and credit.included == (True, True, False)
    # Scores that differ by the rounding of a sure answer do not differ.
    sure = [Member(1, [1, 1], evidence_score=e, text=A) for e in (1.0, 1.0 - 1e-6)]
    assert not assign_credit(group(*sure), CREDIT_METHODS["eapo"]()).has_signal


def test_eapo_asks_critics_whether_the_block_is_wrong() -> None:
    # e: 1 of 2 valid votes flags the block: 1/2; none: 1; below the quorum: in no mean. z of 1/2, 1: -1, +1.
    members = [
        Member(1, [1, 1], flags=[[0], [1], None], text=A),
        Member(1, [1, 1], flags=[[1], [1]], text=A),
        Member(1, [1, 1], flags=[None, [0]], text=A),
    ]
    config = CREDIT_METHODS["eapo"](scorer="critic", quorum=2)
    assert [request.name for request in config.evidence()] == ["critiques"]
    credit = assign_credit(group(*members), config)
    assert credit.advantages == ((-0.5, 0.0), (0.5, 0.0), (0.0, 0.0))
    assert credit.step_weights == ((0.5, 0.0), (0.0, 0.0), (0.0, 0.0)) and credit.valid_critiques == (2, 2, 1)


def test_eapo_asks_a_reward_model_what_the_block_is_worth() -> None:
    # e: sigmoid of the sum over the first step, ln 2 + ln 2: 4/5, and 0: 1/2, whatever the reasoning is given.
    members = [
        Member(1, [2, 3], evidence_score=0.1, token_rewards=[math.log(2), math.log(2), 9, 9, 9], text=A),
        Member(0, [1, 2], evidence_score=0.9, token_rewards=[0, 9, 9], text=B),
    ]
    config = CREDIT_METHODS["eapo"](scorer="learned", w_format=0)
    assert [request.name for request in config.evidence()] == ["evidence_score", "token_rewards"]
    credit = assign_credit(group(*members), config)
    assert credit.advantages == ((1.5, 1.5, 1.0, 1.0, 1.0), (-1.5, -1.0, -1.0))
    assert credit.token_rewards[0] == pytest.approx((1.4, 1.4, 1.0, 1.0, 1.0))
    with pytest.raises(EvidenceError, match="credit=eapo reads token_rewards: expected 1 numbers, got 0"):
        assign_credit(group(Member(1, [1], evidence_score=0.1, text=A), Member(0, [1], text=B)), config)


def test_its_reward_model_learns_from_the_quotes_of_responses_whose_outcome_and_evidence_agree() -> None:
    # The mean of the valid scores is .65: right and above, wrong and below agree.
    made = group(
        Member(1, [2, 3], evidence_score=0.9),
        Member(1, [1, 1], evidence_score=0.5),
        Member(0, [3], evidence_score=0.4),
        Member(0, [1, 1], evidence_score=0.8),
        Member(None, [1], evidence_score=1.0),
    )
    lesson = to_lesson([made], TokenRewards("eapo"))
    assert [(label.key.sample, label.outcome, label.num_steps) for label in lesson.labels] == [
        (0, 1, 1),
        (2, 0, 1),
    ]
    assert [t.response.token_ids.tolist() for t in lesson.trajectories] == [[0, 1], [0, 1, 2]]
    assert [t.response.text for t in lesson.trajectories] == ["xx", "xxx"]
    assert lesson.figures == {"reward_model/consistent_frac": 2 / 4}
    nobody = to_lesson(
        [group(Member(1, [1], evidence_score=0.5), Member(0, [1], evidence_score=0.5))], TokenRewards("eapo")
    )
    assert nobody.labels == () and to_batch(nobody.trajectories, num_ranks=1, microbatch_tokens=9).column(0) == ()
    assert len(to_lesson([made], TokenRewards("prime")).labels) == 4


def test_eapo_refuses_a_question_without_a_context_and_a_member_without_a_score() -> None:
    made = group(Member(1, [1], text=A), Member(0, [1], text=A))
    with pytest.raises(EvidenceError, match="credit=eapo reads evidence_score: expected a finite number, got None"):
        assign_credit(made, CREDIT_METHODS["eapo"]())
    with pytest.raises(EvidenceError, match="reads the numbered sentences before a question"):
        assign_credit(Group(0, Problem("p", "1+1", "2"), made.members), CREDIT_METHODS["eapo"]())


def test_the_audit_tells_how_well_was_quoted_and_who_was_lucky() -> None:
    made = group(
        Member(1, [1], text=A), Member(1, [1], text=BOTH), Member(1, [1], text=B), Member(0, [1]), Member(None, [1])
    )
    credit = assign_credit(made, CREDIT_METHODS["grpo"]())
    assert audit(made, credit)["credit/evidence_format_frac"] == 3 / 4
    assert "credit/evidence_recall_frac" not in audit(made, credit), "nobody knows what is needed"
    problem = Problem("p", made.problem.prompt, "2", f"{A}2")
    figures = audit(Group(0, problem, made.members), credit)
    assert figures["credit/evidence_precision_frac"] == (1 + 1 / 2 + 0) / 3
    assert figures["credit/evidence_recall_frac"] == 2 / 4 and figures["credit/lucky_frac"] == 1 / 3
    assert not [name for name in audit(Group(0, Problem("p", "1+1", "2"), made.members), credit) if "evid" in name]


def test_eapo_is_credited_again_from_a_transcript() -> None:
    members = [Member(1, [1, 1], evidence_score=0.75, text=A), Member(0, [2], evidence_score=0.5, text=B)]
    made = Group(0, Problem("p", group().problem.prompt, "2", f"{A}2"), group(*members).members)
    credit = assign_credit(made, CREDIT_METHODS["eapo"]())
    line = json.loads(json.dumps(group_line(1, made, credit)))
    again = credit_of_line(json.dumps(line), CREDIT_METHODS["eapo"]())
    assert [tuple(one["advantages"]) for one in again["responses"]] == [tuple(row) for row in credit.advantages]
    assert again["audit"]["credit/lucky_frac"] == 0 and again["audit"]["credit/evidence_recall_frac"] == 0.5
    for score in (1.5, True, "much"):
        line["responses"][1]["evidence_score"] = score
        with pytest.raises(ValueError, match=r"responses\[1\].evidence_score: expected a number from 0 to 1"):
            credit_of_line(json.dumps(line), CREDIT_METHODS["eapo"]())
    del line["responses"][1]["evidence_score"]
    with pytest.raises(ValueError, match=r"evidence_score: expected what credit=eapo reads"):
        credit_of_line(json.dumps(line), CREDIT_METHODS["eapo"]())


class Quoting(FakeEngine):
    """Every other response quotes the asked chain, the others the first one; all end right. Scores by length."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = list[str]()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        sentences, rest = read_context("".join(map(chr, prompt_ids)))
        gold = next(n for n, s in enumerate(sentences, 1) if s[0] == rest[1])
        texts = [f"{quote(sentences, (gold if i % 2 else 1,))}so\n\n7" for i in range(sampling.n - 1)]
        return tuple(completion(text, self.version) for text in [*texts, "7"])

    async def score(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        self.asked += ["".join(map(chr, ids)) for ids in token_ids]
        return tuple((-len(ids) / 100.0, -len(ids) / 100.0) for ids in token_ids)


def test_the_answer_is_scored_behind_the_quoted_sentences_alone_and_equal_quotes_once(tmp_path: Path) -> None:
    config = compose_train(["credit=eapo", "rollout.group_size=5", "credit.answer_cue==", "credit.w_format=0"])
    engine = Quoting()
    problem = with_context(Problem("p", "z, how much?", "7"), ["q:1+1", "z:3+4"])
    walked = asyncio.run(GroupWay(fake_parts(tmp_path, config, engine=engine)).walk(0, problem, 0, 0.0))
    shown = [text.partition("\n\nz, how much?") for text in engine.asked]
    assert [before[-9:] for before, _, _ in shown] == ["[1] q:1+1", "[2] z:3+4"]
    assert all(text.endswith("=7") and text.count("[") == 1 for text in engine.asked)
    assert "copy the sentences" in problem.prompt and not any("copy" in after for _, _, after in shown)
    worth = math.exp(-len(engine.asked[0]) / 100.0)
    scores = [m.evidence.more["evidence_score"] for m in walked.group.members]
    assert scores == [worth, worth, worth, worth, 0.0]
    # All are right, so only the last, which quotes nothing, differs: z of four equal and 0 is 1/2 and -2.
    assert walked.credit.advantages[0][0] == pytest.approx(0.25) and walked.credit.advantages[0][-1] == 0.0
    assert walked.credit.advantages[4][0] == pytest.approx(-1.0)


def test_chains_in_a_haystack_are_the_same_again_and_know_what_is_needed() -> None:
    config = compose_train(["credit=eapo", "data.haystack_size=3", "data.chain_steps=2"])
    problems, again = build_problems(config.data, 5), build_problems(config.data, 5)
    drawn = [problems.train.next_problem() for _ in range(20)]
    assert drawn == [again.train.next_problem() for _ in range(20)]
    again.train.restore(json.loads(json.dumps(problems.train.state())))
    assert again.train.next_problem() == problems.train.next_problem()
    held = {line for p in problems.held_out(50) for line in read_context(p.prompt)[0]}
    for problem in drawn:
        sentences, rest = read_context(problem.prompt)
        (number,) = needed(problem.prompt, problem.solution)
        name, chain = sentences[number - 1].split(":")
        assert (
            len(sentences) == 3
            and rest == f"?{name}"
            and not {s.split(":")[1] for s in sentences} & {line.split(":")[1] for line in held}
        )
        a, first, b, second, c = chain
        assert int(problem.answer) == eval(f"(({a}{first}{b}){second}{c}) % 10")


def test_gsm8k_in_a_haystack_keeps_a_problems_sentences_in_order_and_asks_its_last() -> None:
    config = DataConfig(kind="haystack", path=str(GSM8K / "train.jsonl"), haystack_size=4)
    plain = build_problems(DataConfig(kind="files", path=config.path), 0)
    hidden = build_problems(config, 0)
    known = {p.id: p for p in [*plain.held_out(99), *(plain.train.next_problem() for _ in range(200))]}
    for problem in [*hidden.held_out(99), *(hidden.train.next_problem() for _ in range(50))]:
        sentences, rest = read_context(problem.prompt)
        own = [sentences[n - 1] for n in needed(problem.prompt, problem.solution)]
        question = " ".join(known[problem.id].prompt.split())
        assert own and question.startswith(" ".join(own)) and len(sentences) > len(own)
        assert question.removeprefix(" ".join(own)).strip() == " ".join(rest.split("\n\nFirst")[0].split())
        assert problem.answer == known[problem.id].answer


def test_rows_with_a_context_of_their_own_become_questions_with_it(tmp_path: Path) -> None:
    rows = [
        {"question": "How many?", "answer": "3", "told": ["Ann has\n3 pears.", "Bob sings."], "gold": [1]},
        {"question": "Who sings?", "answer": "Bob", "told": "Ann has 3 pears. Bob sings.", "gold": [2]},
        {"question": "Bad", "answer": "1", "told": ["x"], "gold": [2]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    words = ["credit=eapo", "data=files", f"data.path={path}", "data.eval_frac=0", "data.context_column=told"]
    made = build_problems(compose_train([*words, "data.evidence_column=gold"]).data, 0)
    assert "expected numbers from 1 to 1 in 'gold', got '[2]'" in made.bad_rows[0]
    for problem in (made.train.next_problem() for _ in range(2)):
        sentences, rest = read_context(problem.prompt)
        assert sentences == ("Ann has 3 pears.", "Bob sings.") and "copy the sentences above" in rest
        assert needed(problem.prompt, problem.solution) == ((1,) if problem.answer == "3" else (2,))
    with pytest.raises(RunFailed, match="expected a column 'no'"):
        build_problems(compose_train([*words[:-1], "data.context_column=no", "data.max_bad_rows=0"]).data, 0)


@pytest.mark.parametrize(
    "words", ["credit=eapo data=chains", "credit=eapo steps=blank_line", "credit=eapo environment=grid"]
)
def test_eapo_without_a_context_or_a_step_that_quotes_is_refused(words: str) -> None:
    with pytest.raises(ConfigError, match="credit=eapo reads what is quoted of a context, so there must be"):
        compose_train(words.split())
