"""The searches of `capo-ray solve` on trees drawn by hand: who is asked what, in which order, and what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from capo_ray.config.search import BestOfNSearch, MajoritySearch, NavigatorSearch, SampleSearch
from capo_ray.protocols import JudgeRequest, Sampling
from capo_ray.search import Asking, Critic, Found, Piece, Spent, Writer, look_for
from capo_ray.search.navigator import Verdict, Walk, verdict_of
from capo_ray.search.whole import commonest, fewest
from capo_ray.steps import split_text
from capo_ray.types import Completion, Critique, Problem, Provenance
from tests.fakes import FakeTokenizer, completion


def piece(text: str, logprob: float = -1.0) -> Piece:
    """A step; one with a dot is the last."""
    return Piece(text, (1,), logprob, ends=text.endswith("."))


class Tree:
    """A policy that draws, at each path, what the tree says there, one after the other; and a critic with its weights.

    `said` holds, in order, the draws `path>step`, the judgements `path:step` and the greedy end `path!`.
    """

    def __init__(self, draws: dict[str, str], weights: dict[str, float | None], greedy: str = "g.") -> None:
        self._draws = {path: iter(texts.split()) for path, texts in draws.items()}
        self._weights, self._greedy = weights, greedy
        self.said: list[str] = []

    async def step(self, path: Sequence[Piece]) -> Piece:
        here = "".join(p.text for p in path)
        text, _, logprob = next(self._draws[here]).partition("@")
        self.said.append(f"{here}>{text}")
        return piece(text, float(logprob or -1.0))

    async def finish(self, path: Sequence[Piece]) -> Piece:
        self.said.append(f"{''.join(p.text for p in path)}!")
        return piece(self._greedy)

    async def weigh(self, steps: Sequence[Piece]) -> float | None:
        *before, last = (step.text for step in steps)
        self.said.append(f"{''.join(before)}:{last}")
        return self._weights["".join((*before, last))]


def walk(tree: Tree, breadth: int = 4, budget: int = 64) -> tuple[str, bool, Walk]:
    found = Walk(tree, tree.weigh, breadth, budget)
    ended = asyncio.run(found.run())
    return "".join(p.text for p in found.path), ended, found


def test_votes_on_the_last_step_make_three_classes() -> None:
    """AUDIT of 2310.10080: weight 0 positive, below .5 neutral, else negative; what says nothing is neutral (ours)."""
    classes = [verdict_of(weight) for weight in (0.0, 0.25, 0.49, 0.5, 1.0, None)]
    p, n, bad = Verdict.POSITIVE, Verdict.NEUTRAL, Verdict.NEGATIVE
    assert classes == [p, n, n, bad, bad, n]


def test_the_first_positive_step_is_taken_and_no_more_are_drawn() -> None:
    tree = Tree({"": "a b", "b": "c."}, {"a": 1.0, "b": 0.0, "bc.": 0.0})
    assert walk(tree)[:2] == ("bc.", True)
    assert tree.said == [">a", ":a", ">b", ":b", "b>c.", "b:c."]


def test_without_a_positive_step_the_likeliest_neutral_one_is_taken() -> None:
    draws = {"": "a@-3 b@-1 c@-2 d@-0.5", "b": "e."}
    tree = Tree(draws, {"a": 0.25, "b": 0.25, "c": None, "d": 0.5, "be.": 0.0})
    assert walk(tree)[:2] == ("be.", True), "d is the likeliest and negative, b the likeliest neutral one"


def test_negative_steps_alone_take_the_step_above_back_and_forbid_its_text_there() -> None:
    #        root: a (positive) -> x, y negative -> a taken back and forbidden; then a again (passed over), b
    draws = {"": "a a b", "a": "x y", "b": "c."}
    tree = Tree(draws, {"a": 0.0, "ax": 1.0, "ay": 0.5, "b": 0.0, "bc.": 0.0})
    text, ended, found = walk(tree, breadth=2)
    assert (text, ended, found.backtracks, found.judged) == ("bc.", True, 1, 5)
    assert tree.said == [">a", ":a", "a>x", "a:x", "a>y", "a:y", ">a", ">b", ":b", "b>c.", "b:c."]


def test_a_text_is_forbidden_where_it_was_taken_back_and_nowhere_else() -> None:
    draws = {"": "a b", "a": "x x x", "ax": "z z", "b": "x", "bx": "y."}
    weights = {"a": 0.0, "ax": 0.0, "axz": 1.0, "b": 0.0, "bx": 0.0, "bxy.": 0.0}
    text, ended, found = walk(Tree(draws, weights), breadth=2)
    # z is judged once; x is taken back after a, twice drawn again there and passed over, so a is taken back as well
    assert (text, ended, found.backtracks, found.judged) == ("bxy.", True, 2, 6)


def test_the_same_text_drawn_again_is_not_judged_again() -> None:
    tree = Tree({"": "a a a b.", "b.": ""}, {"a": 1.0, "b.": 0.0})
    assert walk(tree)[2].judged == 2
    assert tree.said.count(":a") == 1


def test_when_the_budget_is_spent_the_rest_is_greedy() -> None:
    draws = {"": "a", "a": "x y z"}
    tree = Tree(draws, {"a": 0.0, "ax": 1.0, "ay": 1.0})
    text, ended, found = walk(tree, budget=3)
    assert (text, ended, found.judged, found.backtracks) == ("a", False, 3, 0)


def test_a_root_without_a_good_step_is_drawn_from_again_until_nothing_is_new() -> None:
    tree = Tree({"": "a b b a a b"}, {"a": 1.0, "b": 1.0})
    text, ended, found = walk(tree, breadth=2)
    assert (text, ended, found.judged) == ("", False, 2)
    assert tree.said == [">a", ":a", ">b", ":b", ">b", ">a"], "a second round brought nothing new"


def test_an_end_without_a_step_is_as_good_as_the_steps_before_it() -> None:
    class Ending(Tree):
        async def step(self, path: Sequence[Piece]) -> Piece:
            return await super().step(path) if not path else Piece("", (0,), -0.1, True)

    tree = Ending({"": "a"}, {"a": 0.0})
    assert walk(tree)[:2] == ("a", True) and tree.said == [">a", ":a"]


def test_the_commonest_answer_and_the_fewest_flags_break_ties_as_told() -> None:
    assert commonest(["7", "8", None, "8", "7", None, None]) == 0, "first of the tied; no answer is no vote"
    assert commonest([None, "8"]) == 1 and commonest([None, None]) == 0
    assert fewest([1.0, 0.5, 0.5], [-1.0, -3.0, -2.0]) == 2
    assert fewest([None, 3.0], [-1.0, -9.0]) == 1, "what was not judged comes last"


# --- with an engine and a critic --------------------------------------------------------------------------------------


class Scripted:
    """An engine that goes on with the text that its script gives for the text so far, by the draw's seed."""

    def __init__(self, script: dict[str, list[str]]) -> None:
        self.script, self.asked = script, list[tuple[str, Sampling]]()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        so_far = FakeTokenizer().decode(prompt_ids).removeprefix("Q")
        self.asked.append((so_far, sampling))
        texts = self.script[so_far]
        return tuple(self._cut(texts[((sampling.seed or 0) + i) % len(texts)], sampling) for i in range(sampling.n))

    def _cut(self, text: str, sampling: Sampling) -> Completion:
        places = [text.find(stop) + len(stop) for stop in sampling.stop_strings if stop in text]
        done = completion(text[: min(places)] if places else text)
        n = len(text[: min(places)]) if places else len(text) + 1
        finish = "stop"
        if n > sampling.max_tokens:
            n, finish = sampling.max_tokens, "length"
        ends = done.char_ends[:n]
        return Completion(done.token_ids[:n], done.logprobs[:n], ends, done.text[: int(ends[-1])], (), finish)  # type: ignore[arg-type]


