"""`capo-ray credit`: lines in, credit out; a line that does not fit is named and the others are still done."""

import argparse
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validate

from capo_ray.cli import READER_GONE
from capo_ray.cli import credit as command
from capo_ray.cli.credit_paint import Canvas, paint_group
from capo_ray.config.base import RuleError
from capo_ray.config.credit import CREDIT_METHODS, CapoConfig, GrpoConfig
from capo_ray.config.steps import DEFAULT_STEPS
from capo_ray.credit import assign_credit
from capo_ray.credit.grpo import grpo
from capo_ray.evidence.offline import assign, build_config, credit_of_line, read_group
from capo_ray.metrics.transcripts import group_line
from capo_ray.protocols import RunFailed
from capo_ray.steps.visible import visible
from capo_ray.types import Group, GroupCredit, Problem
from tests.credit_groups import Member, judged

RIGHT: dict[str, Any] = {"text": "aaaa", "tokens": list("aaaa"), "reward": 1, "flagged": [[]]}
WRONG: dict[str, Any] = {
    "text": "aa\n\nbbb",
    "tokens": ["a", "a", "\n\n", "b", "b", "b"],
    "reward": 0,
    "flagged": [[1]],
}
WORKED: dict[str, Any] = {"id": "w", "question": "q", "answer": "1", "responses": [RIGHT, WRONG]}

NUMBERS = {"type": "array", "items": {"type": "number"}}
SCHEMA = {
    "type": "object",
    "required": ["id", "responses", "audit"],
    "properties": {
        "audit": {"type": "object", "additionalProperties": {"type": "number"}},
        "responses": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["steps", "wrong", "token_rewards", "advantages", "valid_critiques"],
                "properties": {"wrong": NUMBERS, "token_rewards": NUMBERS, "advantages": NUMBERS},
            },
        },
    },
}


def run(tmp_path: Path, lines: list[Any], *words: str, method: str = "capo") -> int:
    path = tmp_path / "groups.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return call(method, "--input", str(path), *words)


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.run(parser.parse_intermixed_args(words))


def test_worked_group_of_the_paper_comes_out_as_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, [WORKED], "--json") == 0
    out = json.loads(capsys.readouterr().out)
    validate(out, SCHEMA)
    right, wrong = out["responses"]
    assert wrong["steps"] == [[0, 3], [3, 6]]
    assert wrong["wrong"] == [0.0, 1.0]
    assert wrong["token_rewards"] == [0, 0, 0, -1, -1, -1]
    assert right["advantages"] == pytest.approx([1.168] * 4, abs=5e-4)
    assert wrong["advantages"] == pytest.approx([-0.389] * 3 + [-1.168] * 3, abs=5e-4)
    assert [r["valid_critiques"] for r in out["responses"]] == [1, 1]


def test_steps_that_a_line_gives_are_taken_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {**WRONG, "steps": [[0, 1], [1, 5], [5, 6]]}
    assert run(tmp_path, [{**WORKED, "responses": [RIGHT, told]}], "--json") == 0
    wrong = json.loads(capsys.readouterr().out)["responses"][1]
    assert wrong["steps"] == told["steps"] and wrong["token_rewards"] == [0, -1, -1, -1, -1, 0]


@pytest.mark.parametrize(
    "steps", [[[0, 3]], [[0, 3], [2, 6]], [[0, 6], [6, 6]], [[0, 6.0]], [0, 6], "0-6", [[1, 6]], []]
)
def test_steps_that_do_not_tile_the_tokens_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: object
) -> None:
    assert run(tmp_path, [{**WORKED, "responses": [RIGHT, {**WRONG, "steps": steps}]}], "--json") == 1
    assert "responses[1].steps: expected pairs [start, end) that tile the 6 tokens" in capsys.readouterr().err


def test_raw_critic_texts_are_parsed_and_unreadable_ones_abstain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    response = {key: value for key, value in WRONG.items() if key != "flagged"}
    response["critiques"] = ["Judgement: No\n<incorrect_steps><step_1></incorrect_steps>", "no idea"]
    assert run(tmp_path, [{**WORKED, "responses": [RIGHT, response]}], "--json") == 0
    wrong = json.loads(capsys.readouterr().out)["responses"][1]
    assert (wrong["wrong"], wrong["valid_critiques"]) == ([0.0, 1.0], 1)


