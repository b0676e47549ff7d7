"""R9 and R10: critique parser and segmenter under fuzz: read or abstain, cut exactly, in linear time, touching nothing.

    python benchmarks/fuzz_parsers.py [--cases 100000] [--seed 0] [--broken parser|segmenter|audit]

Each case: a critique to the parser (half are mangled critiques whose true verdict is known before mangling, the others
noise made of the grammar's own words), a response to a segmenter (its spans must tile the tokens), its text through the
escaping and the critic's prompt, and as a value through the configuration's models. An audit hook counts what any of
them executes, opens, imports or connects: nothing is allowed. Texts of twice the length may take no more than four
times as long. `--broken` is the negative control (a parser that reads "unreadable" as "no error", a segmenter that
loses a token, a parser that evaluates): it exits 0 when it was caught.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from pydantic import ValidationError

from capo_ray.config.sections import CriticConfig, DataConfig, VerifierConfig
from capo_ray.config.steps import SEGMENTERS, StepsBase
from capo_ray.critics import parse_critique
from capo_ray.prompts import build_critic_text, escape_data
from capo_ray.protocols import step_texts
from capo_ray.steps import cut_at_blank_lines, cut_at_newlines, cut_at_sentences, split_steps
from capo_ray.types import Completion, Span, VersionRun

Parsed = tuple[frozenset[int] | None, bool | None, str]
Parser = Callable[[str, int], Parsed]
Cutter = Callable[[Completion, StepsBase], tuple[Span, ...]]
WORDS = (
    "<incorrect_steps>", "</incorrect_steps>", "<think>", "</think>", "Judgement", "Judgment", ":", " Yes", " No", "**",
    "<step_", "</step_", ">", "<", "/", ",", ", ", " ", "\n", "0", "1", "2", "7", "12", "-", ".", "and", "none", "step",
    "Step 3", "\u200b", "\x00", "é", "٣", "𝟙", "\ud800", "(", ")", "[", "]", "`", "<|im_end|>", "the solution is right",
)  # fmt: skip
RANGE = (2, 3)
UNREADABLE = ("x", "-1", "1.5", "99", "3-2", "all", "1 2 x", "½", "1e3")


def make_critique(rng: random.Random) -> tuple[str, int]:
    """A text and a number of steps: noise, or a well-formed critique with a few letters changed."""
    num_steps = rng.randint(0, 12)
    if rng.random() < 0.5:
        return "".join(rng.choice(WORDS) for _ in range(rng.randint(0, 60))), num_steps
    text = list(make_true_critique(rng, max(num_steps, 1))[0])
    for _ in range(rng.randint(0, 6)):
        place = rng.randrange(len(text) + 1)
        if rng.random() < 0.5 and place < len(text):
            del text[place]
        else:
            text.insert(place, rng.choice(WORDS))
    return "".join(text), num_steps


def make_true_critique(rng: random.Random, num_steps: int) -> tuple[str, frozenset[int]]:
    """A critique in one of the forms that critics use, and what it says."""
    flagged = frozenset(i for i in range(num_steps) if rng.random() < 0.3)
    form = rng.choice(["{}", "<step_{}>", "step_{}", "Step {}"])
    joint = rng.choice([", ", ",", "; ", "\n"])
    word = rng.choice(["Judgement: ", "**Judgment:** ", "judgement:\n"]) + ("No" if flagged else "Yes")
    before = rng.choice(["", "<think>Judgement: Yes <incorrect_steps>0</think>", "Let me see. "])
    items = joint.join(form.format(i) for i in sorted(flagged))
    return f"{before}{word}\n<incorrect_steps>{items}</incorrect_steps>{rng.choice(['', ' Bye.'])}", flagged


def check_parse(text: str, num_steps: int, parser: Parser = parse_critique) -> str:
    """`read` or `abstained`; raises `AssertionError` where the parser breaks its word."""
    flagged, overall, reason = parser(text, num_steps)
    assert overall in (True, False, None)
    if flagged is None:
        assert reason, f"an abstention must say why: {text!r}"
        return "abstained"
    assert reason == ""
    assert all(0 <= step < num_steps for step in flagged), f"{sorted(flagged)} not in 0..{num_steps - 1}: {text!r}"
    assert "incorrect" in text.lower() or overall, f"no verdict in {text!r}, yet read as {sorted(flagged)}"
    return "read"


def check_known(rng: random.Random, parser: Parser = parse_critique) -> None:
    """A well-formed critique is read as it was meant, with a range too; the same with an unreadable item abstains."""
    num_steps = rng.randint(1, 12)
    text, flagged = make_true_critique(rng, num_steps)
    assert parser(text, num_steps)[0] == flagged, f"expected {sorted(flagged)} from {text!r}"
    head, close, tail = text.rpartition("</incorrect_steps>")
    spoilt = f"{head}, {rng.choice(UNREADABLE)}{close}{tail}"
    assert parser(spoilt, num_steps)[0] is None, f"must abstain: {spoilt!r}"
    ranged = f"{head}, {RANGE[0]}-{RANGE[1]}{close}{tail}"
    expected = flagged | {*RANGE} if num_steps > RANGE[1] else None  # abstains where such steps are not there
    assert parser(ranged, num_steps)[0] == expected, f"expected {expected} from {ranged!r}"


def make_response(rng: random.Random) -> Completion:
    """A response of random pieces as tokens, some of which contribute no character."""
    pieces = [rng.choice(("\n\n", "\n", ". ", "", *WORDS, "x=1.5", "。")) for _ in range(rng.randint(1, 80))]
    ends, at = [], 0
    for piece in pieces:
        at += len(piece)
        ends.append(at)
    count = len(pieces)
    logprobs = tuple(-rng.random() for _ in range(count))
    return Completion(
        np.arange(count), np.array(logprobs), np.array(ends), "".join(pieces), (VersionRun(0, count),), "stop"
    )  # fmt: skip


def check_steps(response: Completion, segmenter: StepsBase, cut: Cutter = split_steps) -> None:
    """The spans tile the tokens: nothing lost, nothing twice, none empty, and the step texts make the text."""
    spans = cut(response, segmenter)
    assert spans[0][0] == 0 and spans[-1][1] == len(response.token_ids), f"{spans} of {len(response.token_ids)} tokens"
    assert all(a < b for a, b in spans), f"an empty span in {spans}"
    assert all(left[1] == right[0] for left, right in pairwise(spans)), f"a gap or an overlap in {spans}"
    assert "".join(step_texts(response.text, response.char_ends, spans)) == response.text


def check_settings(text: str) -> None:
    """A value is taken as text, or refused with a `ValidationError`."""
    for section, key in (
        (CriticConfig, "model"),
        (CriticConfig, "rubric"),
        (DataConfig, "path"),
        (VerifierConfig, "path"),
    ):
        try:
            assert getattr(section.model_validate({key: text}), key) == text
        except ValidationError:
            continue


def check_linear() -> dict[str, float]:
    """Seconds on 100,000 characters; raises `AssertionError` where twice the length takes over four times as long."""
    worst: dict[str, float] = {}
    for name, unit in (
        ("tags", "<incorrect_steps>0,"),
        ("thinking", "<think>"),
        ("blank", " \n"),
        ("words", "judgement: "),
    ):
        cuts = (cut_at_blank_lines, cut_at_newlines, cut_at_sentences)
        for work in (lambda text: parse_critique(text, 9), escape_data, *cuts):
            times = []
            for length in (50_000, 100_000):
                text = (unit * (length // len(unit) + 1))[:length]
                times.append(min(_seconds(work, text) for _ in range(3)))
            assert times[1] < 4 * times[0] + 0.01, f"{name}: {times} s"
            worst[name] = max(worst.get(name, 0.0), times[1])
    return worst


def _seconds(work: Callable[[str], object], text: str) -> float:
    begun = time.perf_counter()
    work(text)
    return time.perf_counter() - begun


class Audit:
    """Counts what is executed, opened, imported or connected while `on`."""

    def __init__(self) -> None:
        self.on = False
        self.seen: Counter[str] = Counter()
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        # Frames and object internals are looked at by the interpreter itself.
        if self.on and not event.startswith(("object.", "sys._getframe", "gc.")):
            self.seen[event] += 1


def _unreadable_is_clean(text: str, num_steps: int) -> Parsed:
    flagged, overall, _ = parse_critique(text, num_steps)
    return (flagged or frozenset()), overall, ""


def _evaluates(text: str, num_steps: int) -> Parsed:
    with contextlib.suppress(Exception):
        eval(text)  # noqa: S307 - the negative control
    return parse_critique(text, num_steps)


def _loses_a_token(response: Completion, segmenter: StepsBase) -> tuple[Span, ...]:
    *spans, (start, end) = split_steps(response, segmenter)
    return (*spans, (start, end - 1))


def fuzz(cases: int, seed: int, parse: Parser, cut: Cutter) -> dict[str, object]:
    """The counts; raises `AssertionError` on the first case in which something breaks its word."""
    rng, audit = random.Random(seed), Audit()
    # What is imported or read at first use is so now.
    check_settings("warm")
    build_critic_text(rubric="every_step", question="", solution=None, steps=[""])
    segmenters = [kind.model_validate({}) for kind in SEGMENTERS.values()]
    for segmenter in segmenters:
        split_steps(make_response(random.Random(0)), segmenter)
    counts: Counter[str] = Counter()
    started, slowest = time.perf_counter(), 0.0
    for case in range(1, cases + 1):
        text, num_steps = make_critique(rng)
        response, segmenter = make_response(rng), rng.choice(segmenters)
        known = random.Random(rng.random())
        begun = time.perf_counter()
        audit.on = True
        counts[check_parse(text, num_steps, parse)] += 1
        slowest = max(slowest, time.perf_counter() - begun)
        check_known(known, parse)
        check_steps(response, segmenter, cut)
        build_critic_text(rubric="every_step", question=text, solution=text, steps=[text, response.text])
        check_settings(text)
        audit.on = False
        assert not audit.seen, f"something was executed or opened: {dict(audit.seen)}"
        if case % 10_000 == 0:
            print(f"{case:>8} cases  {dict(counts)}  {time.perf_counter() - started:.0f} s", file=sys.stderr)
    seconds = time.perf_counter() - started
    return {"cases": cases, **counts, "audit_events": 0, "seconds": seconds, "slowest_parse_s": slowest}


def main() -> int:
    """0 when all cases pass, or when the negative control was caught."""
    from records import record  # beside this file, when it is run and not imported

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--broken", choices=("parser", "segmenter", "audit"), help="negative control: must be caught")
    args = parser.parse_args()
    parse = {"parser": _unreadable_is_clean, "audit": _evaluates}.get(args.broken, parse_critique)
    cut = _loses_a_token if args.broken == "segmenter" else split_steps
    try:
        out = fuzz(args.cases, args.seed, parse, cut)
    except AssertionError as error:
        if not args.broken:
            raise
        print(f"negative control caught: {str(error)[:200]}")
        return 0
    if args.broken:
        print("negative control NOT caught")
        return 1
    out["linear_s_per_100000_characters"] = check_linear()
    print(json.dumps(out, indent=1))
    record("fuzz_parsers.json").write_text(json.dumps(out, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
