r"""What stands in a row: values at paths into nested fields, questions of chats, answers of lists and of boxes.

answer                      a column            answers.0   the first of a list
reward_model.ground_truth   a nested field      prompt      a chat: the text of its one user turn
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Any

from capo_ray.answers import extract_answer, fast_equal
from capo_ray.problems.files import MAX_ROW_BYTES

BOXED = "\\boxed"  # as answer_marker: the answer is the content of the last box, the column the reference solution
HASHES = "####"
WORKED = "solution"  # a whole solution: an answer only where it is marked
QUESTIONS = ("question", "problem", "prompt", "messages", "conversations", "query", "instruction")
SOLUTIONS = (WORKED, "response", "completion", "generation", "output", "messages", "conversations", "answer")
ANSWERS = (
    "answer",
    "final_answer",
    "ground_truth",
    "reward_model.ground_truth",
    "expected_answer",
    "gold_answer",
    "answers",
    "target",
    WORKED,
)
USERS, MODELS, SPEAKERS = ("user", "human"), ("assistant", "gpt"), ("role", "from")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
# What stands between the boxes of one list: marks of mathematics, commas, `and`, `or`, `x_1 =`.
_BETWEEN = re.compile(
    r"(?:[\s,;$.]|\\[()\[\],;]|\\(?:quad|qquad|text|mbox|mathrm)(?![A-Za-z])|[{}]|(?:and|or)(?![A-Za-z])"
    r"|[A-Za-z](?:_\{?\w{1,3}\}?)?\s{0,3}=){0,80}"
)
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)[ \t]{1,4}[^\s{}\\$]{1,64}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_THOUSANDS = re.compile(r"\d,\d{3}(?!\d)")


class BadRow(ValueError):
    """A row that cannot be used; the message says expected and got."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where question and answer stand in the rows of a file, the mark before the answer, and a solution beside it."""

    question: str
    answer: str
    marker: str
    solution: str = ""


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """The value in a column, or at a path into one; raises `BadRow` naming the columns that there are."""
    if path in row:
        return row[path]
    value: Any = row
    for name in path.split("."):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, Sequence) and not isinstance(value, str) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            raise BadRow(f"expected a column {path!r}, got {', '.join(map(repr, column_names(row))) or 'no column'}")
    return value


def column_names(row: Mapping[str, Any]) -> list[str]:
    """The columns of a row as they may be asked for, nested fields by their paths."""
    names = []
    for name, value in row.items():
        if isinstance(value, Mapping) and value:
            names += [f"{name}.{inner}" for inner in value]
        else:
            names.append(str(name))
    return names


def text_of(row: Mapping[str, Any], column: str) -> str:
    """The non-empty text in a column; of a list of answers, all of them; raises `BadRow`."""
    value = value_at(row, column)
    text = answer_text(value)
    if text is None:
        got = repr(value) if isinstance(value, float) else type(value).__name__
        raise BadRow(f"expected text in {column!r}, got {got}")
    return checked(text, column)


def answer_text(value: Any) -> str | None:
    """A text, a number or a list of them as text; None for anything else, a number that is not finite too.

    Tables have NaN where a number is missing.
    """
    if isinstance(value, list | tuple) and value and all(map(_is_plain, value)):
        return join_answers([str(one) for one in value])
    return str(value) if _is_plain(value) else None


def question_of(row: Mapping[str, Any], column: str) -> str:
    """The question in a column: its text, or that of the one user turn of a chat."""
    return _text_or_turn(row, column, USERS, "a problem is one question")


def solution_of(row: Mapping[str, Any], column: str) -> str:
    """What is to be answered: the text in a column, or that of the one assistant turn of a chat."""
    return _text_or_turn(row, column, MODELS, "a lesson is one answer")


def worked_of(row: Mapping[str, Any], column: str) -> str:
    """The solution in a column as `solution_of` reads it; empty for a row that has none."""
    try:
        value = value_at(row, column)
    except BadRow:
        return ""
    return "" if value is None or (isinstance(value, str) and not value.strip()) else solution_of(row, column)


def _text_or_turn(row: Mapping[str, Any], column: str, speakers: Sequence[str], why: str) -> str:
    value, whose = value_at(row, column), speakers[0]
    if not isinstance(value, list):
        return text_of(row, column)
    key = next((key for key in SPEAKERS if all(isinstance(t, Mapping) and key in t for t in value)), None)
    if key is None or not value:
        first = type(value[0]).__name__ if value else "nothing"
        raise BadRow(f"expected text or chat turns in {column!r}, got a list of {first}")
    asked = [turn for turn in value if turn[key] in speakers]
    if len(asked) != 1:
        raise BadRow(f"expected one {whose} turn in {column!r}, got {len(asked)}; {why}")
    content = asked[0].get("content", asked[0].get("value"))
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadRow(f"expected text in the {whose} turn of {column!r}, got {type(content).__name__}")
    return checked(content, column)


