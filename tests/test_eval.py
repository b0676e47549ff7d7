"""`capo-ray eval`: suites and their rows, what is asked and kept, what is refused, what is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import capo_ray
from capo_ray.checkpoint import CheckpointStore, write_settings
from capo_ray.cli import main
from capo_ray.cli.compose import compose_train, list_choices
from capo_ray.cli.eval_settings import compose_eval, read_suites
from capo_ray.cli.memory import estimate_memory
from capo_ray.config.evaluation import EvalConfig
from capo_ray.demand import demand
from capo_ray.flow.answering import GREEDY, Answering, Asked, ResponseFile, missing, suite_figures
from capo_ray.place import cluster
from capo_ray.problems.chains import make_problem
from capo_ray.problems.rows import RowReport
from capo_ray.problems.suites import suite_problems
from capo_ray.protocols import PartTimeout, RunFailed, Sampling
from capo_ray.types import Completion, Problem
from tests.fakes import FakeEngine, FakeTokenizer, FakeVerifier, written

ARC = {
    "question": "Which is a metal?",
    "choices": {"text": ["salt", "iron", "wood"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}
GPQA = {"Question": "Spin of the electron?", "Correct Answer": "1/2"} | {
    f"Incorrect Answer {i}": text for i, text in enumerate(("0", "1", "3/2"), 1)
}
MMLU_PRO = {"question": "2 + 2?", "options": [str(i) for i in range(10)], "answer": "E", "answer_index": 4}
ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "gsm8k": ({"question": "How many?", "answer": "He has 3*2=<<3*2=6>>6.\n#### 6"}, "How many?", "6"),
    "math500": ({"problem": "Solve.", "solution": "So \\boxed{\\frac12}.", "answer": "\\frac12"}, "Solve.", "\\frac12"),
    "aime24": ({"id": 60, "problem": "Find m+n.", "solution": "…", "answer": "204"}, "Find m+n.", "204"),
    "aime25": ({"problem": "Find m+n.", "answer": "70", "id": "0"}, "Find m+n.", "70"),
    "amc23": ({"id": 0, "question": "How far?", "answer": 27.0}, "How far?", "27.0"),
    "olympiadbench": ({"question": "Determine x.", "final_answer": ["2"], "is_multiple": False}, "Determine x.", "2"),
    "minerva": ({"question": "The flux?", "answer": "4.5e33"}, "The flux?", "4.5e33"),
    "own": ({"prompt": "1+1", "target": 2}, "1+1", "2"),
}


def problems_of(tmp_path: Path, suite: str, rows: Sequence[object], *overrides: str) -> list[Problem]:
    path = tmp_path / f"{suite}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = compose_eval([f"suite={suite}", f"eval.path={path}", *overrides])
    return suite_problems(suite, read_suites(config)[suite], config, RowReport(0), [])


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["eval", *words]) == 1
    out = capsys.readouterr()
    assert not out.out and "traceback" not in out.err
    return out.err.strip().splitlines()[-1]


# --- suites ---------------------------------------------------------------------------------------------------------


def test_every_suite_says_what_it_is_and_where_it_is_to_be_had() -> None:
    suites = read_suites(EvalConfig(suite=tuple(list_choices("suite"))))
    assert {"gsm8k", "math500", "aime24", "aime25", "amc23", "olympiadbench", "minerva"} < suites.keys()
    assert {"gpqa_diamond", "arc_c", "mmlu_pro"} < suites.keys()
    for name, suite in suites.items():
        told = (suite.dataset, suite.question, suite.answer, suite.licence, suite.get, suite.instruction)
        assert name == "own" or (all(told) and suite.problems > 0), name
        assert bool(suite.options) == (suite.kind == "choice"), name


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_each_suite_is_asked_with_its_instruction(tmp_path: Path, name: str) -> None:
    row, question, answer = ROWS[name]
    (problem,) = problems_of(tmp_path, name, [row])
    instruction = "" if name == "own" else "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert (problem.prompt, problem.answer, problem.source) == (question + instruction, answer, name)


def test_a_file_may_be_laid_out_otherwise_than_the_data_set(tmp_path: Path) -> None:
    worked = {"question": "Point?", "answer": "We get $\\boxed{(3, 4)}.$The answer is: (3, 4)"}
    assert problems_of(tmp_path, "math500", [worked])[0].answer == "(3, 4)"
    named = problems_of(
        tmp_path, "own", [{"ask": "1+1", "told": "2"}], "data.question_column=ask", "data.answer_column=told"
    )
    assert (named[0].prompt, named[0].answer) == ("1+1", "2")


@pytest.mark.parametrize(
    ("suite", "row", "right"), [("arc_c", ARC, "iron"), ("gpqa_diamond", GPQA, "1/2"), ("mmlu_pro", MMLU_PRO, "4")]
)
def test_options_are_shuffled_by_the_seed_and_the_letter_follows(
    tmp_path: Path, suite: str, row: dict[str, Any], right: str
) -> None:
    letters = set()
    for seed in range(12):
        (problem,) = problems_of(tmp_path, suite, [row], f"run.seed={seed}")
        (again,) = problems_of(tmp_path, suite, [row], f"run.seed={seed}")
        assert problem == again
        assert f"\n{problem.answer}. {right}\n" in problem.prompt
        assert "put the letter of the right option" in problem.prompt
        letters.add(problem.answer)
    assert len(letters) > 1


def test_a_problem_asked_twice_has_two_names_and_a_limit_takes_the_first(tmp_path: Path) -> None:
    rows = [{"question": q, "answer": "1"} for q in ("a", "b", "a", "c")]
    names = [p.id for p in problems_of(tmp_path, "own", rows)]
    assert len(set(names)) == 4 and names[2] == f"{names[0]}-2"
    assert [p.id for p in problems_of(tmp_path, "own", rows, "eval.limit=2")] == names[:2]


# --- settings -------------------------------------------------------------------------------------------------------


def test_presets_of_sampling_compose_and_an_evaluation_has_no_learner() -> None:
    paper, greedy = (compose_eval(["suite=gsm8k", f"eval={name}"]).eval for name in ("paper", "greedy"))
    assert (paper.num_samples, paper.temperature, greedy.num_samples, greedy.temperature) == (3, 0, 1, 0)
    config = compose_eval(
        ["suite=gsm8k,math500", "eval=avg16", "model=qwen2_5_1_5b", "engine=gpu", "engine.num_workers=4"]
    )
    assert config.suite == ("gsm8k", "math500") and config.eval.num_samples == 16
    assert config.model.path == "Qwen/Qwen2.5-1.5B-Instruct"
    assert [(one.role, one.count, one.num_gpus) for one in demand(config.serving())] == [
        ("rollout", 4, 1.0),
        ("verifier", 1, 0.0),
    ]


def test_an_evaluation_needs_no_room_for_versions_of_the_policy_on_their_way() -> None:
    serving = compose_eval(["suite=gsm8k", "model=qwen2_5_7b"]).serving()
    assert cluster.object_store_bytes(compose_eval(["suite=gsm8k"]).serving()) == 256 << 20
    assert [row.role for row in estimate_memory(serving)] == ["rollout", "verifier", "driver and Ray"]
    assert estimate_memory(serving)[-1].gib_each < 2 < estimate_memory(compose_train(["model=qwen2_5_7b"]))[-1].gib_each


def test_a_run_is_asked_as_it_asked_its_own_policy_and_what_it_lacks_of_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["model.system_prompt=Think.", "rollout.max_response_tokens=77", "engine.max_num_seqs=9"]
    own = compose_train([*words, "environment=calculator"])
    run.mkdir()
    write_settings(run / "config.yaml", own.model_dump(mode="json"))
    with pytest.raises(RunFailed, match="expected a run directory with checkpoints/"):
        compose_eval([f"model={run}", "suite=gsm8k"])
    store = CheckpointStore(run / "checkpoints", keep=2)
    (run / "checkpoints").mkdir(exist_ok=True)
    with pytest.raises(RunFailed, match="expected a whole checkpoint"):
        compose_eval([f"model={run}", "suite=gsm8k"])
    draft = store.begin(3, ["policy"])
    draft.add("policy", [written(draft.directory / "policy" / "model.safetensors", "weights")])
    store.seal(draft)
    config = compose_eval([f"model={run}", "suite=gsm8k"])
    assert config.model.path.endswith("checkpoints/v000003/policy")
    assert (config.model.system_prompt, config.rollout.max_response_tokens) == ("Think.", 77)
    assert config.engine.max_num_seqs == 9
    assert (
        capsys.readouterr().err
        == f"{run}: its policy played environment=calculator; here it is asked once, without it\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["suite=gsm9k"], "suite=gsm9k is no suite; did you mean gsm8k? Suites: aime24, aime25, amc23"),
        ([], "expected suite=NAME, several as suite=gsm8k,math500, got none"),
        (["suite=own"], "suite=own needs eval.path=FILE"),
        (["suite=gsm8k", "eval.path=/no/file"], "expected a file, a folder or a pattern, got '/no/file'"),
        (["suite=gsm8k", "eval.num_samples=0"], "eval.num_samples: expected greater than or equal to 1, got 0"),
        (["suite=gsm8k", "rollout.temperature=1"], "trains nothing; set eval.temperature"),
        (["suite=gsm8k", "learner.lr=1"], "learner.lr has no effect in an evaluation"),
        (["suite=gsm8k", "eval=greedy", "eval.top_p=0.9"], "eval.top_p has no effect"),
        (["suite=gsm8k", "verifier.kind=exact"], "verifier.kind has no effect"),
        (["resume=/tmp"], "resume: expected the directory of an evaluation, got /tmp"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert said in refusal(capsys, *words)


def test_a_wrong_column_is_refused_with_those_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "1"}) + "\n")
    said = refusal(capsys, "suite=own", f"eval.path={path}", "data.question_column=ask")
    assert "expected problems in" in said and "expected a column 'ask', got 'question', 'answer'" in said


def test_a_server_that_cannot_be_asked_is_refused_before_a_cluster_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[object] = []
    monkeypatch.setattr("capo_ray.place.cluster.join", joined.append)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "1+1", "answer": "2"}) + "\n")
    words = ["model=laptop", "suite=own", f"eval.path={path}", f"run.dir={tmp_path}", "endpoint.max_retries=0"]
    for address, why in (
        ("http://127.0.0.1:1/v1", "as m, got: the served policy: connection failed (ClientConnectorError)"),
        ("host:1/v1", "endpoint.base_url must be http(s)://host[:port]/path"),
    ):
        assert why in refusal(capsys, *words, f"endpoint.base_url={address}", "endpoint.model=m")
    assert joined == []


def test_a_data_set_that_is_not_here_is_refused_with_where_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    said = refusal(capsys, "suite=gpqa_diamond")
    assert (
        "pip install 'capo-ray[hub]'" in said
        and "eval.path=FILE, from https://huggingface.co/datasets/Idavidrein" in said
    )


# --- asking ---------------------------------------------------------------------------------------------------------


class Asking(FakeEngine):
    """Remembers how often, and under which seed, each response was asked for; may fail."""

    def __init__(self) -> None:
        super().__init__(skill=0.5)
        self.seeds: list[int] = []
        self.num_left = 10**9

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        self.num_left -= 1
        if self.num_left < 0:
            raise PartTimeout("rollout worker 0 did not answer within 1 s")
        assert sampling.seed is not None
        self.seeds += range(sampling.seed, sampling.seed + sampling.n)
        return await super().generate([*prompt_ids, ord("0")], sampling)


def asked(num_samples: int = 3) -> Asked:
    return Asked(Sampling(0.6, 0.95, 64), num_samples, True, seed=0, max_len=100)


DIGITS = [Problem(f"p{i}", f"digit {i}", str(i), source="own") for i in range(5)]


def answer(path: Path, engine: FakeEngine, wanted: Asked) -> ResponseFile:
    file = ResponseFile.open(path)

    async def go() -> None:
        encode = FakeTokenizer().encode
        answering = Answering(wanted, engine, lambda p: encode(p.prompt), file, in_flight=4)
        await answering.answer(missing(DIGITS, wanted, file), FakeVerifier())

    asyncio.run(go())
    return file


def test_an_interrupted_evaluation_asks_for_the_rest_alone_and_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    whole, cut = Asking(), Asking()
    answer(tmp_path / "whole.jsonl", whole, asked())
    cut.num_left = 5
    with pytest.raises(RunFailed, match=r"problems of own have no response: rollout worker 0 .*capo-ray eval resume="):
        answer(tmp_path / "cut.jsonl", cut, asked())
    kept = (tmp_path / "cut.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut.jsonl").write_bytes(b"".join(kept[:-1]) + kept[-1][: len(kept[-1]) // 2])  # torn by a crash
    cut.num_left = 10**9
    file = answer(tmp_path / "cut.jsonl", cut, asked())
    assert len(whole.seeds) == 5 * (3 + 1) and set(cut.seeds) == set(whole.seeds)
    assert len(cut.seeds) <= len(whole.seeds) + 3, "what was torn, and nothing else, is asked again"
    assert all(set(file.of("own", p.id)) == {0, 1, 2, GREEDY} for p in DIGITS)
    before = len(cut.seeds)
    assert answer(tmp_path / "cut.jsonl", cut, asked()).rows == file.rows and len(cut.seeds) == before
    answer(tmp_path / "cut.jsonl", cut, asked(5))
    assert len(cut.seeds) == before + 5 * 2, "two more samples each"


def test_the_responses_tell_the_figures_throughput_and_cost_among_them(tmp_path: Path) -> None:
    file = answer(tmp_path / "r.jsonl", Asking(), asked())
    told = suite_figures([p.id for p in DIGITS], "own", asked(), file)
    rewards = [row["reward"] for p in DIGITS for name, row in file.of("own", p.id).items() if name != GREEDY]
    assert told["avg_at_k"] == pytest.approx(sum(rewards) / 15) and told["num_problems"] == 5
    low, high = told["ci95"]
    assert low <= told["avg_at_k"] <= high and told["pass_at_k"] >= told["avg_at_k"]
    assert told["tokens_per_s"] > 0 and told["gpu_s"] == 0


def test_a_prompt_without_room_for_a_response_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"a prompt of own has 7 tokens, expected < model.max_model_len=7"):
        answer(tmp_path / "r.jsonl", Asking(), Asked(Sampling(), 1, False, 0, max_len=7))


# --- telling --------------------------------------------------------------------------------------------------------


def finished(folder: Path, rewards: Sequence[int], data: Path) -> Path:
    """An evaluation of greedy responses that is done."""
    folder.mkdir()
    config = compose_eval(["suite=own", f"eval.path={data}", "eval=greedy"])
    write_settings(folder / "config.yaml", config.model_dump(mode="json"))
    problems = suite_problems("own", read_suites(config)["own"], config, RowReport(0), [])
    row = {"suite": "own", "sample": 0, "finish": "stop", "tokens": 5, "extracted": "1", "wall_s": 0.5, "gpu_s": 1.0}
    lines = (row | {"problem": p.id, "reward": r} for p, r in zip(problems, rewards, strict=True))
    (folder / "responses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_two_finished_evaluations_are_compared_without_asking_anybody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"question": f"q{i}", "answer": "1"}) + "\n" for i in range(6)))
    before = finished(tmp_path / "before", [0, 0, 0, 0, 1, 1], data)
    after = finished(tmp_path / "after", [1, 1, 1, 0, 1, 0], data)
    assert main(["eval", f"model={after}", "--compare", str(before), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    figures = told["suites"]["own"]
    assert (figures["num_problems"], figures["avg_at_k"], figures["greedy_accuracy"]) == (6, 4 / 6, 4 / 6)
    assert figures["tokens_per_s"] == 30 / 3 and figures["gpu_s"] == 6
    one = told["comparison"]["own"]["avg_at_k"]
    assert (one["num_problems"], one["num_better"], one["num_worse"]) == (6, 3, 1)
    assert one["difference"] == pytest.approx(2 / 6) and one["p_value"] == 0.625  # 2 (1 + 4) / 2^4
    assert json.loads((after / "summary.json").read_text()) == told
    assert "| 66.7 [33.3, 100.0] |" in (after / "summary.md").read_text()
    assert main(["eval", f"resume={after}", "--compare", str(before)]) == 0
    assert "+0.333 [" in capsys.readouterr().out
    assert "was asked with eval.temperature=0.0, got 1.0" in refusal(capsys, f"resume={after}", "eval.temperature=1")
    monkeypatch.setenv("HOME", str(tmp_path))
    for words in (["model.path=~/after"], ["resume=~/after"]):
        assert main(["eval", *words, "--compare", "~/before", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == told


@pytest.mark.real
def test_the_shipped_policy_is_evaluated_on_a_file_of_ones_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "chains.jsonl"
    chains = [make_problem(0, i, 6, "held_out") for i in range(16)]
    data.write_text("".join(json.dumps({"question": p.prompt, "answer": p.answer}) + "\n" for p in chains))
    words = ["model=laptop", "suite=own", f"eval.path={data}", "eval.num_samples=4", "eval.temperature=1"]
    words += ["eval.top_p=1", f"run.dir={tmp_path}", "run.name=e", "rollout.max_response_tokens=96"]
    # In a thread that is not the main one, and with a cluster of its own beside another that the environment names.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    words.append("cluster=own")
    with ThreadPoolExecutor(1) as other:
        found = other.submit(capo_ray.evaluate, words).result()
    told = found.suites["own"]
    assert found.directory == tmp_path / "e" and found.comparison == {}
    assert told["num_problems"] == 16 and 0 < told["avg_at_k"] <= told["pass_at_k"]
    assert told["greedy_accuracy"] > told["avg_at_k"] and told["tokens_per_s"] > 0
    assert len((tmp_path / "e" / "responses.jsonl").read_text().splitlines()) == 16 * 5
    capfd.readouterr()
    assert main(["eval", *words, "--json"]) == 0, "the same name goes on, and all is there"
    assert json.loads(capfd.readouterr().out)["suites"]["own"] == told
    assert main(["eval", *words, "--json", "eval.limit=8"]) == 0
    assert json.loads(capfd.readouterr().out)["suites"]["own"]["num_problems"] == 8