def test_overrides_are_the_training_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = {**WRONG, "flagged": [[1], [0]]}
    group = {**WORKED, "responses": [RIGHT, split]}
    assert run(tmp_path, [group], "--json", "credit.vote=union", "credit.w_whole=3", "credit.w_process=0.5") == 0
    right, wrong = json.loads(capsys.readouterr().out)["responses"]
    assert right["token_rewards"] == [3.0] * 4
    assert wrong["token_rewards"] == [-0.5] * 6


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"text": "aaab"}, "tokens"),
        ({"text": None}, "text"),
        ({"tokens": "aaaa"}, "tokens"),
        ({"tokens": [97, 97]}, "tokens"),
        ({"reward": 0.5}, "reward"),
        ({"reward": True}, "reward"),
        ({"reward": "1"}, "reward"),
        ({"flagged": [["0"]]}, "flagged[0]"),
        ({"flagged": {}}, "flagged"),
        ({"critiques": []}, "flagged"),
        ({"overall": [1]}, "overall"),
        ({"entropies": [1.0]}, "entropies"),
        ({"token_rewards": [1e999]}, "the line"),
        ({"token_rewards": [1e101, 0, 0, 0]}, "token_rewards"),
        ({"token_rewards": [10**400, 0, 0, 0]}, "token_rewards"),
        ({"answer_logprobs": [-1, 0.5]}, "answer_logprobs"),
    ],
)
def test_a_field_that_does_not_fit_is_named_and_the_other_lines_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], field: str
) -> None:
    bad = {**WORKED, "responses": [WRONG, {**RIGHT, **change}]}
    assert run(tmp_path, [WORKED, bad, "\n", WORKED], "--json") == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert captured.err.startswith("capo-ray credit: line 2: ")
    assert f"responses[1].{field}: expected" in captured.err or field == "the line"


@pytest.mark.parametrize("missing", ["reward", "tokens", "text", "flagged"])
def test_a_missing_field_is_not_an_empty_one(tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str) -> None:
    response = {key: value for key, value in RIGHT.items() if key != missing}
    assert run(tmp_path, [{**WORKED, "responses": [response]}], "--json") == 1
    assert f"responses[0].{'critiques' if missing == 'flagged' else missing}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{\n", "JSON"),
        ("[1]\n", "a JSON object"),
        ('{"id": "x", "responses": []}\n', "responses"),
        ('{"responses": [1]}\n', "id"),
        ('{"id": "x", "responses": [1]}\n', "responses[0]"),
        ("[" * 100_000 + "\n", "JSON"),
        ('{"id": NaN}\n', "NaN"),
    ],
)
def test_a_line_that_is_no_group_is_refused_with_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    assert run(tmp_path, [line, WORKED], "--json") == 1
    captured = capsys.readouterr()
    assert "line 1: " in captured.err and words in captured.err
    assert json.loads(captured.out)["id"] == "w"


def test_a_value_that_can_be_read_and_is_too_deep_to_be_written_is_refused_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = sys.getrecursionlimit()
    values = ("[" * depth + "]" * depth for depth in range(limit - 200, limit))
    lines = [f'{{"id": 1, "responses": [{{"text": {value}}}]}}\n' for value in values]
    assert run(tmp_path, [*lines, WORKED], "--json") == 1
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == len(lines)
    assert json.loads(captured.out)["id"] == "w"


def test_a_field_given_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = json.dumps(WORKED).replace('"reward": 1', '"reward": 1, "reward": 0')
    assert run(tmp_path, [line + "\n", WORKED], "--json") == 1
    captured = capsys.readouterr()
    assert 'line 1: expected one JSON object per line, got something else: the field "reward" twice' in captured.err
    assert len(captured.out.splitlines()) == 1


