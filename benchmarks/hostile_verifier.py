r"""R8 and R9: the verifier under hostile answers: no crash or hang, each within a second, nothing executed or opened.

    python benchmarks/hostile_verifier.py [--count 10000] [--seed 0] [--processes 2] [--control audit|limit]

Every answer differs from the reference, so a reward of 1 is a failure too. What is timed is a pair's wall time in the
hands of checkers: from hand-over (or the verdict before it in the same batch) to its verdict, a time-out included,
both lanes added up; waiting in a queue is not counted. What the parent does with it before (finding
the answer, fast path, refusal) is timed on its own, in processor time. A checker's address space is limited to 512 MiB
by the kernel.

Negative controls, which must be caught: `audit`, a comparison that evaluates and opens what it is given; `limit`, a
build without the limit and without refusals.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from capo_ray import answers
from capo_ray.config.sections import VerifierConfig
from capo_ray.verifiers import VerifierPool

REFERENCES = ("7", r"\frac{x}{2}", r"3\sqrt{13}", "(6,31,-1)", r"\{1,2,3\}", r"[0,\infty)", "x^2+1=0", r"\text{east}")
MARKER = "/tmp/capo_ray_hostile_marker"
_DIGITS = re.compile("[0-9]+")
SLY_SHARE = 0.02
GOAL_S, GOAL_MIB = 1.0, 512
FACTORIALS = ("10^8!", "(10^8)!", "99999999!", "9!!!!!!", "(9!)!", r"\Gamma(10^9)")
SOUP = (
    r"\frac", r"\sqrt", r"\left(", r"\right)", "{", "}", "(", ")", "[", "]", "^", "_", "!", "x", "y", "e", "i", "9",
    "0", "10", ".", ",", "+", "-", "*", "/", "=", "<", r"\le", r"\cup", r"\pi", r"\infty", r"\sin", r"\log",
    r"\text{", r"\begin{pmatrix}", r"\end{pmatrix}", r"\\", "&", "%", r"\%", "$", " ", r"\binom", r"\pm", r"\in",
    "|", r"\lfloor", "'", '"', "`", "\x00", "\n", "½", "٣", "\ud800", "𝟙", "lambda", "__", "import", ":", ";", "@",
)  # fmt: skip


def make_hostile(rng: random.Random, sly_share: float = SLY_SHARE) -> str:
    """A response whose final answer is meant to hang, crash, fill memory or get something executed."""
    return rng.choice(_SLY if rng.random() < sly_share else _KINDS)(rng)


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


def _letters(rng: random.Random, count: int) -> str:
    return "+".join(rng.sample("xyzwabk", count))


def _numbers(rng: random.Random, form: str, low: int = 2, high: int = 15) -> str:
    """A form with a random number in each %d."""
    return _boxed(form % tuple(rng.randint(low, high) for _ in range(form.count("%d"))))


# short enough to pass the refusals by size; in math-verify itself a third of them take longer than a second
_SLY: tuple[Callable[[random.Random], str], ...] = (
    lambda rng: _boxed(f"({_letters(rng, 4)})^{{{rng.randint(10, 16)}}}({_letters(rng, 3)})^{{{rng.randint(8, 16)}}}"),
    lambda rng: _numbers(rng, r"\sin^{%d}(x)\cos^{%d}(y)+\tan^{%d}(x+y)"),
    lambda rng: _boxed("+".join(rf"\frac{{{rng.choice('xyz')}}}{{{rng.choice('xyz')}+{i}}}" for i in range(2, 8))),
    lambda rng: _numbers(rng, r"\sin(x)+%dx^2=\cos(%dx)"),
    lambda rng: _numbers(rng, r"\begin{pmatrix}x&%d\\y&%d\end{pmatrix}^{%d}"),
    lambda rng: _numbers(rng, r"\log_{%d}(\log_{%d}(x^{%d}+%d))^{%d}"),
    lambda rng: _numbers(rng, "|x|+|y-%d|+|z+|x-%d||+|w|^{%d}"),
    lambda rng: _numbers(rng, "(x+%d)!-%d!+y!", 100, 999),
    lambda rng: _numbers(rng, r"\binom{%d}{%d}\binom{x}{%d}", 100, 999),
    lambda rng: _numbers(rng, r"[%d,\sqrt[%d]{x})\cup(\sin(%d),x^{%d}]\cup[y,z)", 3),
    lambda rng: _numbers(rng, r"(x^{%d}+1)^{%d}-(y^{%d}-1)^{%d}", 9, 16),
    lambda rng: _numbers(rng, "x^{x^{x^{%d}}}+x^{%d^{x}}"),
)


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
        reasons[_DIGITS.sub("N", verdict.reason.split("(")[0].strip())] += 1

    for start in range(0, count, 1000):
        batch = [(rng.choice(REFERENCES), make_hostile(rng)) for _ in range(min(1000, count - start))]
        await asyncio.gather(*(one(*pair) for pair in batch))
    return reasons


LATENESS = """
import sys, threading, time
asked, latest = threading.Event(), 0.0
threading.Thread(target=lambda: (sys.stdin.read(), asked.set()), daemon=True).start()
while not asked.is_set():
    start = time.monotonic()
    time.sleep(0.01)
    latest = max(latest, time.monotonic() - start - 0.01)
