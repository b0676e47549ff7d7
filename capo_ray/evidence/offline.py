"""Credit without a run: one line of `groups.jsonl` becomes a judged group, and that its credit.

What does not fit is refused with the field at fault.

Invariant: nothing is guessed. A missing field is not an empty one; text that its tokens do not spell is not trimmed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, NoReturn, get_args

import numpy as np
from pydantic import ValidationError

from capo_ray.arrays import IntArray, Runs
from capo_ray.config.credit import CREDIT_METHODS, CreditBase
from capo_ray.config.steps import DEFAULT_STEPS, StepsBase
from capo_ray.credit import assign_credit, audit
from capo_ray.evidence import FieldError, ResponseLine, read_evidence, read_numbers, refuse, show
from capo_ray.steps import SpanError, split_steps
from capo_ray.types import (
    Completion,
    Finish,
    Group,
    GroupCredit,
    Judged,
    Problem,
    Span,
    Trajectory,
    TrajectoryKey,
    Verdict,
    VersionRun,
)

MAX_PROMPT_TOKENS = 1 << 24
FINISHES: tuple[Finish, ...] = get_args(Finish)


def read_group(
    line: str, config: CreditBase, rubric: str, steps: StepsBase, *, cut_anew: bool = False
) -> tuple[str | int, Group]:
    """The id and the group of one line; raises `FieldError`.

    Steps that the line gives are its steps, unless `cut_anew`; else `steps` cuts.
    """
    try:
        data = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_to_object)
    except (ValueError, RecursionError) as error:
        raise FieldError(f"expected one JSON object per line, got something else: {error}") from None
    if not isinstance(data, dict):
        refuse("the line", "a JSON object", data)
    name = data.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int):
        refuse("id", "a string or an integer", name)
    for field in ("question", "answer", "solution"):
        if not isinstance(data.get(field, ""), str):
            refuse(field, "a string", data[field])
    responses = data.get("responses")
    if not isinstance(responses, list) or not responses:
        refuse("responses", "a list of at least one response", responses)
    if cut_anew:
        responses = [
            {k: v for k, v in one.items() if k != "steps"} if isinstance(one, dict) else one for one in responses
        ]
    prompt = np.zeros(_read_count(data, "prompt_tokens"), np.int32)  # how many they are is all that a rule may read
    members = [_read_response(item, i, str(name), prompt, config, rubric, steps) for i, item in enumerate(responses)]
    problem = Problem(str(name), data.get("question", ""), data.get("answer", ""), data.get("solution"))
    return name, Group(0, problem, tuple(members))


def _read_count(data: dict[str, Any], field: str) -> int:
    """A number of tokens; 0 where the line has none."""
    count = data.get(field, 0)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_PROMPT_TOKENS:
        refuse(field, f"a whole number from 0 to {MAX_PROMPT_TOKENS}", count)
    return count


def _read_response(
    item: Any,
    index: int,
    name: str,
    prompt: IntArray,
    config: CreditBase,
    rubric: str,
    segmenter: StepsBase,
) -> Judged:
    where = f"responses[{index}]"
    if not isinstance(item, dict):
        refuse(where, "an object", item)
    response = _read_tokens(item, where)
    steps = _read_steps(item, where, response) or _split(item, where, response, segmenter)
    reward = _read_reward(item, where)
    line = ResponseLine(item, where, config.method, rubric, response, steps, valid=reward is not None)
    evidence = read_evidence(line, config)
    verdict = Verdict(reward, "given" if reward is not None else "invalid", _read_extracted(item, where, config))
    return Judged(Trajectory(TrajectoryKey(name, 0, index), prompt, response), verdict, steps, evidence)


def _read_steps(item: dict[str, Any], where: str, response: Completion) -> tuple[Span, ...]:
    """The spans [start, end) of tokens that the line itself gives, as transcripts do; () where it gives none."""
    count = len(response.token_ids)
    words = f"pairs [start, end) that tile the {count} tokens in order"
    words += ", each with a sampled token" if response.acted else ""
    steps = _read_spans(item, "steps", where, words, count)
    ends = [0, *(end for _, end in steps)]
    bare = any(start == end for start, end in response.sampled_only(steps)[1])
    if (
        "steps" in item
        and item["steps"] is not None
        and ([a for a, _ in steps] != ends[:-1] or ends[-1] != count or bare)
    ):
        refuse(f"{where}.steps", words, item["steps"])
    return steps


def _split(item: dict[str, Any], where: str, response: Completion, segmenter: StepsBase) -> tuple[Span, ...]:
    """The steps as the segmenter cuts them."""
    entropies = read_numbers(item, "entropies", len(response.token_ids), where)
    if "entropies" in segmenter.reads and len(response.token_ids) and not entropies and "logprobs" not in item:
        wanted = f"{len(response.token_ids)} numbers (or logprobs), which steps.segmenter={segmenter.segmenter} reads"
        refuse(f"{where}.entropies", wanted, None)
    try:
        return split_steps(replace(response, entropies=np.array(entropies)), segmenter)
    except SpanError as error:
        raise FieldError(f"{where}.tokens: {error}") from None


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
    logprobs = np.array(read_numbers(item, "logprobs", count, where) or (math.nan,) * count)
    acted = _read_spans(item, "acted", where, f"pairs [start, end) of the {count} tokens in order", count)
    kept = np.concatenate([logprobs[start:end] for start, end in acted]) if acted else logprobs
    runs = (VersionRun(0, len(kept)),)
    finish = item.get("finish", "stop")
    if finish not in FINISHES:
        refuse(f"{where}.finish", " or ".join(FINISHES), finish)
    return Completion(np.arange(count), kept, np.array(ends), text, runs, finish, acted=acted)


def _read_spans(item: dict[str, Any], name: str, where: str, words: str, count: int) -> tuple[Span, ...]:
    """Spans [start, end) of the tokens in order, none empty; () where the field is not there."""
    given, last = item.get(name), 0
    if given is None:
        return ()
    if not isinstance(given, list) or not all(
        isinstance(p, list) and [type(x) for x in p] == [int, int] for p in given
    ):
        refuse(f"{where}.{name}", words, given)
    for start, end in given:
        if not last <= start < end <= count:
            refuse(f"{where}.{name}", words, given)
        last = end
    return tuple((start, end) for start, end in given)


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


class BadSetting(ValueError):
    """A `credit.key=value` that the method cannot take; one sentence."""


def build_config(
    method: str, overrides: Sequence[str | tuple[str, Any]], base: Mapping[str, Any] | None = None
) -> CreditBase:
    """The method's config: its defaults, `base` over them, `credit.key=value` over these; raises `BadSetting`."""
    if method in CREDIT_METHODS.broken:
        raise BadSetting(CREDIT_METHODS.broken[method])
    keys = [f"credit.{name}" for name in CREDIT_METHODS[method].model_fields if name != "method"]
    given: dict[str, Any] = {key: value for key, value in (base or {}).items() if f"credit.{key}" in keys}
    for text in overrides:
        key, equals, value = text.partition("=") if isinstance(text, str) else (text[0], "=", text[1])
        key = key.strip().lstrip("+")
        if not equals or key not in keys:
            near = get_close_matches(key, keys, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise BadSetting(
                f"{text if isinstance(text, str) else key} is no key=value of {method}; {hint}"
                f"Its keys: {', '.join(keys)}"
            )
        given[key.removeprefix("credit.")] = value
    try:
        return CREDIT_METHODS[method].model_validate({"method": method, **given})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["credit", *map(str, first["loc"])])
        raise BadSetting(f"{where}: {first['msg'].removeprefix('Value error, ')}, got {first['input']!r}") from None


