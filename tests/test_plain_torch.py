"""The engine of the learning benchmark behind its doors, and the shipped pipeline over it, which repeats itself."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from capo_ray.environments import Children, Playing
from capo_ray.problems.chains import make_problem
from capo_ray.protocols import Sampling
from capo_ray.synthesis import read_program
from capo_ray.types import Problem
from tests.own_environment import Moody

ROOT = Path(__file__).parent.parent
POLICY = ROOT / "capo_ray" / "assets" / "chains-policy"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def prompts(engine: Any) -> list[list[int]]:
    return [engine.tokenizer.encode(make_problem(0, i, 3 + i).prompt + "\n") for i in range(3)]


def test_a_response_is_the_same_whatever_is_sampled_beside_it() -> None:
    from plain_torch.engine import PlainEngine

    engine = PlainEngine(POLICY)
    sampling = Sampling(max_tokens=40, n=4, seed=7, entropies=True)

    async def together() -> list[Any]:
        asked = [(p, replace(sampling, seed=7 + 100 * i)) for i, p in enumerate(prompts(engine))]
        return await asyncio.gather(*(engine.generate(p, s) for p, s in asked))

    alone = asyncio.run(engine.generate(prompts(engine)[0], sampling))
    assert [c.text for c in asyncio.run(together())[0]] == [c.text for c in alone]
    assert len({c.text for c in alone}) > 1, "siblings have seeds of their own"
    assert all(len(c.entropies) == len(c.token_ids) == len(c.logprobs) for c in alone)


def test_what_was_sampled_is_scored_alike_and_common_beginnings_once() -> None:
    from plain_torch.engine import PlainEngine

    engine = PlainEngine(POLICY)
    prompt = prompts(engine)[1]
    drawn = asyncio.run(engine.generate(prompt, Sampling(max_tokens=40, n=4, seed=1)))
    sequences = [[*prompt, *c.token_ids.tolist()] for c in drawn]
    before = engine.num_tokens
    scores = asyncio.run(engine.score(sequences, [len(prompt)] * 4))
    for completion, row in zip(drawn, scores, strict=True):
        assert completion.logprobs.tolist() == pytest.approx(row, abs=1e-4)
    distinct = {tuple(ids[: end + 1]) for ids in sequences for end in range(len(ids))}
    assert engine.num_tokens - before == len(distinct) < sum(map(len, sequences))


def test_turns_with_an_environment_are_samples_of_what_stands_before_them() -> None:
    from plain_torch.engine import PlainEngine

    engine, config = PlainEngine(POLICY), Moody(timeout_s=30, max_turns=3, turn_tokens=7, reply_template="{reply}\n")
    newline = engine.tokenizer.stop_ids(["\n"])
    prompt = prompts(engine)[0]
    with Children(config) as children:
        playing = Playing(config, children, engine, engine.tokenizer, lambda _: prompt, None, 500)
        sampling = Sampling(max_tokens=200, n=2, seed=5, stop_token_ids=newline)
        played, again = (asyncio.run(playing.play(Problem("p", "q", "3"), prompt, sampling)) for _ in range(2))
    drawn, redrawn = ([p.response.token_ids.tolist() for p in each] for each in (played, again))
    # Logprobs differ in their last digits with what happens to be computed beside them.
    assert drawn == redrawn and drawn[0] != drawn[1]
    for one in played:
        response = one.response
        ids = [*prompt, *response.token_ids.tolist()]
        (scores,) = asyncio.run(engine.score([ids], [len(prompt)]))
        own = [x for x, sampled in zip(scores, response.sampled(), strict=True) if sampled]
        assert len(response.acted) == 3 and response.logprobs.tolist() == pytest.approx(own, abs=1e-4)


def test_the_engine_agrees_with_transformers() -> None:
    from plain_torch.model import Model, check_against_library

    assert check_against_library(Model(POLICY)) < 1e-3


def trained(arm: str) -> list[dict[str, float]]:
    """The figures of two updates of a small run, two groups of four each."""
    from plain_torch.arms import parse_arm
    from plain_torch.run import Run, Settings

    settings = Settings(4, str(POLICY), "laptop", 2, 2, groups=2, group_size=4, eval_problems=4)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(parse_arm("arm", arm), 0, settings, Path(folder))
        asyncio.run(run.go())
    names = ("loss/entropy_nats", "learner/grad_norm", "rollout/reward_mean", "critic/votes_per_response")
    return [{name: row[name] for name in names if name in row} for row in run.figures] + [
        {"greedy": run.curve[-1]["greedy"], "accuracy": run.curve[-1]["accuracy"]}
    ]


@pytest.mark.slow
def test_a_run_of_the_shipped_pipeline_repeats_itself_to_the_last_digit() -> None:
    first = trained("credit=capo")
    assert first == trained("credit=capo")
    assert first[0]["critic/votes_per_response"] >= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "arm",
    [
        "credit=capo judge=random",
        "credit=qrm credit.outcome_until=0 rewards=logprobs",
        "credit=vineppo learner.num_epochs=1",
    ],
)
def test_an_arm_is_a_list_of_overrides_and_two_doors(arm: str) -> None:
    assert len(trained(arm)) == 3


def test_a_record_tells_apart_two_critics_of_one_name(tmp_path: Path) -> None:
    from learning import facts_of, weights_of
    from plain_torch.arms import parse_arm
    from plain_torch.run import Settings

    for folder, weights in (("first", b"a"), ("second", b"b")):
        (tmp_path / folder / "novice-critic").mkdir(parents=True)
        (tmp_path / folder / "novice-critic" / "model.safetensors").write_bytes(weights)
    first, second = (Settings(4, "", str(tmp_path / folder / "novice-critic"), 2, 2) for folder in ("first", "second"))
    arm, grpo = parse_arm("arm", "credit=capo_greedy"), parse_arm("grpo", "credit=grpo")
    assert facts_of(arm, first) == facts_of(arm, second)
    assert weights_of(first, facts_of(arm, first)) == {"critic": "ca978112ca1b"}  # SHA-256 of "a"
    assert weights_of(second, facts_of(arm, second)) == {"critic": "3e23e8160039"}  # of "b"
    assert weights_of(first, facts_of(grpo, first)) == {}


def test_pass_at_k_is_drawn_before_and_after(tmp_path: Path) -> None:
    from plain_torch.report import draw_passes

    ends = [{"pass_at": {"1": 0.2, "4": 0.4, "16": 0.5}}, {"pass_at": {"1": 0.8, "4": 0.9, "16": 0.9}}]
    rows = [{"arm": arm, "seed": seed, "curve": ends} for arm in ("grpo", "capo_majority") for seed in (0, 1)]
    draw_passes(rows, tmp_path / "passes.png")
    assert (tmp_path / "passes.png").read_bytes().startswith(b"\x89PNG")


def test_an_engine_stops_at_a_step_as_whole_responses_are_cut() -> None:
    from plain_torch.engine import PlainEngine
    from solve_parts import Stopping

    engine = PlainEngine(POLICY)
    prompt = prompts(engine)[1]
    sampling = Sampling(max_tokens=60, seed=7)
    (whole,) = asyncio.run(engine.generate(prompt, sampling))
    (step,) = asyncio.run(Stopping(engine).generate(prompt, replace(sampling, stop_strings=("\n\n",))))
    first = whole.text.split("\n\n")[0] + "\n\n"
    assert step.text == first and step.finish == "stop"
    assert step.token_ids.tolist() == whole.token_ids.tolist()[: len(step.token_ids)]


def test_a_budget_that_was_searched_before_is_searched_alike_and_costs_as_much() -> None:
    from plain_torch.engine import PlainEngine
    from solve_parts import Oracle, Point, Remembering, Stopping, World

    from capo_ray.config.search import NavigatorSearch, SampleSearch
    from capo_ray.config.sections import ModelConfig
    from capo_ray.config.solve import SolveConfig
    from capo_ray.problems.truth import true_wrong_steps

    engine, every = PlainEngine(POLICY), {"temperature": 1.0, "top_p": 1.0}
    config = SolveConfig(model=ModelConfig(path="laptop"), rollout={"max_response_tokens": 60})
    problems = [make_problem(0, i, 4, "held_out") for i in range(6)]

    async def points(budgets: Sequence[int]) -> list[Point]:
        world = World(config, list(problems), Stopping(engine), engine.tokenizer, SampleSearch(**every))
        judge = Remembering(Oracle(true_wrong_steps, 0.9, 0.9, 0.3))
        await world.draw(4)
        walks = [await world.walk(NavigatorSearch(budget=b, shows="steps", **every), judge, 1) for b in budgets]
        return [*walks, await world.best(4, judge, 1), world.majority(4)]

    one_by_one, at_once = asyncio.run(points((4, 8, 32))), asyncio.run(points((32,)))
    assert one_by_one[2:] == at_once and all(point.critic_tokens == 0 for point in at_once)
    assert one_by_one[0].written < one_by_one[2].written < at_once[1].written == at_once[2].written


def test_an_oracle_flags_with_the_precision_and_recall_that_it_is_given_and_repeats_itself() -> None:
    from solve_parts import Oracle

    from capo_ray.problems.chains import demonstrate, true_wrong_steps
    from capo_ray.protocols import JudgeRequest

    rng, hits, flags, wrong, steps = random.Random(0), 0, 0, 0, 0
    oracle = Oracle(true_wrong_steps, 0.8, 0.6, 0.25)
    for i in range(800):
        problem = make_problem(0, i, 5)
        said = demonstrate(problem.chain, rng, 0.3)
        ((vote,),) = asyncio.run(oracle.critique(problem, [JudgeRequest(said)], 1))
        assert asyncio.run(oracle.critique(problem, [JudgeRequest(said)], 1)) == ((vote,),)
        true = true_wrong_steps(problem, said)
        assert vote.flagged is not None
        hits, flags, wrong = hits + len(vote.flagged & true), flags + len(vote.flagged), wrong + len(true)
        steps += len(said)
    # The precision holds where a quarter of the steps is wrong; here it is as many as drawn.
    share = wrong / steps
    expected = 0.6 * share / (0.6 * share + 0.6 * 0.25 * 0.2 / (0.8 * 0.75) * (1 - share))
    assert hits / wrong == pytest.approx(0.6, abs=0.05) and hits / flags == pytest.approx(expected, abs=0.05)


def test_a_search_is_set_against_the_cheapest_rival_that_costs_no_less() -> None:
    from solve_parts import Point
    from solve_report import no_cheaper

    rivals = [Point(n, {}, 10.0 * n, 5.0 * n) for n in (1, 2, 3)]
    assert no_cheaper(rivals, Point(4, {}, 16.0, 4.0, 900.0)) is rivals[1], "what the critic reads is not written"
    assert no_cheaper(rivals, Point(4, {}, 30.0)) is rivals[1] and no_cheaper(rivals, Point(4, {}, 45.1)) is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--world", "gsm8k"], "needs --path FILE and --model DIRECTORY (got '' and '')"),
        (["--budgets", "4,0"], "expected whole numbers from 1 on, as 4,8,16 (got '4,0')"),
    ],
)
def test_a_search_bench_says_what_is_wrong_with_its_words(
    given: list[str], why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["solve.py", *given])
    with pytest.raises(SystemExit):
        import_module("solve").parse()
    assert why in capsys.readouterr().err


def test_a_tally_is_a_program_as_gsm8k_marks_it() -> None:
    from synthesis_parts import Tally, draw_tally, split_of

    one = Tally("Mia", "nuts", 17, (8, -3, 6))
    assert one.question == "Mia had 17 nuts, got 8, lost 3, got 6."
    assert one.worked == "17+8=<<17+8=25>>25\n25-3=<<25-3=22>>22\n22+6=<<22+6=28>>28\n#### 28"
    assert one.response(random.Random(0), 0.0) == "17+8=25\n\n25-3=22\n\n22+6=28\n\n\\boxed{28}"
    assert read_program(one.question, one.worked).inputs == (3, 6, 8, 17)
    rng = random.Random(0)
    drawn = [(draw_tally(rng, side), side) for side in ("train", "held_out") for _ in range(20)]
    assert all(split_of(one.question) == side and min(one.results()) >= 2 for one, side in drawn)


def test_teaching_is_counted_from_the_first_model_on(tmp_path: Path) -> None:
    from critic_votes import cost

    shutil.copytree(ROOT / "capo_ray" / "assets" / "novice-critic", tmp_path, dirs_exist_ok=True)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert "start" not in recipe
    figures = []
    for _ in range(3):
        (tmp_path / "recipe.json").write_text(json.dumps(recipe))
        figures.append(
            [float(word.replace(",", "").rstrip("M")) for word in cost(tmp_path).split() if word[0].isdigit()]
        )
        recipe = {**recipe, "start": recipe}
    once = figures[0]
    assert once == [351_840, 1.15, 5764]  # what the pages quote of the shipped critic
    for stages in (2, 3):
        assert figures[stages - 1] == pytest.approx([once[0], stages * once[1], stages * once[2]], rel=2e-3)