print(latest)
"""


@contextmanager
def lateness() -> Iterator[list[float]]:
    """How late this machine woke a process that only sleeps, at worst: no limit in wall time holds closer than that."""
    found: list[float] = []
    with subprocess.Popen([sys.executable, "-c", LATENESS], stdin=-1, stdout=-1, text=True) as process:
        yield found
        found.append(float(process.communicate()[0]))


class TimedPool(VerifierPool):
    """A pool that keeps the longest processor time of what the parent does with one response."""

    slowest_read_s = 0.0

    def _settle(self, reference: str, response: str) -> Any:
        start = time.thread_time()
        settled = super()._settle(reference, response)
        self.slowest_read_s = max(self.slowest_read_s, time.thread_time() - start)
        return settled


def run_attack(count: int, seed: int, processes: int, timeout_s: float, control: str = "") -> dict[str, object]:
    """The report of one attack; `failures` is empty when every goal holds."""
    Path(MARKER).unlink(missing_ok=True)
    custom = {"kind": "custom", "path": f"{__name__ if __name__ != '__main__' else 'hostile_verifier'}:leaky"}
    kind = custom if control == "audit" else {"kind": "math"}
    config = VerifierConfig.model_validate(
        {**kind, "num_processes": processes, "timeout_s": 3 if control == "limit" else timeout_s, "deadline_s": 3600}
    )
    start = time.monotonic()
    refusal = (lambda *_: None) if control == "limit" else answers.refusal
    with lateness() as late, patch.object(answers, "refusal", refusal), TimedPool(config) as pool:
        reasons = asyncio.run(_attack(pool, count, seed, at_once=4 * processes))
        sane = asyncio.run(pool.verify("x+1", [r"\boxed{1+x}", r"\boxed{x+2}"]))
        stats = {**pool.stats(), "verifier/slowest_read_s": pool.slowest_read_s}
        audited = sorted({what for lane in pool._lanes for what in lane.audited})
    failures = _failures(stats, reasons, count, audited)
    if control != "audit" and [v.reward for v in sane] != [1, 0]:
        failures.append(f"after the attack x+1 is judged {[v.reason for v in sane]}")
    return {
        "count": count,
        "seed": seed,
        "control": control,
        "seconds": round(time.monotonic() - start, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}",
        "timeout_s": config.timeout_s,
        "memory_mib": config.memory_mib,
        "slowest_check_s": round(stats["verifier/slowest_check_s"], 3),
        "num_over_1_s": stats["verifier/late_total"],
        "machine_woke_late_s": round(late[0], 3),
        "slowest_read_s": round(stats["verifier/slowest_read_s"], 3),
        "peak_mib": stats["verifier/peak_mib"],
        "reasons": dict(reasons.most_common()),
        "stats": {name: round(value, 4) for name, value in stats.items()},
        "failures": failures,
    }


def _failures(stats: dict[str, float], reasons: Counter[str], count: int, audited: list[str]) -> list[str]:
    """The goals that were missed."""
    failures = []
    if reasons["right"]:
        failures.append(f"{reasons['right']} hostile answers were judged right")
    if stats["verifier/audit_events_total"]:
        failures.append(f"{stats['verifier/audit_events_total']:.0f} audit events, such as {audited[:5]}")
    if os.path.exists(MARKER):
        failures.append("an answer's code was executed")
    if sum(reasons.values()) != count:
        failures.append(f"{count - sum(reasons.values())} responses without a verdict")
    if stats["verifier/process_starts_total"] > stats["verifier/open_lanes"]:
        failures.append("a child process had to be started again")
    for name in ("check", "read"):
        if (slowest := stats[f"verifier/slowest_{name}_s"]) > GOAL_S:
            failures.append(f"one {name} took {slowest:.2f} s, more than {GOAL_S:g} s")
    if stats["verifier/peak_mib"] > GOAL_MIB:
        failures.append(f"one check held {stats['verifier/peak_mib']:.0f} MiB, more than {GOAL_MIB}")
    return failures


def main() -> int:
    from records import record  # beside this file, when it is run and not imported

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=VerifierConfig().timeout_s)
    parser.add_argument("--control", choices=("audit", "limit"), default="", help="negative control: must be caught")
    args = parser.parse_args()
    report = run_attack(args.count, args.seed, args.processes, args.timeout, args.control)
    name = f"hostile_verifier_{args.control}_control" if args.control else "hostile_verifier"
    record(f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    if args.control:
        print("negative control caught" if report["failures"] else "negative control NOT caught")
    return int(bool(report["failures"]) != bool(args.control))


if __name__ == "__main__":
    sys.exit(main())
