"""`capo-ray credit`: the credit of judged groups offline, by the very functions that a training run uses."""

from __future__ import annotations

import argparse
import codecs
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from capo_ray.cli.compose import compose_train
from capo_ray.cli.line_count import LineCount
from capo_ray.cli.overrides import Override, Setting
from capo_ray.cli.schema import ConfigError, new_name
from capo_ray.config.base import RuleError
from capo_ray.config.credit import CREDIT_METHODS, CreditBase
from capo_ray.config.steps import StepsBase
from capo_ray.credit import EvidenceError
from capo_ray.evidence import FieldError
from capo_ray.evidence.offline import BadSetting, assign, build_config, read_group, to_json
from capo_ray.prompts import RUBRICS
from capo_ray.types import Group, GroupCredit

HELP = """assign credit to judged groups offline: JSON lines in, token advantages out

One group per line: {"id", "question", "answer", "responses": [{"text", "tokens": [strings that spell text],
"reward": 1 | 0 | null (invalid), "critiques": [critic texts] or "flagged": [[step indices] per critique]}]}.
Beside these, where a method reads them: "overall" [true | false | null per entry of flagged], "answer_logprobs" [K+1],
"step_values" [K+1], "token_rewards" [T], "hinted_logprobs" [T], "entropies" [T], "logprobs" [T],
"extracted" (text or null), "acted" [[start, end) of the tokens that the policy wrote, a span a turn] (absent: all),
"turns" [[key of its state, its reward, was it legal] a turn], "evidence_score" (0 to 1; "question" then begins with
the numbered sentences of its context, [1] …, a line each; "solution", if any, with those that are needed). Of the line:
"prompt_tokens" (how many the prompt had, by which vppo shortens a good prefix; absent: 0). Of a response:
"finish" ("length": it was cut off, which cliff blames whole; absent: "stop")."""
EXAMPLES = """more examples:
  capo-ray credit capo --input groups.jsonl --json credit.vote=union credit.w_whole=2 credit.w_process=1
  cat groups.jsonl | capo-ray credit grpo --input -
methods: {methods}"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "method",
        metavar="METHOD",
        choices=[*CREDIT_METHODS, *CREDIT_METHODS.broken],
        help="a credit method, as listed below",
    )
    parser.add_argument("--input", required=True, metavar="FILE", help="groups as JSON lines; - is standard input")
    parser.add_argument("--json", action="store_true", help="one JSON object per group, in place of painted text")
    parser.add_argument("--rubric", choices=RUBRICS, default="paper", help="how critic texts are to be read")
    parser.add_argument(
        "--progress", type=float, default=0.0, metavar="X", help="share of a run done, 0..1 (schedules)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="credit.… of the method, steps=…, steps.…, as in training"
    )
    text = EXAMPLES.format(methods=", ".join(CREDIT_METHODS))
    parser.epilog = f"{parser.epilog}\n{text}"


def run(args: argparse.Namespace) -> int:
    """0 where every line was done, 1 where one was refused (the others are done) or there was none.

    Raises `RuleError` with the line's number where a function of the method or of the steps fails.
    """
    config, steps, cut_anew = read_settings(args.method, args.overrides, args.progress)
    num_done = num_refused = 0
    paint = None if args.json else _painter()
    progress = LineCount("done")
    for number, raw in read_lines(args.input):
        try:
            line = _decode(raw)
            if not line.strip():
                continue
            name, group = read_group(line, config, args.rubric, steps, cut_anew=cut_anew)
            credit, figures = assign(group, config, args.progress)
        except (FieldError, EvidenceError) as error:
            num_refused += 1
            print(f"capo-ray credit: line {number}: {error}", file=sys.stderr, flush=True)
            continue
        except RuleError as error:  # a fault of the program, not of the line, so it ends here with its traceback
            raise RuleError(f"line {number}: {error}").with_traceback(error.__traceback__) from None
        if paint is None:
            print(json.dumps(to_json(name, group, credit, figures), allow_nan=False), flush=True)
        else:
            paint(str(name), group, credit, figures)
        num_done += 1
        if paint is None:
            progress.count()
    progress.end()
    if not num_done and not num_refused:
        print(f"capo-ray credit: expected groups in {args.input}, got no line; see --help", file=sys.stderr, flush=True)
    return 0 if num_done and not num_refused else 1


def read_settings(method: str, overrides: Sequence[Override], progress: float) -> tuple[CreditBase, StepsBase, bool]:
    """The method's config, where responses are cut into steps, and whether that was asked for; raises `ConfigError`."""
    if method not in CREDIT_METHODS and method not in CREDIT_METHODS.broken:
        raise ConfigError(f"expected a credit method ({', '.join(CREDIT_METHODS)}), got {method!r}")
    of_steps = [given for given in overrides if _key(given).partition(".")[0] == "steps"]
    config = _config(method, [given for given in overrides if given not in of_steps])
    steps = build_steps(method, of_steps)
    if not 0.0 <= progress <= 1.0:
        raise ConfigError(f"--progress: expected a share of the run in 0..1, got {progress}")
    return config, steps, bool(of_steps)


def _key(given: Override) -> str:
    return given.key if isinstance(given, Setting) else given.partition("=")[0].strip().lstrip("+")


def build_steps(method: str, overrides: Sequence[Override]) -> StepsBase:
    """Where a run of the method's preset cuts responses, with `steps=…` and `steps.key=value` overrides."""
    steps = compose_train([f"credit={method}", *overrides]).steps
    if steps.thinking == "leave_out":
        raise ConfigError(
            "steps.thinking=leave_out is for runs: here every token of a response has its numbers; cut it in the file"
        )
    return steps


def _config(method: str, overrides: Sequence[Override]) -> CreditBase:
    """The method's config; raises `ConfigError` with one sentence."""
    for key in map(_key, overrides):
        if moved := new_name(key):
            raise ConfigError(f"{key} is {moved} now; write {moved}=…")
    try:
        return build_config(method, [(s.key, s.value) if isinstance(s, Setting) else s for s in overrides])
    except BadSetting as error:
        raise ConfigError(str(error)) from None


def read_lines(path: str) -> Iterator[tuple[int, bytes | str]]:
    """The lines of a file or of standard input (`-`) with their numbers from 1, one at a time."""
    if path == "-":
        if sys.stdin is None:
            raise ConfigError("--input -: expected lines on standard input, which is closed; name a file")
        yield from _number(getattr(sys.stdin, "buffer", sys.stdin))
        return
    try:
        with open(path, "rb") as file:
            yield from _number(file)
    except OSError as error:
        raise ConfigError(f"--input: expected a file of JSON lines, got {path}: {error.strerror}") from None


def _number(lines: Iterable[bytes | str]) -> Iterator[tuple[int, bytes | str]]:
    """The lines with their numbers, without the byte order mark that some editors put before the first."""
    for number, line in enumerate(lines, start=1):
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 and isinstance(line, bytes) else line


def _decode(raw: bytes | str) -> str:
    try:
        return raw if isinstance(raw, str) else raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FieldError(f"the line: expected UTF-8, got byte {raw[error.start]!r} at {error.start}") from None


def _painter() -> Any:
    """A function that paints one group on the terminal."""
    from capo_ray.cli.credit_paint import Canvas, paint_group

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without a character shows its code
    console = Canvas(highlight=False)

    def paint(name: str, group: Group, credit: GroupCredit, figures: dict[str, float]) -> None:
        paint_group(console, name, group, credit, figures)
        sys.stdout.flush()

    return paint