def system_of(row: Mapping[str, Any], column: str) -> str:
    """The system turn of a chat in a column; empty where there is none."""
    value = value_at(row, column)
    turns = value if isinstance(value, list) else []
    return next((str(t.get("content", t.get("value"))) for t in turns if _speaker(t) == "system"), "")


def join_answers(answers: Sequence[str]) -> str:
    """Several answers as one list: `4,5`, or `48, 384` where a comma alone would make one number of two."""
    close = ",".join(answers)
    return ", ".join(answers) if _THOUSANDS.search(close) else close


def boxed_answer(text: str) -> str:
    """The answer in the boxes of a solution: one, one said twice, or a list; raises `BadRow` on anything else.

    Boxes are read as the verifier reads those of a response (`\\fbox{4}`, `\\boxed 4`).
    """
    boxes = list(_boxes(text))
    if not boxes:
        raise BadRow(f"expected an answer in {BOXED}{{…}}, got {text[-40:]!r}")
    contents = [content for content, _, _ in boxes]
    if all(content == contents[-1] or fast_equal(content, contents[-1]) is True for content in contents):
        return contents[-1]
    if all(_BETWEEN.fullmatch(text, end, start) for (_, _, end), (_, start, _) in pairwise(boxes)):
        return join_answers(contents)
    raise BadRow(f"expected one answer, got different boxes: {', '.join(contents[:4])[:80]}")


def _boxes(text: str) -> Iterator[tuple[str, int, int]]:
    """Content, start and end of each closed box; of nested ones the inner."""
    starts = [match.start() for match in _BOX.finditer(text)]
    for start, bound in pairwise([*starts, len(text)]):
        end = start + _box_length(text[start:bound])
        if end > start and (content := extract_answer(text[start:end])):
            yield content, start, end


def _box_length(text: str) -> int:
    """The characters of the box at the head of a text; 0 where it is not closed."""
    if bare := _BARE_BOX.match(text):
        return bare.end()
    depth = 0
    for match in _BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0 and match[0] == "}":
            return match.end()
    return 0


def find_layout(row: Mapping[str, Any], question: str, answer: str, marker: str, solution: str = "") -> Layout:
    """The layout of a row: what is given, and for what is not (empty) the first usual column that the row has.

    A solution beside the answer is looked for where the answer is.
    """
    if solution:
        value_at(row, solution)
    question = question or _first_usable(row, QUESTIONS, question_of, "data.question_column")
    if not answer:
        answer = _first_usable(row, ANSWERS, text_of, "data.answer_column")
        marker = marker or _marker_of(text_of(row, answer))
        if answer == WORKED and not marker:
            raise BadRow(f"expected a box or {HASHES} in {answer!r}, got {text_of(row, answer)[-40:]!r}")
        solution = solution or (WORKED if not marker and isinstance(row.get(WORKED), str) else "")
    return Layout(question, answer, marker, solution)


def find_lesson(row: Mapping[str, Any], question: str, solution: str) -> Layout:
    """As `find_layout`, the answer being a whole solution."""
    return Layout(
        question or _first_usable(row, QUESTIONS, question_of, "data.question_column"),
        solution or _first_usable(row, SOLUTIONS, solution_of, "data.solution_column"),
        "",
    )


def _marker_of(text: str) -> str:
    if re.search(r"^#### ?\S", text, re.MULTILINE):
        return HASHES
    return BOXED if _BOX.search(text) else ""


def _first_usable(row: Mapping[str, Any], names: Sequence[str], read: Any, key: str) -> str:
    unfit: BadRow | None = None
    for name in names:
        try:
            read(row, name)
        except BadRow as error:
            unfit = unfit or (error if name in row else None)
            continue
        return name
    if unfit is not None:
        raise BadRow(f"{unfit}; set {key} if it is another")
    there = ", ".join(map(repr, column_names(row))) or "no column"
    raise BadRow(f"expected one of the columns {', '.join(names)}, got {there}; set {key}")


def _speaker(turn: Any) -> Any:
    return next((turn[key] for key in SPEAKERS if key in turn), None) if isinstance(turn, Mapping) else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, float | Decimal):
        return math.isfinite(value)
    return isinstance(value, str | int) and not isinstance(value, bool)


def checked(text: str, column: str) -> str:
    """The text, which must be neither empty, too long nor cut inside a character: no tokenizer takes half of one."""
    if not text.strip():
        raise BadRow(f"expected text in {column!r}, got an empty one")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # as JSON escapes it: \ud83d alone, where a text was cut inside an emoji
        raise BadRow(f"expected text in {column!r}, got half of a character, {text[error.start]!a}") from None
    if len(text) > MAX_ROW_BYTES:
        raise BadRow(f"expected at most {MAX_ROW_BYTES >> 20} MiB of text in {column!r}, got {len(text) / 2**20:.1f}")
    return text
