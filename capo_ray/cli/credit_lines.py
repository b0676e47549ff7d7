"""One line of `groups.jsonl` becomes a judged group; what does not fit is refused with the field at fault.

Invariant: nothing is guessed. A missing field is not an empty one; text that its tokens do not spell is not trimmed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from capo_ray.arrays import FloatArray
from capo_ray.config.credit import CreditBase, Critiques
from capo_ray.critics import parse_critique
from capo_ray.steps import SpanError, split_steps
from capo_ray.types import (
    Completion,
    Critique,
    Evidence,
    Group,
    Judged,
    Problem,
    Provenance,
    Span,
    Trajectory,
    TrajectoryKey,
    Verdict,
    VersionRun,
)

SERIES = ("answer_logprobs", "step_values", "token_rewards", "hinted_logprobs")
PER_TOKEN = frozenset({"token_rewards", "hinted_logprobs"})
LARGEST = 1e100  # of a number of evidence; its square is still finite
ROUNDING = 1e-3  # by which a mean of logprobs may come out above 0


class FieldError(ValueError):
    """A line that does not fit: the field, what was expected there and what was got."""


def read_group(line: str, config: CreditBase, rubric: str) -> tuple[str | int, Group]:
    """The id and the group of one line; raises `FieldError`."""
    try:
        data = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_to_object)
    except (ValueError, RecursionError) as error:
        raise FieldError(f"expected one JSON object per line, got something else: {error}") from None
    if not isinstance(data, dict):
        _refuse("the line", "a JSON object", data)
    name = data.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int):
        _refuse("id", "a string or an integer", name)
    for field in ("question", "answer"):
        if not isinstance(data.get(field, ""), str):
            _refuse(field, "a string", data[field])
    responses = data.get("responses")
    if not isinstance(responses, list) or not responses:
        _refuse("responses", "a list of at least one response", responses)
    members = [_read_response(item, i, str(name), config, rubric) for i, item in enumerate(responses)]
    problem = Problem(str(name), data.get("question", ""), data.get("answer", ""))
    return name, Group(0, problem, tuple(members))


def _read_response(item: Any, index: int, name: str, config: CreditBase, rubric: str) -> Judged:
    where = f"responses[{index}]"
    if not isinstance(item, dict):
        _refuse(where, "an object", item)
    response = _read_tokens(item, where)
    entropies = _read_numbers(item, "entropies", len(response.token_ids), where)
    if config.segmenter == "entropy" and len(response.token_ids) and not entropies and "logprobs" not in item:
        wanted = f"{len(response.token_ids)} numbers (or logprobs), which credit.segmenter=entropy reads"
        _refuse(f"{where}.entropies", wanted, None)
    try:
        steps = split_steps(
            response, config.segmenter, entropies, config.entropy_cuts, whole_blocks=config.whole_blocks
        )
    except SpanError as error:
        raise FieldError(f"{where}.tokens: {error}") from None
    reward = _read_reward(item, where)
    series = {name: _read_series(item, name, response, steps, where, config, reward is not None) for name in SERIES}
    evidence = Evidence(
        critiques=_read_critiques(item, len(steps), where, config, rubric, wanted=reward is not None),
        entropies=np.array(entropies),
        answer_logprobs=series["answer_logprobs"],
        step_values=series["step_values"],
        token_rewards=np.array(series["token_rewards"]),
        hint_gains=_read_gains(item, series["hinted_logprobs"], where),
    )
    verdict = Verdict(reward, "given" if reward is not None else "invalid", _read_extracted(item, where, config))
    return Judged(Trajectory(TrajectoryKey(name, 0, index), np.empty(0, np.int32), response), verdict, steps, evidence)


def _read_gains(item: dict[str, Any], hinted: Sequence[float], where: str) -> FloatArray:
    """What the hint adds to the logprob of each token; nothing where there is no hint."""
    if not hinted:
        return np.empty(0)
    plain = _read_numbers(item, "logprobs", len(hinted), where)
    if not plain:
        _refuse(f"{where}.logprobs", f"{len(hinted)} numbers beside hinted_logprobs, to be compared with them", None)
    return np.array(hinted) - np.array(plain)


def _read_tokens(item: dict[str, Any], where: str) -> Completion:
    """The response: its text, and the characters that each token contributes."""
    text, tokens = item.get("text"), item.get("tokens")
    if not isinstance(text, str):
        _refuse(f"{where}.text", "a string", text)
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        _refuse(f"{where}.tokens", "a list of strings", tokens)
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
    logprobs = _read_numbers(item, "logprobs", count, where) or (math.nan,) * count
    runs = (VersionRun(0, count),)
    return Completion(np.arange(count), np.array(logprobs), np.array(ends), text, runs, "stop")


def _read_reward(item: dict[str, Any], where: str) -> int | None:
    reward = item.get("reward", "nothing")
    if reward is None:
        return None
    if isinstance(reward, bool) or not isinstance(reward, int | float) or reward not in (0, 1):
        _refuse(f"{where}.reward", "1, 0 or null (invalid)", reward)
    return int(reward)


def _read_extracted(item: dict[str, Any], where: str, config: CreditBase) -> str | None:
    """The answer that the verifier extracted; it must be told where a format reward depends on it."""
    extracted = item.get("extracted")
    if extracted is not None and not isinstance(extracted, str):
        _refuse(f"{where}.extracted", "a string or null", extracted)
    if config.reads_extracted and "extracted" not in item:
        _refuse(f"{where}.extracted", "the extracted answer or null, which credit.w_format reads", None)
    return extracted


def _read_critiques(
    item: dict[str, Any], num_steps: int, where: str, config: CreditBase, rubric: str, *, wanted: bool
) -> tuple[Critique, ...]:
    """The critiques, from raw texts or from flagged steps; an index that is no step makes one invalid."""
    texts, flags, asked = item.get("critiques"), item.get("flagged"), config.asked(Critiques)
    if "critiques" in item and "flagged" in item:
        raise FieldError(f"{where}.flagged: expected either critiques or flagged, got both")
    if "critiques" in item:
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            _refuse(f"{where}.critiques", "a list of critic texts", texts)
        return tuple(_to_critique(*parse_critique(text, num_steps, rubric), text, i) for i, text in enumerate(texts))
    if "flagged" in item:
        if not isinstance(flags, list):
            _refuse(f"{where}.flagged", "a list of one list of step indices per critique", flags)
        if wanted and flags and asked is not None and asked.overall and "overall" not in item:
            words = f"{len(flags)} of true, false or null, which credit={config.method} reads beside flagged"
            _refuse(f"{where}.overall", words, None)
        overall = item.get("overall", [None] * len(flags))
        if not isinstance(overall, list) or len(overall) != len(flags) or not all(_is_word(w) for w in overall):
            _refuse(f"{where}.overall", f"{len(flags)} of true, false or null", overall)
        return tuple(
            _from_flags(flag, word, num_steps, f"{where}.flagged[{i}]", i)
            for i, (flag, word) in enumerate(zip(flags, overall, strict=True))
        )
    if wanted and asked is not None:
        raise FieldError(
            f"{where}.critiques: expected critiques (critic texts) or flagged (step indices), which "
            f"credit={config.method} reads, got neither"
        )
    return ()


def _from_flags(flag: Any, word: bool | None, num_steps: int, where: str, index: int) -> Critique:
    if flag is None:
        return _to_critique(None, word, "invalid", "", index)
    if not isinstance(flag, list) or not all(isinstance(s, int) and not isinstance(s, bool) for s in flag):
        _refuse(where, "a list of step indices, or null for an invalid critique", flag)
    outside = [step for step in flag if not 0 <= step < num_steps]
    if outside:
        return _to_critique(None, word, f"step {outside[0]} not in 0..{num_steps - 1}", "", index)
    return _to_critique(frozenset(flag), word, "", "", index)


def _to_critique(flagged: frozenset[int] | None, overall: bool | None, reason: str, text: str, index: int) -> Critique:
    return Critique(flagged, overall, text, reason, Provenance("offline", "", index))


def _read_series(
    item: dict[str, Any],
    name: str,
    response: Completion,
    steps: Sequence[Span],
    where: str,
    config: CreditBase,
    wanted: bool,
) -> tuple[float, ...]:
    """One series of evidence: per token, or per prefix of steps (K + 1)."""
    count = len(response.token_ids) if name in PER_TOKEN else len(steps) + 1
    if wanted and any(name in asked.reads for asked in config.evidence()) and name not in item:
        _refuse(f"{where}.{name}", f"{count} numbers, which credit={config.method} reads", None)
    values = _read_numbers(item, name, count, where)
    if name in ("answer_logprobs", "hinted_logprobs") and any(x > ROUNDING for x in values):
        _refuse(f"{where}.{name}", "logprobs, which are at most 0", item[name])
    return values


def _read_numbers(item: dict[str, Any], name: str, count: int, where: str) -> tuple[float, ...]:
    """A list of `count` finite numbers, or () where there is none."""
    if name not in item:
        return ()
    values = item[name]
    numbers = isinstance(values, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)
    if not numbers or len(values) != count:
        _refuse(f"{where}.{name}", f"{count} numbers", values)
    try:
        result = tuple(float(x) for x in values)
    except OverflowError:
        result = (math.inf,)
    if not all(abs(x) <= LARGEST for x in result):
        _refuse(f"{where}.{name}", f"numbers of ordinary size (up to {LARGEST:g})", values)
    return result


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a line; a field given twice is refused, since the first one would be lost."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the field {_show(key)} twice")
        result[key] = value
    return result


def _show(value: Any) -> str:
    try:
        shown = json.dumps(value)
    except RecursionError:
        return "a deeply nested value"
    return shown if len(shown) <= 80 else shown[:79] + "…"


def _refuse(field: str, expected: str, got: Any) -> NoReturn:
    shown = "nothing" if got in (None, "nothing") else _show(got)
    raise FieldError(f"{field}: expected {expected}, got {shown}")
