"""Reads solutions to be judged: rows of our own layout, or of one that step-labelled solutions are published in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from capo_ray.config.steps import NewlineSteps, StepsBase
from capo_ray.critics.layouts import READERS, Solution, layout_of
from capo_ray.protocols import RunFailed
from capo_ray.steps import TextAlone, split_text
from capo_ray.types import Problem

NESTED_STEPS = NewlineSteps()
"""GSM8K's model solutions have one step per line."""


def read_solutions(
    rows: Iterable[tuple[str, dict[str, Any] | str]],
    steps: StepsBase,
    limit: int,
    say: Callable[[str], None],
    *,
    cut_anew: bool = False,
) -> Iterator[Solution]:
    """The solutions in their order, at most `limit` (0: all); raises `RunFailed` naming the line and field at fault.

    A row comes as (`file:line`, the row or why it is none). `say` is told of each layout that is not ours. `cut_anew`:
    `steps` cuts the responses of a transcript, whatever steps it has.
    """
    count, said = 0, set[str]()
    for place, row in rows:
        number = int(place.rpartition(":")[2])
        if isinstance(row, str):
            raise RunFailed(f'line {number}: {row}, with "question" and "steps"; mend or remove the line')
        if (name := layout_of(row)) and name not in said:
            said.add(name)
            say(f"line {number} is read as {name}'s layout")
        try:
            solutions = [READERS[name](row, number)] if name else _ours(row, number, steps, cut_anew)
            for solution in solutions:
                _require_whole_characters(solution)
        except TextAlone as error:
            raise RunFailed(f"line {number}: {error}") from None
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            whose = f"{name}'s layout" if name else "a line as capo-ray critique --help shows"
            said_of = str(error) if isinstance(error, ValueError) else f"expected {whose}, got {error!r}"
            raise RunFailed(f"line {number}: {said_of}; mend or remove the line") from None
        for solution in solutions:
            if limit and count >= limit:
                return
            count += 1
            yield solution


def _require_whole_characters(solution: Solution) -> None:
    """Raises `ValueError` for a text cut inside a character, half of which JSON escapes and no tokenizer takes."""
    for text in (solution.problem.prompt, solution.problem.solution or "", *solution.steps):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            got = f"{text[error.start]!a} in {text[max(0, error.start - 20) : error.end]!a}"
            raise ValueError(f"expected texts of whole characters, got half of one, {got}") from None


def _ours(row: dict[str, Any], number: int, steps: StepsBase, cut_anew: bool) -> list[Solution]:
    question = row.get("question", row.get("problem"))
    if not isinstance(question, str):
        raise ValueError('expected "question" (a text) in the object')
    if isinstance(row.get("responses"), list):
        return [_of_group(row, question, number, response, steps, cut_anew) for response in row["responses"]]
    own = isinstance(row.get("steps"), list) or isinstance(row.get("response"), str)
    return ([] if own else _nested(row, question, number)) or [_plain(row, question, number, steps)]


def _of_group(
    row: dict[str, Any], question: str, number: int, response: Any, steps: StepsBase, cut_anew: bool
) -> Solution:
    """A response of a line of `capo-ray credit`, as a run's transcript is, in its own steps where it has some."""
    if not isinstance(response, dict):
        raise ValueError(f'expected "responses" that are objects, got {type(response).__name__}')
    spans, tokens = None if cut_anew else response.get("steps"), response.get("tokens")
    if spans and isinstance(tokens, list):
        texts = tuple("".join(tokens[start:end]) for start, end in spans)
    elif not spans and isinstance(response.get("text"), str):
        texts = split_text(response["text"], steps)
    else:
        raise ValueError('expected "text", or "tokens" and "steps", in each of the "responses"')
    reward = response.get("reward")
    right = None if reward is None else bool(reward)
    return Solution(number, "transcript", _problem(row, question, number), texts, None, right)


def _problem(row: dict[str, Any], question: str, number: int) -> Problem:
    """What a line of ours, or of a transcript, asks; its number where it has no id."""
    solution = row.get("solution")
    worked = solution if isinstance(solution, str) else None
    return Problem(str(row.get("id", number)), question, str(row.get("answer", "")), worked)


def _nested(row: dict[str, Any], question: str, number: int) -> list[Solution]:
    """The solutions of a line in GSM8K's shape: `{"<model>": {"solution": …, "is_correct": …}, …}`; else none."""
    truth = row.get("ground_truth")
    problem = Problem(str(number), question, _answer(truth), truth if isinstance(truth, str) else None)
    return [
        Solution(
            number,
            name,
            problem,
            split_text(value["solution"].strip(), NESTED_STEPS),
            None,
            value["is_correct"] if isinstance(value.get("is_correct"), bool) else None,
        )
        for name, value in row.items()
        if isinstance(value, dict) and isinstance(value.get("solution"), str)
    ]


def _answer(truth: object) -> str:
    return truth.rpartition("A:")[2].strip() if isinstance(truth, str) else ""


def _plain(row: dict[str, Any], question: str, number: int, steps: StepsBase) -> Solution:
    given = row.get("steps")
    if isinstance(given, list) and given:
        if not all(isinstance(step, str) for step in given):  # another cut of "response" would have other indices
            raise ValueError('expected "steps" that are all texts')
        cut = tuple(given)
    elif isinstance(row.get("response"), str):
        cut = split_text(row["response"], steps)
    else:
        raise ValueError('expected "response" (a text) or "steps" (texts)')
    wrong = row.get("wrong_steps")
    if wrong is not None and not (
        isinstance(wrong, list) and all(type(step) is int and 0 <= step < len(cut) for step in wrong)
    ):
        raise ValueError(
            f'"wrong_steps" must be indices in 0..{len(cut) - 1} of the {len(cut)} steps (got '
            f"{str(wrong)[:60]}); steps are cut by steps.segmenter={steps.segmenter}"
        )
    return Solution(
        number,
        str(row.get("source", "")),
        _problem(row, question, number),
        cut,
        None if wrong is None else frozenset(wrong),
        row["is_correct"] if isinstance(row.get("is_correct"), bool) else None,
    )