def test_weights_that_overflow_are_refused_line_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {**WORKED, "responses": [RIGHT, {**WRONG, "reward": None}]}
    assert run(tmp_path, [WORKED, other], "--json", "credit.w_whole=1.7e308") == 1
    assert [line[:24] for line in capsys.readouterr().err.splitlines()] == [
        f"capo-ray credit: line {i}:" for i in (1, 2)
    ]


def test_flags_without_overall_verdicts_are_refused_where_these_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {**WORKED, "responses": [{**RIGHT, "overall": [True]}, WRONG]}
    good = {**WORKED, "responses": [{**RIGHT, "overall": [True]}, {**WRONG, "overall": [None]}]}
    assert run(tmp_path, [bad, good], "--json", method="grpo_genorm") == 1
    captured = capsys.readouterr()
    assert "line 1: responses[1].overall: expected 1 of true, false or null" in captured.err
    assert len(captured.out.splitlines()) == 1


def test_trust_in_verdicts_asks_each_critique_for_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {**WORKED, "responses": [RIGHT, {**WRONG, "overall": [False]}]}
    bare = {**WORKED, "responses": [{**RIGHT, "overall": [True]}, WRONG]}
    told["responses"][0] = bare["responses"][0]
    assert run(tmp_path, [bare, told], "--json", "credit.trust=verdict", method="cliff") == 1
    captured = capsys.readouterr()
    assert "line 1: responses[1].overall: expected 1 of true, false or null" in captured.err
    assert len(captured.out.splitlines()) == 1
    assert run(tmp_path, [bare], "--json", method="cliff") == 0, "nobody reads them"


def failing_rule(group: Group, config: GrpoConfig, progress: float) -> GroupCredit:
    """GRPO's, which fails where nothing is right."""
    if not any(member.verdict.reward for member in group.members):
        raise KeyError("no right one")
    return grpo(group, config, progress)


def test_the_line_on_which_a_rule_fails_is_said_with_the_lines_before_it_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capo_ray.credit.table.rule_of", lambda kind: failing_rule)
    lines = [WORKED, {**WORKED, "responses": [WRONG, WRONG]}, WORKED]
    with pytest.raises(RuleError, match=r"^line 2: GrpoConfig \(.*\) raised KeyError: 'no right") as caught:
        run(tmp_path, lines, "--json", method="grpo")
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert "failing_rule" in {entry.name for entry in caught.traceback}


def test_a_byte_order_mark_before_the_first_line_is_none_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "groups.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(WORKED).encode() + b"\r\n")
    assert call("capo", "--input", str(path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["id"] == "w"


def test_bytes_that_are_no_text_are_refused_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "groups.jsonl"
    path.write_bytes(b"\xff\xfe\n" + json.dumps(WORKED).encode() + b"\n")
    assert call("capo", "--input", str(path), "--json") == 1
    captured = capsys.readouterr()
    assert "UTF-8" in captured.err
    assert len(captured.out.splitlines()) == 1


def test_invalid_verdicts_need_no_evidence_and_get_zeros(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    invalid = {"text": "a", "tokens": ["a"], "reward": None}
    assert run(tmp_path, [{**WORKED, "responses": [RIGHT, invalid, WRONG]}], "--json") == 0
    responses = json.loads(capsys.readouterr().out)["responses"]
    assert responses[1]["advantages"] == [0.0]
    assert responses[1]["included"] is False
    assert responses[0]["advantages"] == pytest.approx([1.168] * 4, abs=5e-4)


def test_a_flag_on_a_step_that_is_not_there_abstains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = {**WORKED, "responses": [RIGHT, {**WRONG, "flagged": [[7], None, [1]]}]}
    assert run(tmp_path, [group], "--json") == 0
    wrong = json.loads(capsys.readouterr().out)["responses"][1]
    assert (wrong["wrong"], wrong["valid_critiques"]) == ([0.0, 1.0], 1)


def test_standard_input_is_a_dash(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(WORKED)))
    assert call("grpo", "--input", "-", "--json") == 0
    assert json.loads(capsys.readouterr().out)["responses"][0]["advantages"] == pytest.approx([1.0] * 4)


def test_closed_standard_input_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(RunFailed, match="standard input"):
        call("grpo", "--input", "-")


def test_no_line_at_all_is_not_a_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, []) == 1
    assert "got no line" in capsys.readouterr().err


def test_painted_text_shows_steps_and_cannot_move_the_cursor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = {**RIGHT, "text": "\x1b[2J!", "tokens": ["\x1b[2J", "!"]}
    assert run(tmp_path, [{**WORKED, "responses": [hostile, WRONG]}]) == 0
    out = capsys.readouterr().out
    assert "\x1b[2J" not in out
    assert "\\x1b[2J!" in out
    assert "step 1  wrong 1.00" in out
    assert visible("a\n\u202e\x07") == "a⏎\\u202e\\x07"
    assert visible("a\u2028b\u2029") == "a\\u2028b\\u2029"


def paint(path: Path, stdout: Any, **env: str) -> subprocess.CompletedProcess[bytes]:
    words = [sys.executable, "-m", "capo_ray", "credit", "capo", "--input", str(path)]
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env}
    return subprocess.run(words, stdout=stdout, stderr=subprocess.PIPE, env=where, timeout=60, check=False)


