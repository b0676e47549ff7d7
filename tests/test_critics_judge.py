"""The judge: k votes, one prefill, exact early stop, deadlines, duplicates, the store."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from capo_ray.config.credit import CliffConfig, Critiques
from capo_ray.config.sections import CriticConfig
from capo_ray.credit.first_error import weigh_steps
from capo_ray.critics import CritiqueStore, Judge
from capo_ray.protocols import JudgeRequest, PartLost, Sampling
from capo_ray.types import Critique, Problem
from tests.credit_groups import Member, judged
from tests.fake_critic import LetterTokenizer, ScriptedEngine

PROBLEM = Problem("p", "3+4*2", "4", solution="3+4=7")
STEPS = ("3+4=8\n\n", "8*2=6")
CLEAN = "Judgement: Yes\n<incorrect_steps></incorrect_steps>"
FIRST = "Judgement: No\n<incorrect_steps>0</incorrect_steps>"
LAST = "Judgement: No\n<incorrect_steps>1</incorrect_steps>"


def make_judge(
    engine: ScriptedEngine,
    vote: str = "majority",
    store: CritiqueStore | None = None,
    quorum: int = 1,
    **knobs: object,
) -> Judge:
    config = CriticConfig(**{"max_model_len": 20_000, "rubric": "compact", **knobs})  # type: ignore[arg-type]
    return Judge(engine, LetterTokenizer(), config, vote=vote, quorum=quorum, model_revision="m@1", store=store)


def ask(judge: Judge, *responses: Sequence[str], k: int = 4) -> tuple[tuple[Critique, ...], ...]:
    return asyncio.run(judge.critique(PROBLEM, [JudgeRequest(tuple(r)) for r in responses], k))


def test_the_votes_of_a_response_share_one_prefill() -> None:
    engine = ScriptedEngine(lambda p, s: [(0.0, FIRST), (0.0, CLEAN), (0.0, FIRST), (0.0, "?")])
    (votes,) = ask(make_judge(engine, early_stop=False), STEPS)
    assert [s.n for s in engine.samplings] == [4]
    assert sorted(v.text for v in votes) == sorted([FIRST, CLEAN, FIRST, "?"])
    assert [v.provenance.vote_index for v in votes] == [0, 1, 2, 3]
    assert sum(v.valid for v in votes) == 3


def test_vote_order_does_not_depend_on_which_vote_came_first() -> None:
    texts = [FIRST, CLEAN, "a " + CLEAN, "b " + FIRST]
    one = ScriptedEngine(lambda p, s: [(i / 100, t) for i, t in enumerate(texts)])
    two = ScriptedEngine(lambda p, s: [((3 - i) / 100, t) for i, t in enumerate(texts)])
    read = [[v.text for v in ask(make_judge(e, early_stop=False), STEPS)[0]] for e in (one, two)]
    assert read[0] == read[1]


def test_the_rest_is_aborted_once_the_vote_cannot_change() -> None:
    engine = ScriptedEngine(lambda p, s: [(0.0, FIRST), (0.001, FIRST), (0.002, FIRST), (60.0, CLEAN)])
    judge = make_judge(engine)
    (votes,) = ask(judge, STEPS)
    assert len(votes) == 3  # three of four agree on both steps: the fourth is not waited for
    assert engine.closed == 1
    assert judge.stats()["critic/early_stopped_total"] == 1


def test_greedy_asks_once_and_without_temperature() -> None:
    engine = ScriptedEngine(lambda p, s: [(0.0, FIRST)])
    (votes,) = ask(make_judge(engine, vote="greedy"), STEPS)
    assert len(votes) == 1
    assert (engine.samplings[0].n, engine.samplings[0].temperature) == (1, 0.0)


def test_identical_responses_are_judged_once() -> None:
    engine = ScriptedEngine(lambda p, s: [(0.0, FIRST)] * 4)
    judge = make_judge(engine)
    results = ask(judge, STEPS, ("3+4=7", "7*2=4"), STEPS, STEPS)
    assert len(engine.prompts) == 2
    assert results[0] == results[2] == results[3]
    assert judge.stats()["critic/duplicates_total"] == 2


def test_at_the_deadline_what_is_in_counts_and_the_rest_is_invalid() -> None:
    engine = ScriptedEngine(lambda p, s: [(0.0, FIRST), (60.0, CLEAN)])
    (votes,) = ask(make_judge(engine, deadline_s=0.1), STEPS, k=2)
    assert [v.flagged for v in votes] == [frozenset({0}), None]
    assert votes[1].reason == "deadline"
    assert engine.closed == 1


def test_a_response_has_a_deadline_of_its_own_beside_the_groups() -> None:
    slow, quick = ("slow", "8*2=6"), ("quick", "8*2=6")
    engine = ScriptedEngine(
        lambda p, s: [(0.0, FIRST), (0.0, FIRST), (60.0 if "slow" in p else 0.2, CLEAN), (0.0, FIRST)]
    )
    votes = ask(make_judge(engine, early_stop=False, critique_deadline_s=0.4), slow, quick)
    assert [sum(v.valid for v in row) for row in votes] == [3, 4]
    assert votes[0][3].reason == "deadline of the response"
    assert engine.closed == 2


def test_a_prompt_that_does_not_fit_abstains_and_costs_nothing() -> None:
    engine = ScriptedEngine(lambda p, s: [(0.0, CLEAN)] * 4)
    (votes,) = ask(make_judge(engine, max_model_len=60), STEPS)
    assert engine.prompts == []
    assert len(votes) == 4
    assert all(v.flagged is None and "max_model_len" in v.reason for v in votes)


def test_losing_the_engine_is_raised_and_keeps_the_votes_already_in(tmp_path) -> None:  # type: ignore[no-untyped-def]
    class Dying(ScriptedEngine):
        async def stream(self, prompt_ids, sampling):  # type: ignore[no-untyped-def]
            async for completion in super().stream(prompt_ids, sampling):
                yield completion
                raise PartLost("critic worker 0 died")

    store = CritiqueStore(tmp_path / "store.sqlite")
    with pytest.raises(PartLost):
        ask(make_judge(Dying(lambda p, s: [(0.0, FIRST)] * 4), store=store), STEPS)
    assert len(store) == 1


def test_the_store_makes_a_second_run_free_and_another_rule_too(tmp_path) -> None:  # type: ignore[no-untyped-def]
    engine = ScriptedEngine(lambda p, s: [(0.0, FIRST), (0.0, CLEAN), (0.0, "a" + FIRST), (0.0, "b" + CLEAN)])
    store = CritiqueStore(tmp_path / "store.sqlite")
    (first,) = ask(make_judge(engine, store=store, early_stop=False), STEPS)
    store.close()
    again = CritiqueStore(tmp_path / "store.sqlite")
    judge = make_judge(engine, store=again, early_stop=False, vote="union")
    (second,) = ask(judge, STEPS)
    assert len(engine.prompts) == 1
    assert [v.text for v in first] == [v.text for v in second]
    assert all(v.provenance.cached for v in second)
    assert judge.stats()["critic/cache_hits_total"] == len(second)


def test_more_votes_than_stored_ask_only_for_the_missing_under_another_seed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    engine = ScriptedEngine(lambda p, s: [(0.0, FIRST)] * s.n)
    store = CritiqueStore(tmp_path / "store.sqlite")
    ask(make_judge(engine, store=store, early_stop=False), STEPS, k=2)
    (votes,) = ask(make_judge(engine, store=store, early_stop=False), STEPS, k=6)
    assert [s.n for s in engine.samplings] == [2, 4]
    assert engine.samplings[0].seed != engine.samplings[1].seed
    assert [v.provenance.vote_index for v in votes] == list(range(6))


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.9}, {"rubric": "paper"}, {"show_solution": False}, {"max_tokens": 99}, {"constrain": True}],
)
def test_what_shapes_an_answer_shapes_its_key(tmp_path, change: dict[str, object]) -> None:  # type: ignore[no-untyped-def]
    engine = ScriptedEngine(lambda p, s: [(0.0, FIRST)] * s.n)
    store = CritiqueStore(tmp_path / "store.sqlite")
    ask(make_judge(engine, store=store, early_stop=False), STEPS)
    ask(make_judge(engine, store=store, early_stop=False, **change), STEPS)
    assert len(engine.prompts) == 2


def test_time_outs_are_not_stored(tmp_path) -> None:  # type: ignore[no-untyped-def]
    store = CritiqueStore(tmp_path / "store.sqlite")
    engine = ScriptedEngine(lambda p, s: [(0.0, FIRST), (60.0, CLEAN)])
    ask(make_judge(engine, store=store, deadline_s=0.1), STEPS, k=2)
    assert len(store) == 1


def test_an_aborted_answer_abstains_and_is_not_stored(tmp_path) -> None:  # type: ignore[no-untyped-def]
    store = CritiqueStore(tmp_path / "store.sqlite")
    engine = ScriptedEngine(lambda p, s: [(0.0, FIRST)] * s.n, finish="aborted")
    (votes,) = ask(make_judge(engine, store=store), STEPS, k=2)
    assert [v.reason for v in votes] == ["failed: aborted"] * 2
    assert len(store) == 0


def by_seed(texts: Sequence[str]) -> Callable[[str, Sampling], Sequence[tuple[float, str]]]:
    """Answers that depend on the seed alone: whichever call asks for vote i, it is texts[i]."""
    first: list[int] = []

    def answers(prompt: str, sampling: Sampling) -> Sequence[tuple[float, str]]:
        first.append(sampling.seed or 0)
        at = first[-1] - first[0]
        return [(0.0, text) for text in texts[at : at + sampling.n]]

    return answers


@pytest.mark.parametrize(
    ("vote", "quorum", "texts", "asked"),
    [
        ("majority", 1, [CLEAN] * 4, [3]),  # one of four cannot make a majority
        ("majority", 1, [CLEAN, CLEAN, FIRST, CLEAN], [3, 1]),
        ("majority", 1, [CLEAN, "?", "?", CLEAN], [3, 1]),
        ("intersection", 1, [CLEAN] * 4, [1]),  # nobody can be unanimous any more
        ("intersection", 1, [FIRST] * 4, [1, 3]),
        ("intersection", 2, [CLEAN] * 4, [2]),
        ("union", 1, [CLEAN] * 4, [4]),
        ("average", 1, [CLEAN] * 4, [4]),
    ],
)
def test_first_come_the_votes_that_decide_a_clean_response_and_then_the_rest(
    vote: str, quorum: int, texts: list[str], asked: list[int]
) -> None:
    engine = ScriptedEngine(by_seed(texts))
    (votes,) = ask(make_judge(engine, vote=vote, quorum=quorum), STEPS)
    assert [s.n for s in engine.samplings] == asked
    assert sorted(v.text for v in votes) == sorted(texts[: sum(asked)])


@pytest.mark.parametrize("vote", ["intersection", "majority", "union", "average"])
def test_early_stop_never_changes_what_the_vote_makes_of_a_step(vote: str) -> None:
    import random

    from capo_ray.votes import step_weights

    rng = random.Random(3)
    for _ in range(25):
        texts = [
            f"{i} Judgement: No <incorrect_steps>{','.join(s for s in '01' if rng.random() < 0.6)}</incorrect_steps>"
            if rng.random() < 0.85
            else f"{i} ?"
            for i in range(4)
        ]
        weights = []
        for early_stop in (True, False):
            engine = ScriptedEngine(by_seed(texts))
            (votes,) = ask(make_judge(engine, vote=vote, early_stop=early_stop), STEPS)
            weights.append(step_weights([v.flagged for v in votes if v.flagged is not None], 2, vote))
        assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("vote", "texts"),
    [("intersection", [CLEAN, LAST, LAST, LAST]), ("majority", [CLEAN, CLEAN, CLEAN, LAST])],
)
def test_early_stop_asks_on_where_the_votes_so_far_may_not_be_trusted(vote: str, texts: list[str]) -> None:
    config = CliffConfig(vote=vote, trust="verdict")  # type: ignore[arg-type]
    asked = config.asked(Critiques)
    assert asked is not None and asked.vote == vote
    judge = make_judge(ScriptedEngine(by_seed(texts)), vote=asked.stops_by, quorum=asked.quorum)
    (critiques,) = ask(judge, STEPS)
    wrong = judged(Member(0, [2, 2]))
    wrong = replace(wrong, evidence=replace(wrong.evidence, critiques=critiques))
    # A "Yes" on a wrong answer is no vote, so those that say "No" decide alone.
    assert weigh_steps(wrong, config) == (0.0, 1.0)


def test_a_constrained_verdict_can_name_only_steps_that_exist() -> None:
    import re

    seen: list[Sampling] = []
    engine = ScriptedEngine(lambda p, s: seen.append(s) or [(0.0, FIRST)] * s.n)  # type: ignore[func-returns-value]
    ask(make_judge(engine, constrain=True), STEPS)
    assert seen[0].regex is not None
    grammar = re.compile(seen[0].regex)
    assert grammar.fullmatch("7\n6\nJudgement: No\n<incorrect_steps>0, 1</incorrect_steps>")
    assert grammar.fullmatch(CLEAN)
    assert not grammar.fullmatch("Judgement: No\n<incorrect_steps>2</incorrect_steps>")
    assert not grammar.fullmatch("Judgement: No\n<incorrect_steps>0</incorrect_steps> and more")
