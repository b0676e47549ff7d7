"""The library does what the commands do, says what they say, and costs nothing until it is used."""

from __future__ import annotations

import ast
import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import capo_ray
from capo_ray import api
from capo_ray.cli import main
from capo_ray.protocols import RunFailed

ROOT = Path(__file__).parents[1]
SAVED = ROOT / "examples" / "saved_rollouts.jsonl"
HEAVY = ("torch", "ray", "vllm", "transformers", "deepspeed", "sympy", "math_verify")


def saved() -> list[dict[str, Any]]:
    return [json.loads(line) for line in SAVED.read_text().splitlines()]


def in_a_new_process(code: str) -> Any:
    """What the code prints, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_import_brings_nothing_and_the_first_name_no_heavy_package() -> None:
    first, then = in_a_new_process(
        "import sys; before = set(sys.modules); import json, capo_ray\n"
        "first = [name for name in set(sys.modules) - before if name.startswith(('capo_ray', 'numpy', 'pydantic'))]\n"
        f"capo_ray.verify; print(json.dumps([first, [name for name in {HEAVY} if name in sys.modules]]))"
    )
    assert first == ["capo_ray"]
    assert then == []


def test_type_checkers_are_told_the_names_that_there_are() -> None:
    stub = ast.parse((ROOT / "capo_ray" / "__init__.pyi").read_text())
    told = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert told == set(capo_ray.__all__) == set(api.__all__) <= set(dir(capo_ray))
    with pytest.raises(AttributeError, match="no attribute 'tain'"):
        capo_ray.tain  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", "import capo_ray.credit.audit; "])
def test_the_room_of_credit_is_called_as_the_function(before: str) -> None:
    code = f"{before}import json, capo_ray; print(json.dumps([g.id for g in capo_ray.credit({saved()!r}, 'grpo')]))"
    assert in_a_new_process(code) == [line["id"] for line in saved()]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, []),
        ({"credit": {"vote": "union", "w_process": 0.5}}, ["credit.vote=union", "credit.w_process=0.5"]),
        (["steps.segmenter=sentence"], ["steps.segmenter=sentence"]),
    ],
)
def test_credit_is_what_the_command_prints(capsys: pytest.CaptureFixture[str], config: Any, words: list[str]) -> None:
    assert main(["credit", "capo", "--input", str(SAVED), "--json", *words]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    credited = capo_ray.credit(saved(), "capo", config)
    for told, ours in zip(printed, credited, strict=True):
        assert told["id"] == ours.id and told["audit"] == ours.audit
        for one, other in zip(told["responses"], ours.responses, strict=True):
            assert other.advantages.tolist() == one["advantages"]
            assert other.token_rewards.tolist() == one["token_rewards"]
            assert [list(span) for span in other.steps] == one["steps"] and list(other.wrong) == one["wrong"]


def test_numbers_may_come_as_arrays() -> None:
    group = saved()[0]
    plain = [{**one, "logprobs": [-0.5] * len(one["tokens"])} for one in group["responses"]]
    arrays = [{**one, "logprobs": np.full(len(one["tokens"]), -0.5)} for one in group["responses"]]
    (first,), (second,) = (capo_ray.credit([{**group, "responses": r}]) for r in (plain, arrays))
    assert first.responses[1].advantages.tolist() == second.responses[1].advantages.tolist()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: capo_ray.credit(saved(), "capoo"), "expected a credit method (capo, "),
        (lambda: capo_ray.credit(saved(), "capo", {"credit": {"vot": "union"}}), "did you mean credit.vote?"),
        (lambda: capo_ray.credit(saved(), "vineppo"), "group 1: "),
        (lambda: capo_ray.credit([saved()[0], {"responses": [object()]}]), "group 2: expected texts, numbers"),
        (lambda: capo_ray.credit([{"responses": [{"text": "a"}]}]), "group 1: responses[0].tokens: expected a list"),
        (lambda: capo_ray.verify([("1", "1"), ("1", 2)]), "pair 2: expected a string in 'response', got int"),
        (lambda: capo_ray.verify([("1", "1"), "ab"]), "pair 2: expected an answer and a response, got 'ab'"),  # type: ignore[list-item]
        (lambda: capo_ray.verify([("1", "1", "2")]), "pair 1: expected an answer and a response"),  # type: ignore[list-item]
        (lambda: capo_ray.verify([("1", "1")], kind="maths"), "verifier.kind=maths is no verifier; did you mean math?"),
        (lambda: capo_ray.critique([{"question": "?"}], {"critic": "calculator"}), "line 1: "),
        (lambda: capo_ray.train({"lerner": {"lr": 1}}), "lerner.lr is no key; did you mean learner.lr?"),
        (lambda: capo_ray.train({"credit": "grpo", "critic.num_votes": 8}), "has no effect with credit=grpo"),
        (lambda: capo_ray.train({"learner": {"lr": "${oc.env:HOME}"}}), "expected a plain value"),
        (lambda: capo_ray.train("model=/nowhere"), "/nowhere"),
        (lambda: capo_ray.evaluate({"model": "laptop"}), "expected suite=NAME"),
    ],
)
def test_what_does_not_fit_is_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(RunFailed) as raised:
        call()
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


def test_verdicts_are_those_of_the_command_in_a_notebook_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pairs = [("1/2", "The answer is 0.5."), (3, "The answer is 4."), (["1", "2"], "The answers are 1 and 2.")]
    lines = [{"answer": answer, "response": response} for answer, response in pairs]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    async def notebook() -> list[Any]:
        return capo_ray.verify(pairs, num_processes=1)

    ours = [{"reward": v.reward, "reason": v.reason, "extracted": v.extracted} for v in asyncio.run(notebook())]
    assert main(["verify", "--input", str(path), "--processes", "1"]) == 0
    assert ours == [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["reward"] for one in ours][:2] == [1, 0]


def test_critiques_are_those_of_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    solutions = [{"question": "2+3?", "steps": ["2+3 = 5", "5+1 = 7"]}, {"question": "2+2?", "steps": ["2+2 = 4"]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in solutions))
    words = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"), "--json"]
    assert main(["critique", *words, "critic=calculator"]) == 0
    printed = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    judged = capo_ray.critique(solutions, {"critic": "calculator"})
    assert (
        [sorted(j.voted(1, "intersection") or ()) for j in judged] == [line["wrong"] for line in printed] == [[1], []]
    )
    assert capo_ray.critique([], {"critic": "calculator"}) == []


@pytest.mark.parametrize("call", [lambda: capo_ray.train(), lambda: capo_ray.evaluate({"suite": "gsm8k"})])
def test_a_run_is_refused_where_an_event_loop_runs(call: Any) -> None:
    async def notebook() -> None:
        call()

    with pytest.raises(RunFailed, match="needs a thread to itself"):
        asyncio.run(notebook())


def test_a_run_is_refused_beside_another_of_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    refused = []

    def run(config: object) -> Path:
        for second in (capo_ray.train, lambda: capo_ray.evaluate({"suite": "gsm8k"})):
            with ThreadPoolExecutor(1) as other, pytest.raises(RunFailed) as caught:
                other.submit(second).result()
            refused.append(str(caught.value))
        return tmp_path

    monkeypatch.setattr("capo_ray.cli.train.train", run)
    for _ in range(2):
        assert capo_ray.train().directory == tmp_path, "the first one's end makes room"
    assert len(refused) == 4 and all("expected no run under way in this process" in sentence for sentence in refused)


def test_a_configuration_is_the_same_by_words_and_as_a_tree() -> None:
    words = ["credit=grpo", "learner.lr=1e-5", "run.num_updates=3", "model.system_prompt=Think: {x}, 'y'", "engine=gpu"]
    tree = {
        "credit": "grpo",
        "learner": {"lr": 1e-5},
        "run.num_updates": 3,
        "model": {"system_prompt": "Think: {x}, 'y'"},
        "engine": "gpu",
    }
    assert capo_ray.compose(tree) == capo_ray.compose(words)
    assert capo_ray.compose(words).learner.lr == 1e-5


@pytest.mark.slow
def test_pieces_join_to_the_text_and_leave_the_tokenizer_as_it_is() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "capo_ray" / "assets" / "chains-policy")
    limit, text = tokenizer.model_max_length, "7*8 = 6\n6+5 = 1\n"
    ids = tokenizer.encode(text)
    pieces = capo_ray.spell(tokenizer, [*ids, tokenizer.eos_token_id])
    assert "".join(pieces) == text and len(pieces) == len(ids) + 1 and pieces[-1] == ""
    assert tokenizer.model_max_length == limit
