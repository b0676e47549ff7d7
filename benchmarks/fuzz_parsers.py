"""R10: the critique parser under fuzz: every text is read or abstains, in linear time, and never out of range.

    python -m benchmarks.fuzz_parsers [--cases 100000] [--seed 0] [--broken]

Half the cases are mangled critiques whose true verdict is known before mangling, the others noise made of the grammar's
own words. `--broken` is the negative control: a parser that reads "unreadable" as "no error" must fail.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable

from capo_ray.critics import parse_critique

Parser = Callable[[str, int], tuple[frozenset[int] | None, bool | None, str]]
WORDS = (
    "<incorrect_steps>", "</incorrect_steps>", "<think>", "</think>", "Judgement", "Judgment", ":", " Yes", " No", "**",
    "<step_", "</step_", ">", "<", "/", ",", ", ", " ", "\n", "0", "1", "2", "7", "12", "-", ".", "and", "none", "step",
    "Step 3", "\u200b", "\x00", "é", "٣", "𝟙", "\ud800", "(", ")", "[", "]", "`", "<|im_end|>", "the solution is right",
)  # fmt: skip
UNREADABLE = ("x", "-1", "1.5", "99", "2-3", "all", "1 2 x", "½", "1e3")


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
    """A well-formed critique is read as it was meant, and the same with an unreadable item abstains."""
    num_steps = rng.randint(1, 12)
    text, flagged = make_true_critique(rng, num_steps)
    assert parser(text, num_steps)[0] == flagged, f"expected {sorted(flagged)} from {text!r}"
    head, close, tail = text.rpartition("</incorrect_steps>")
    spoilt = f"{head}, {rng.choice(UNREADABLE)}{close}{tail}"
    assert parser(spoilt, num_steps)[0] is None, f"must abstain: {spoilt!r}"


def _broken(text: str, num_steps: int) -> tuple[frozenset[int] | None, bool | None, str]:
    flagged, overall, _ = parse_critique(text, num_steps)
    return (flagged or frozenset()), overall, ""


def main() -> int:
    """0 when all cases pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--broken", action="store_true", help="negative control: must fail")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    parse: Parser = _broken if args.broken else parse_critique
    counts = {"read": 0, "abstained": 0}
    started, slowest = time.perf_counter(), 0.0
    for case in range(1, args.cases + 1):
        begun = time.perf_counter()
        counts[check_parse(*make_critique(rng), parse)] += 1
        slowest = max(slowest, time.perf_counter() - begun)
        check_known(rng, parse)
        if case % 10_000 == 0:
            print(f"{case:>8} cases  {counts}  {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(json.dumps({"cases": args.cases, **counts, "seconds": time.perf_counter() - started, "slowest_s": slowest}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