def assign(group: Group, config: CreditBase, progress: float) -> tuple[GroupCredit, dict[str, float]]:
    """The credit of a group and its audit; raises `FieldError` where they are beyond the range of numbers.

    Raises `RuleError` where the method's rule fails.
    """
    try:
        credit = assign_credit(group, config, progress)
        figures = {key: value for key, value in audit(group, credit).items() if math.isfinite(value)}
        rows = (*credit.advantages, *credit.token_rewards, *credit.step_weights)
        if not all(math.isfinite(x) for row in rows for x in row):
            raise OverflowError
    except ArithmeticError:
        raise FieldError(
            "the line: expected evidence and credit.* weights of ordinary size, got numbers with which "
            f"credit={config.method} gives what is not finite"
        ) from None
    return credit, figures


def to_json(name: str | int, group: Group, credit: GroupCredit, figures: Mapping[str, float]) -> dict[str, Any]:
    """What is told of one group: per response its steps and credit, and the audit."""
    responses = [
        {
            "steps": [list(span) for span in member.steps],
            "wrong": list(credit.step_weights[i]),
            "token_rewards": over_tokens(member, credit.token_rewards[i]),
            "advantages": over_tokens(member, credit.advantages[i]),
            "valid_critiques": credit.valid_critiques[i],
            "included": credit.included[i],
        }
        for i, member in enumerate(group.members)
    ]
    return {"id": name, "responses": responses, "audit": dict(figures)}


def over_tokens(member: Judged, row: Runs) -> list[float]:
    """[T]: the numbers of sampled tokens [A], and 0 for those that the policy read."""
    response = member.trajectory.response
    return response.over_tokens(row.expand()).tolist() if response.acted else list(row)


def credit_of_line(line: str, config: CreditBase, *, rubric: str = "paper", progress: float = 0.0) -> dict[str, Any]:
    """What `capo-ray credit` prints of a line; raises `FieldError` and `EvidenceError`."""
    name, group = read_group(line, config, rubric, DEFAULT_STEPS)
    return to_json(name, group, *assign(group, config, progress))