class Flagging:
    """A critic that flags each step with an x, in as many of its votes as the step has of them; 10 tokens a vote."""

    def __init__(self) -> None:
        self.seen: list[tuple[Problem, tuple[str, ...]]] = []

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        def vote(steps: tuple[str, ...], index: int) -> Critique:
            flagged = frozenset(i for i, step in enumerate(steps) if step.count("x") > index)
            return Critique(flagged, None, "", "", Provenance("f", "", index, prompt_tokens=100, output_tokens=10))

        self.seen += [(problem, r.steps) for r in responses]
        return tuple(tuple(vote(r.steps, i) for i in range(num_votes)) for r in responses)


def asking(engine: Scripted, judge: Flagging, *, delimiter: str = "", max_tokens: int = 60) -> Asking:
    spent = Spent()
    encode = FakeTokenizer().encode
    writer = Writer(
        engine,  # type: ignore[arg-type]
        FakeTokenizer().decode,
        encode("Q"),
        Sampling(0.6, 0.95, max_tokens),
        seed=0,
        spent=spent,
        delimiter=delimiter,
    )
    critic = Critic(judge, Problem("p", "Q", "gold", "the solution"), 2, spent)
    return Asking(writer, critic, split_text, lambda text: text[-1:] or None, spent)


def test_the_navigator_stops_the_policy_after_each_step_and_goes_on_from_its_tokens() -> None:
    script = {
        "": ["bad xx\n\n", "one\n\ntwo"],
        "one\n\n": ["never", "never", "two\n\nmore"],
        "one\n\ntwo\n\n": ["end"],
    }
    engine = Scripted(script)
    judge = Flagging()
    asked = asking(engine, judge, delimiter="\n\n")
    found = asyncio.run(look_for(asked, NavigatorSearch(breadth=3)))
    assert found.text == "one\n\ntwo\n\nend"
    assert [so_far for so_far, _ in engine.asked] == ["", "", "one\n\n", "one\n\ntwo\n\n"]
    assert [s.seed for _, s in engine.asked] == [0, 1, 2, 3] and engine.asked[0][1].stop_strings == ("\n\n",)
    assert [steps for _, steps in judge.seen] == [
        ("bad xx\n\n",), ("one\n\n",), ("one\n\n", "two\n\n"), ("one\n\n", "two\n\n", "end"),
    ]  # fmt: skip
    assert all(problem.answer == "" and problem.solution is None for problem, _ in judge.seen)
    spent = asked.spent
    assert spent.policy_tokens == 8 + 5 + 5 + 4 and spent.num_draws == 4, "with what was not accepted"
    assert (spent.judged_steps, spent.critic_tokens, spent.critic_prompt_tokens) == (4, 80, 400)
    assert found.num_tokens == 5 + 5 + 4 and not found.cut


