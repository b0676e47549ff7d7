"""One line of `groups.jsonl` becomes a judged group; what does not fit is refused with the field at fault.

Invariant: nothing is guessed. A missing field is not an empty one; text that its tokens do not spell is not trimmed.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np

from capo_ray.config.credit import CreditBase
from capo_ray.config.steps import StepsBase
from capo_ray.evidence import FieldError, ResponseLine, read_evidence, read_numbers, refuse, show
from capo_ray.steps import SpanError, split_steps
from capo_ray.types import Completion, Group, Judged, Problem, Trajectory, TrajectoryKey, Verdict, VersionRun


def read_group(line: str, config: CreditBase, rubric: str, steps: StepsBase) -> tuple[str | int, Group]:
    """The id and the group of one line; raises `FieldError`."""
    try:
        data = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_to_object)
    except (ValueError, RecursionError) as error:
        raise FieldError(f"expected one JSON object per line, got something else: {error}") from None
    if not isinstance(data, dict):
        refuse("the line", "a JSON object", data)
    name = data.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int):
        refuse("id", "a string or an integer", name)
    for field in ("question", "answer"):
        if not isinstance(data.get(field, ""), str):
            refuse(field, "a string", data[field])
    responses = data.get("responses")
    if not isinstance(responses, list) or not responses:
        refuse("responses", "a list of at least one response", responses)
    members = [_read_response(item, i, str(name), config, rubric, steps) for i, item in enumerate(responses)]
    problem = Problem(str(name), data.get("question", ""), data.get("answer", ""))
    return name, Group(0, problem, tuple(members))


def _read_response(item: Any, index: int, name: str, config: CreditBase, rubric: str, segmenter: StepsBase) -> Judged:
    where = f"responses[{index}]"
    if not isinstance(item, dict):
        refuse(where, "an object", item)
    response = _read_tokens(item, where)
    entropies = read_numbers(item, "entropies", len(response.token_ids), where)
    if "entropies" in segmenter.reads and len(response.token_ids) and not entropies and "logprobs" not in item:
        wanted = f"{len(response.token_ids)} numbers (or logprobs), which steps.segmenter={segmenter.segmenter} reads"
        refuse(f"{where}.entropies", wanted, None)
    try:
        steps = split_steps(replace(response, entropies=np.array(entropies)), segmenter)
    except SpanError as error:
        raise FieldError(f"{where}.tokens: {error}") from None
    reward = _read_reward(item, where)
    line = ResponseLine(item, where, config.method, rubric, response, steps, valid=reward is not None)
    evidence = read_evidence(line, config)
    verdict = Verdict(reward, "given" if reward is not None else "invalid", _read_extracted(item, where, config))
    return Judged(Trajectory(TrajectoryKey(name, 0, index), np.empty(0, np.int32), response), verdict, steps, evidence)


def _read_tokens(item: dict[str, Any], where: str) -> Completion:
    """The response: its text, and the characters that each token contributes."""
    text, tokens = item.get("text"), item.get("tokens")
    if not isinstance(text, str):
        refuse(f"{where}.text", "a string", text)
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        refuse(f"{where}.tokens", "a list of strings", tokens)
    if "".join(tokens) != text:
        raise FieldError(
            f"{where}.tokens: expected strings whose concatenation is text ({len(text)} characters), got "
            f"{len(''.join(tokens))} characters that differ from it"
        )
    ends, total = [], 0
    for token in tokens:
        total += len(token)
        ends.append(total)
    count = len(tokens)
    logprobs = read_numbers(item, "logprobs", count, where) or (math.nan,) * count
    runs = (VersionRun(0, count),)
    return Completion(np.arange(count), np.array(logprobs), np.array(ends), text, runs, "stop")


def _read_reward(item: dict[str, Any], where: str) -> int | None:
    reward = item.get("reward", "nothing")
    if reward is None:
        return None
    if isinstance(reward, bool) or not isinstance(reward, int | float) or reward not in (0, 1):
        refuse(f"{where}.reward", "1, 0 or null (invalid)", reward)
    return int(reward)


def _read_extracted(item: dict[str, Any], where: str, config: CreditBase) -> str | None:
    """The answer that the verifier extracted; it must be told where a format reward depends on it."""
    extracted = item.get("extracted")
    if extracted is not None and not isinstance(extracted, str):
        refuse(f"{where}.extracted", "a string or null", extracted)
    if config.reads_extracted and "extracted" not in item:
        refuse(f"{where}.extracted", "the extracted answer or null, which credit.w_format reads", None)
    return extracted


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a line; a field given twice is refused, since the first one would be lost."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the field {show(key)} twice")
        result[key] = value
    return result
