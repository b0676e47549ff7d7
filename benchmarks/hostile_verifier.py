r"""R8 and R9: the verifier under hostile answers: no crash, no hang, each within its limit, nothing executed or opened.

    python benchmarks/hostile_verifier.py [--count 10000] [--seed 0] [--processes 2] [--timeout 1.0] [--broken]

Every answer differs from the reference, so a reward of 1 is a failure too. `--broken` is the negative control: a
comparison that evaluates and opens what it is given must be seen by the audit hook.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from capo_ray.config.sections import VerifierConfig
from capo_ray.verifiers import VerifierPool

REFERENCES = ("7", r"\frac{x}{2}", r"3\sqrt{13}", "(6,31,-1)", r"\{1,2,3\}", r"[0,\infty)", "x^2+1=0", r"\text{east}")
MARKER = "/tmp/capo_ray_hostile_marker"
FACTORIALS = ("10^8!", "(10^8)!", "99999999!", "9!!!!!!", "(9!)!", r"\Gamma(10^9)")
SOUP = (
    r"\frac", r"\sqrt", r"\left(", r"\right)", "{", "}", "(", ")", "[", "]", "^", "_", "!", "x", "y", "e", "i", "9",
    "0", "10", ".", ",", "+", "-", "*", "/", "=", "<", r"\le", r"\cup", r"\pi", r"\infty", r"\sin", r"\log",
    r"\text{", r"\begin{pmatrix}", r"\end{pmatrix}", r"\\", "&", "%", r"\%", "$", " ", r"\binom", r"\pm", r"\in",
    "|", r"\lfloor", "'", '"', "`", "\x00", "\n", "½", "٣", "\ud800", "𝟙", "lambda", "__", "import", ":", ";", "@",
)  # fmt: skip


def make_hostile(rng: random.Random) -> str:
    """A response whose final answer is meant to hang, crash, fill memory or get something executed."""
    return rng.choice(_KINDS)(rng)


def _boxed(text: str) -> str:
    return f"So \\boxed{{{text}}}."


def _nested(rng: random.Random) -> str:
    opening, closing = rng.choice(
        (("(", ")"), ("{", "}"), (r"\sqrt{", "}"), (r"\frac{1}{1+", "}"), (r"\sin(", ")"), ("-(", ")"))
    )
    depth = rng.choice((20, 31, 40, 200, 5000))
    return _boxed(opening * depth + "x" + closing * depth)


def _code(rng: random.Random) -> str:
    touch = f"open('{MARKER}','w')"
    return _boxed(
        rng.choice(
            (
                f"__import__('os').system('touch {MARKER}')",
                f"{touch}",
                f"\\text{{{touch}}}",
                f"(lambda: {touch})()",
                f"x.__class__.__mro__[1].__subclasses__()+{rng.randint(1, 99)}",
                f'exec("{touch}")',
                f"eval('{touch}')",
                f"1{touch}1",
                f"\\operatorname{{{touch}}}",
                f"\\variable{{__import__('os').system('touch {MARKER}')}}",
                f"\\input{{{MARKER}}}",
            )
        )
    )


def _soup(rng: random.Random) -> str:
    return _boxed("".join(rng.choice(SOUP) for _ in range(rng.choice((5, 20, 80, 400)))))


def _huge(rng: random.Random) -> str:
    size = rng.choice((70_000, 300_000, 1_000_000))
    return rng.choice(
        (
            r"\boxed{" * (size // 7),
            "{" * size + r"\boxed{9",
            "answer is " * (size // 10),
            "#### " * (size // 5),
            _boxed("9" * size),
            "$" * size,
            " " * size + "answer:",
            "A:" * (size // 2),
        )
    )


_KINDS: tuple[Callable[[random.Random], str], ...] = (
    lambda rng: _boxed("^{".join([str(rng.randint(2, 99))] * rng.randint(3, 9)) + "}" * 8),
    lambda rng: _boxed(f"{rng.randint(2, 9)}^{{{rng.randint(10**5, 10**12)}}}"),
    lambda rng: _boxed(rng.choice(FACTORIALS) + f"+{rng.randint(1, 99)}"),
    _nested,
    _code,
    _soup,
    _soup,
    _huge,
    lambda rng: _boxed(f"(x+y+z+w)^{{{rng.choice((30, 60, 99, 900))}}}-{rng.randint(1, 99)}"),
    lambda rng: _boxed(f"\\{rng.choice(('sum', 'prod'))}_{{n=1}}^{{{10 ** rng.randint(3, 12)}}} \\sin n"),
    lambda rng: _boxed(f"\\int_0^{rng.randint(1, 9)} x^{{x^x}} \\sin(e^x) dx"),
    lambda rng: _boxed(f"\\binom{{{10 ** rng.randint(3, 12)}}}{{{10 ** rng.randint(2, 9)}}}"),
    lambda rng: _boxed("9" * rng.randint(200, 1000) + "^" + "9" * rng.randint(1, 4)),
    lambda rng: _boxed(",".join(f"\\frac{{{rng.randint(1, 99)}}}{{x+{i}}}" for i in range(rng.randint(5, 40)))),
    lambda rng: _boxed(f"x^{{{rng.randint(5, 40)}}}+3x^{rng.randint(2, 4)}-{rng.randint(1, 99)}=0"),
    lambda rng: _boxed("\\sin" * rng.randint(5, 60) + f" x+{rng.randint(1, 99)}"),
    lambda rng: _boxed("+".join(f"\\sqrt{{{rng.randint(2, 999)}+\\sqrt{{{i}}}}}" for i in range(rng.randint(3, 30)))),
    lambda rng: _boxed(f"e^{{e^{{e^{{{rng.randint(1, 99)}}}}}}}"),
    lambda rng: _boxed("1" + "0" * rng.randint(50, 400) + "." + "1" * rng.randint(50, 400)),
    lambda rng: _boxed(r"\begin{pmatrix}" + r"\\".join(["1&2&x"] * rng.randint(10, 60)) + r"\end{pmatrix}"),
)  # fmt: skip


def leaky(answer: str, response: str) -> bool:
    """The negative control: a comparison that runs and opens things."""
    with open("/etc/hostname") as file:
        return bool(eval("len(name) > 3", {"name": file.read() + answer}))  # noqa: S307


async def _attack(pool: VerifierPool, count: int, seed: int, at_once: int) -> Counter[str]:
    """Reasons of the verdicts on `count` hostile responses."""
    rng = random.Random(seed)
    reasons: Counter[str] = Counter()
    gate = asyncio.Semaphore(at_once)

    async def one(reference: str, response: str) -> None:
        async with gate:
            (verdict,) = await pool.verify(reference, [response])
        reason = verdict.reason if verdict.reward is not None else verdict.reason.split("(")[0].strip()
        reasons[reason] += 1

    for start in range(0, count, 1000):
        batch = [(rng.choice(REFERENCES), make_hostile(rng)) for _ in range(min(1000, count - start))]
        await asyncio.gather(*(one(*pair) for pair in batch))
    return reasons


def run_attack(count: int, seed: int, processes: int, timeout_s: float, broken: bool = False) -> dict[str, object]:
    """The report of one attack; `failures` is empty when every goal holds."""
    Path(MARKER).unlink(missing_ok=True)
    custom = {"kind": "custom", "path": f"{__name__ if __name__ != '__main__' else 'hostile_verifier'}:leaky"}
    kind = custom if broken else {"kind": "math"}
    config = VerifierConfig.model_validate(
        {**kind, "num_processes": processes, "timeout_s": timeout_s, "deadline_s": 600}
    )
    start = time.monotonic()
    with VerifierPool(config) as pool:
        reasons = asyncio.run(_attack(pool, count, seed, at_once=4 * processes))
        sane = asyncio.run(pool.verify("x+1", [r"\boxed{1+x}", r"\boxed{x+2}"]))
        stats = pool.stats()
        audited = sorted({what for lane in pool._lanes for what in lane.audited})
    failures = []
    if not broken and [v.reward for v in sane] != [1, 0]:
        failures.append(f"after the attack x+1 is judged {[v.reason for v in sane]}")
    if reasons["right"]:
        failures.append(f"{reasons['right']} hostile answers were judged right")
    if stats["verifier/audit_events"]:
        failures.append(f"{stats['verifier/audit_events']:.0f} audit events, such as {audited[:5]}")
    if os.path.exists(MARKER):
        failures.append("an answer's code was executed")
    if sum(reasons.values()) != count:
        failures.append(f"{count - sum(reasons.values())} responses without a verdict")
    slowest, bound = stats["verifier/slowest_check_s"], 1.2 * timeout_s
    if slowest > 3 * bound:
        failures.append(f"one check took {slowest:.2f} s")
    return {
        "count": count,
        "seed": seed,
        "seconds": round(time.monotonic() - start, 1),
        "timeout_s": timeout_s,
        "memory_mib": config.memory_mib,
        "reasons": dict(reasons.most_common()),
        "slowest_check_s": round(slowest, 3),
        "stats": {name: round(value, 4) for name, value in stats.items()},
        "failures": failures,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=1.0)
    parser.add_argument("--broken", action="store_true", help="negative control: must be caught")
    args = parser.parse_args()
    report = run_attack(args.count, args.seed, args.processes, args.timeout, args.broken)
    print(json.dumps(report, indent=2))
    if args.broken:
        caught = bool(report["failures"])
        print("negative control caught" if caught else "negative control NOT caught")
        return 0 if caught else 1
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "hostile_verifier.json").write_text(json.dumps(report, indent=2) + "\n")
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