def test_a_critic_of_whole_solutions_is_shown_the_rest_and_asked_about_the_step() -> None:
    script = {"": ["one\n\n"], "one\n\n": ["xx a\n\nxx b", "end"], "one\n\nxx a\n\n": ["b"]}
    engine, judge = Scripted(script), Flagging()
    asked = asking(engine, judge, delimiter="\n\n")
    found = asyncio.run(look_for(asked, NavigatorSearch(shows="whole")))
    # draw 0: one; 1: its greedy rest, `end`; it is flagged nowhere. draw 2: xx a, negative behind its own rest; 3: end
    assert judge.seen[0][1] == ("one\n\n", "end"), "flags in the rest would count for nothing"
    assert engine.asked[1][1].temperature == 0 and found.text == "one\n\nend"
    assert asked.spent.judged_steps == len(judge.seen)


def test_white_space_alone_is_no_step() -> None:
    engine = Scripted({"": ["\n\n"], "\n\n": ["one\n\n"], "\n\none\n\n": ["end"]})
    judge = Flagging()
    found = asyncio.run(look_for(asking(engine, judge, delimiter="\n\n"), NavigatorSearch()))
    assert found.text == "\n\none\n\nend" and judge.seen[0][1] == ("\n\none\n\n",)


def test_a_response_ends_where_its_room_does_in_a_step_and_at_the_end_of_one() -> None:
    engine = Scripted({"": ["one\n\n"], "one\n\n": ["much too long"]})
    found = asyncio.run(look_for(asking(engine, Flagging(), delimiter="\n\n", max_tokens=9), NavigatorSearch()))
    assert found.text == "one\n\nmuch" and found.cut and found.num_tokens == 9
    exactly = Scripted({"": ["one\n\n"]})
    found = asyncio.run(look_for(asking(exactly, Flagging(), delimiter="\n\n", max_tokens=5), NavigatorSearch()))
    assert found.text == "one\n\n" and found.cut and len(exactly.asked) == 1


def test_a_spent_budget_is_finished_greedily_from_the_accepted_steps() -> None:
    engine = Scripted({"": ["one\n\n"], "one\n\n": ["bad xx\n\n", "bad xx!\n\n"]})
    asked = asking(engine, Flagging(), delimiter="\n\n")
    found = asyncio.run(look_for(asked, NavigatorSearch(budget=2)))
    assert found.figures == {"backtracks": 0.0, "exhausted": 1.0}
    assert engine.asked[-1][1].temperature == 0 and engine.asked[-1][1].stop_strings == ()
    assert found.text.startswith("one\n\nbad")


def test_best_of_n_judges_every_response_at_once_and_takes_the_one_with_the_fewest_flags() -> None:
    engine = Scripted({"": ["x\n\nxx\n\n1", "a\n\nx\n\n2", "xx\n\nb\n\n3"]})
    judge = Flagging()
    asked = asking(engine, judge)
    found = asyncio.run(look_for(asked, BestOfNSearch(num_samples=3)))
    assert found.text == "a\n\nx\n\n2" and found.figures == {"flags": 0.5}
    assert len(engine.asked) == 1 and engine.asked[0][1].n == 3
    assert asked.spent.judged_steps == 9 and asked.spent.critic_prompt_tokens == 300
    assert asked.spent.policy_tokens == sum(len(t) + 1 for t in engine.script[""])


def test_majority_and_sample_ask_no_critic() -> None:
    engine, judge = Scripted({"": ["one 7", "two 8", "three 8"]}), Flagging()
    found: Found = asyncio.run(look_for(asking(engine, judge), MajoritySearch(num_samples=3)))
    assert found.text == "two 8" and found.figures["agreement_frac"] == pytest.approx(2 / 3)
    assert asyncio.run(look_for(asking(engine, judge), SampleSearch())).text == "one 7"
    assert judge.seen == []


def test_two_searches_that_begin_alike_go_alike() -> None:
    script = {"": ["a\n\n", "b xx\n\n", "c\n\n"], "a\n\n": ["end", "xx"], "c\n\n": ["xx", "end"]}
    runs = [
        asyncio.run(look_for(asking(Scripted(script), Flagging(), delimiter="\n\n"), NavigatorSearch()))
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
