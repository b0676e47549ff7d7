"""Reads the program of a worked problem, and refuses whatever could be read in two ways."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from capo_ray.synthesis.programs import (
    MARK,
    MAX_INPUT,
    MIN_INPUT,
    NUMBER,
    PLAIN,
    STANDS_FOR,
    NoProgram,
    Operand,
    Part,
    Program,
    exact,
)

_PARTS = re.compile(rf"{PLAIN}|[-+*/()]")
_ODD = re.compile(r"\d\s*:\s*\d|\d\s*/\s*\d|\d(?:st|nd|rd|th)\b|\d\s*(?:am|pm|a\.m|p\.m)\b|#\d")


def read_program(question: str, answer: str) -> Program:
    """The program of a row of GSM8K (`answer` ends with `#### N`); raises `NoProgram`."""
    solution, _, final = answer.rpartition("####")
    marks = MARK.findall(solution)
    if not marks or not solution:
        raise NoProgram("no marked calculation")
    if _ODD.search(question):
        raise NoProgram("a time, fraction or ordinal in the question")
    places = _places(question)
    asked = {value for *_, value in places}
    parts, results = list[tuple[Part, ...]](), list[Fraction]()
    for text, told in marks:
        parts.append(_read_mark(text, asked, results))
        results.append(exact(told))
    used = {p.value for mark in parts for p in mark if isinstance(p, Operand) and p.kind == "input"}
    if not used:
        raise NoProgram("no number of the question is calculated with")
    if any(value in asked for value in results):
        raise NoProgram("a result is a number of the question as well")
    if len(set(results)) < len(results):
        raise NoProgram("two results are equal")
    constants = {p.value for mark in parts for p in mark if isinstance(p, Operand) and p.kind == "constant"}
    if "%" in question and any(value.denominator > 1 for value in constants):
        raise NoProgram("a percentage is written as a decimal")
    if constants & set(results):
        raise NoProgram("a constant is a result as well")
    _check_prose(solution, used, set(results))
    program = Program(
        question, solution.strip(), tuple(parts), tuple(results), tuple(p for p in places if p[2] in used)
    )
    if program.run({value: value for value in used}) != program.results:
        raise NoProgram("a marked calculation does not hold")
    if exact(final.strip().replace("$", "")) != results[-1]:
        raise NoProgram("the answer is not the last result")
    return program


def read_programs(name: str, rows: Sequence[tuple[str, str]]) -> list[tuple[str, Program]]:
    """The programs among (question, answer) rows of a named file, each with `name-number` of its row."""
    found = []
    for number, (question, answer) in enumerate(rows):
        try:
            found.append((f"{name}-{number}", read_program(question, answer)))
        except NoProgram:
            continue
    return found


def _places(question: str) -> list[tuple[int, int, Fraction]]:
    """Where the numbers stand that may be replaced."""
    lowered, found = question.lower(), []
    for match in NUMBER.finditer(question):
        value = exact(match[0])
        before, after = question[: match.start()][-1:], question[match.end() :][:2]
        word = STANDS_FOR.get(int(value), "") if value.denominator == 1 else ""
        if "." in match[0] or not MIN_INPUT <= value <= MAX_INPUT or 1900 <= value <= 2100:
            continue
        if before.isalpha() or (after[:1].isalpha() and after[:1] not in "kmgl") or re.match(r"\.\d", after):
            continue
        if word and re.search(word, lowered):
            continue
        found.append((match.start(), match.end(), value))
    return found


def _read_mark(text: str, asked: set[Fraction], results: Sequence[Fraction]) -> tuple[Part, ...]:
    """The parts of a calculation; raises `NoProgram` where something stands there that is no arithmetic."""
    text = text.replace("$", "").replace(" ", "")
    parts: list[Part] = []
    found = _PARTS.findall(text)
    if "".join(found) != text:
        raise NoProgram(f"{text!r} is no plain arithmetic")
    for token in found:
        if token in "+-*/()":
            parts.append(token)
            continue
        value = exact(token)
        if value in results:
            parts.append(Operand("result", value, results.index(value)))
        else:
            parts.append(Operand("input" if value in asked else "constant", value))
    return tuple(parts)


def _check_prose(solution: str, used: set[Fraction], results: set[Fraction]) -> None:
    """Raise where the words of a solution use an input's number for something that its line does not calculate with."""
    for line in solution.splitlines():
        marked = {exact(n) for text, _ in MARK.findall(line) for n in NUMBER.findall(text)}
        words = MARK.sub("", line)
        if any(exact(n) in used - marked for n in NUMBER.findall(words)):
            raise NoProgram("a line speaks of a number that it does not calculate with")
        if any(exact(n) in used - results for n in re.findall(rf"=\s*\$?({PLAIN})", words)):
            raise NoProgram("a calculation that is not marked")