@pytest.mark.slow
def test_a_terminal_without_a_character_is_shown_its_code(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    path.write_text(json.dumps(WORKED))
    done = paint(path, subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"aa\\u23ce\\u23ce" in done.stdout


@pytest.mark.slow
def test_a_reader_who_leaves_is_no_refused_line(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    path.write_text(json.dumps(WORKED))
    reader, writer = os.pipe()
    os.close(reader)
    done = paint(path, writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (READER_GONE, b"")


@pytest.mark.parametrize(
    "words", [["vote=union"], ["credit.vot=union"], ["credit.vote=most"], ["credit.w_whole=-1"], ["--progress", "2"]]
)
def test_an_override_that_is_none_is_refused_in_a_sentence(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(RunFailed, match=r"credit|progress"):
        run(tmp_path, [WORKED], *words)


def test_a_missing_file_is_refused_in_a_sentence() -> None:
    with pytest.raises(RunFailed, match="no-such-file"):
        call("capo", "--input", "no-such-file")


@pytest.mark.parametrize("method", sorted(CREDIT_METHODS))
def test_every_method_runs_offline_on_a_line_with_its_evidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    responses = [
        {
            **r,
            "overall": [True],
            "answer_logprobs": [-1.0] * k,
            "step_values": [0.5] * k,
            "token_rewards": [0.1] * t,
            "logprobs": [-0.7] * t,
            "hinted_logprobs": [-0.5] * t,
        }
        for r, k, t in ((RIGHT, 2, 4), (WRONG, 3, 6))
    ]
    words = ["steps.segmenter=blank_line"]
    if method == "gigpo":  # its steps are turns
        words, acted = [], ([[0, 4]], [[0, 2], [3, 6]])
        turns = [{"acted": spans, "turns": [["start", 0, True]] * len(spans)} for spans in acted]
        responses = [{**r, **of_turns} for r, of_turns in zip(responses, turns, strict=True)]
    line = {**WORKED, "responses": responses}
    if method == "eapo":  # its first step is what is quoted
        words, line = (
            [],
            {"id": 1, "question": "[1] a\n?", "responses": [{**r, "evidence_score": 0.5} for r in responses]},
        )
    assert run(tmp_path, [line], "--json", *words, method=method) == 0
    validate(json.loads(capsys.readouterr().out), SCHEMA)


def test_hinted_logprobs_are_compared_with_the_plain_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hinted = [{**r, "hinted_logprobs": [-0.5] * t} for r, t in ((RIGHT, 4), (WRONG, 6))]
    plain = [{**r, "logprobs": [-0.6] * t} for r, t in zip(hinted, (4, 6), strict=True)]
    lines = [{**WORKED, "responses": hinted}, {**WORKED, "responses": plain}]
    assert run(tmp_path, lines, "--json", method="rlsd") == 1
    captured = capsys.readouterr()
    assert "line 1: responses[0].logprobs: expected 4 numbers beside hinted_logprobs" in captured.err
    (row,) = map(json.loads, captured.out.splitlines())
    # e^0.1 of the right one's size, e^-0.1 of the wrong one's, half of each
    assert row["responses"][0]["advantages"] == pytest.approx([0.5 + 0.5 * 1.1051709] * 4)
    assert row["responses"][1]["advantages"] == pytest.approx([-(0.5 + 0.5 * 0.9048374)] * 6)


# One right answer and two wrong ones: of two votes one flags the second step of the first, and none any of the other.
FIRST_ERRORS: dict[str, Any] = {
    "id": "f",
    "question": "q",
    "responses": [
        {**RIGHT, "flagged": [[], []]},
        {**WRONG, "flagged": [[1], []]},
        {"text": "ccc", "tokens": list("ccc"), "reward": 0, "flagged": [[], []]},
    ],
}


def test_cliff_offline_believes_the_critic_and_blames_from_the_first_step_that_half_of_its_votes_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alike = {**FIRST_ERRORS, "responses": FIRST_ERRORS["responses"][1:]}
    assert run(tmp_path, [FIRST_ERRORS, alike], "--json", method="cliff") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    # mu 1/3, sigma sqrt(2)/3: A+ sqrt 2, A- -1/sqrt 2; over 4 + 3 + 3 + 3 tokens 4 A+ + 3 * 0 + 6 A- = sqrt 2, of 13
    good, bad, middle = 2**0.5, -(0.5**0.5), 2**0.5 / 13
    right, slipped, unseen = (r["advantages"] for r in first["responses"])
    assert right == pytest.approx([good - middle] * 4)
    assert slipped == pytest.approx([-middle] * 3 + [bad - middle] * 3)
    assert unseen == pytest.approx([bad - middle] * 3)
    assert [r["advantages"] for r in second["responses"]] == [[0.0] * 6, [0.0] * 3]


def test_cliff_offline_blames_the_whole_of_a_response_that_was_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = [{**WORKED, "responses": [RIGHT, {**WRONG, "finish": how}]} for how in ("stop", "length", "cut", None)]
    assert run(tmp_path, ends, "--json", method="cliff") == 1
    captured = capsys.readouterr()
    whole, cut = (json.loads(line)["responses"][1]["advantages"] for line in captured.out.splitlines())
    # A+ 1, A- -1 over 4 + 3 + 3 tokens: a mean of .1 with the prefix at 0, of -.2 without
    assert whole == pytest.approx([-0.1] * 3 + [-1.1] * 3) and cut == pytest.approx([-0.8] * 6)
    assert captured.err.count("responses[1].finish: expected stop or length") == 2


def test_vppo_offline_shortens_a_good_prefix_by_the_tokens_that_the_prompt_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{**FIRST_ERRORS, "prompt_tokens": count} for count in (0, 1, 1.0, -1, True)]
    assert run(tmp_path, [FIRST_ERRORS, *lines], "--json", method="vppo") == 1
    captured = capsys.readouterr()
    told, whole, shortened = (json.loads(line)["responses"] for line in captured.out.splitlines())
    # scores 1, .5 * 3/6 and 0: mean 5/12; with two tokens left of the prefix 1, .5 * 2/6 and 0: mean 7/18
    assert whole[1]["advantages"] == pytest.approx([1 / 12] * 3 + [-5 / 12] * 3) and told == whole
    assert shortened[1]["advantages"] == pytest.approx([1 / 9] * 2 + [-7 / 18] * 4)
    assert [r[0]["advantages"][0] for r in (whole, shortened)] == pytest.approx([7 / 12, 11 / 18])
    assert captured.err.count("prompt_tokens: expected a whole number") == 3


@pytest.mark.parametrize(
    "method",
    ["vppo", "vppo shorten_tokens=1", "cliff", "cliff prefix_frac=0.5", "cliff trust=verdict",
     "capo w_format=0.2", "grpo w_format=0.2", "grpo_genorm w_format=0.2", "pure"],
)  # fmt: skip
def test_a_transcript_of_a_run_is_credited_again_to_the_same_numbers(method: str) -> None:
    """Prompts of two tokens; answers cut off, of no format, without a verdict, with critiques that cannot be read."""
    name, *words = method.split()
    config = build_config(name, [f"credit.{word}" for word in words])
    made = Group(
        7,
        Problem("p", "q", "1"),
        tuple(
            judged(member, i)
            for i, member in enumerate(
                [
                    Member(1, [2, 3], [[], [0]], [True, False]),
                    Member(0, [4, 3], [[1], None], [False, None]),
                    Member(0, [4, 3], [[1], [1]], [False, False], extracted=None, finish="length"),
                    Member(None, [2, 2], [[0], [0]], [False, False], extracted=None),
                    Member(0, [5], [None, None], [None, None]),
                ]
            )
        ),
    )
    credit = assign_credit(made, config)
    told = credit_of_line(json.dumps(group_line(1, made, credit)), config)["responses"]
    assert [r["advantages"] for r in told] == [list(row) for row in credit.advantages] and credit.has_signal
    assert [r["token_rewards"] for r in told] == [list(row) for row in credit.token_rewards]
    assert [r["valid_critiques"] for r in told] == list(credit.valid_critiques)


@pytest.mark.parametrize("method", ["capo", "grpo", "grpo_genorm"])
def test_a_line_must_say_what_was_extracted_where_the_format_is_rewarded(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {**WORKED, "responses": [{**one, "overall": [None]} for one in (RIGHT, WRONG)]}
    assert run(tmp_path, [line], "--json", "credit.w_format=0.2", method=method) == 1
    assert "responses[0].extracted: expected the extracted answer or null, which" in capsys.readouterr().err


def test_offline_credit_cuts_steps_as_a_run_of_the_method_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.build_steps("acpo", []).segmenter == "entropy"
    assert run(tmp_path, [WORKED], "--json", "steps=newline") == 0
    assert [r["steps"] for r in json.loads(capsys.readouterr().out)["responses"]] == [[[0, 4]], [[0, 3], [3, 6]]]
    for words, answer in (
        ("steps.thinking=leave_out", "cut it in the file"),
        ("steps.window=3", "no key of steps=blank_line"),
        ("credit.segmenter=newline", "is steps.segmenter now; write steps.segmenter=…"),
    ):
        with pytest.raises(RunFailed, match=re.escape(answer)):
            run(tmp_path, [WORKED], words)


def test_hint_gains_of_a_transcript_are_read_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gained = [{**r, "hint_gains": [0.1] * t} for r, t in ((RIGHT, 4), (WRONG, 6))]
    assert run(tmp_path, [{**WORKED, "responses": gained}], "--json", method="rlsd") == 0
    right, wrong = json.loads(capsys.readouterr().out)["responses"]
    assert right["advantages"] == pytest.approx([0.5 + 0.5 * 1.1051709] * 4)  # e^0.1
    assert wrong["advantages"] == pytest.approx([-(0.5 + 0.5 * 0.9048374)] * 6)


def test_entropy_segmenter_without_entropies_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, [WORKED], "--json", "steps.segmenter=entropy") == 1
    assert "responses[0].entropies" in capsys.readouterr().err


@pytest.mark.parametrize("system", ["standard", "256", "truecolor"])
def test_praise_and_blame_differ_by_more_than_grey_in_few_colours(system: str) -> None:
    name, group = read_group(json.dumps(WORKED), CapoConfig(), "paper", DEFAULT_STEPS)
    stream = io.StringIO()
    console = Canvas(file=stream, force_terminal=True, color_system=system, width=200)  # type: ignore[arg-type]
    paint_group(console, str(name), group, *assign(group, CapoConfig(), 0.0))
    lines = {line.split()[1]: line for line in stream.getvalue().splitlines() if "step" in line}
    if system == "standard":  # codes of 16 colours: 41 a red, 42 a green background, 31 red letters
        assert "\x1b[30;42ma" in stream.getvalue(), "praise is on green"
        assert "\x1b[37;41mb" in stream.getvalue(), "the flagged step is on red"
        assert "\x1b[31ma" in stream.getvalue(), "the weaker blame of the other step is red letters"
    else:
        assert "48;" in stream.getvalue()
    assert len(lines) == 2
