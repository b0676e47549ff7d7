"""`capo-ray verify`: verdicts on a JSONL of answers and responses, streamed in input order."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import deque
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, cast

from capo_ray.cli.line_count import LineCount
from capo_ray.problems.columns import answer_text
from capo_ray.protocols import PartLost, RunFailed

if TYPE_CHECKING:
    from capo_ray.config.sections import VerifierConfig
    from capo_ray.types import Verdict
    from capo_ray.verifiers import VerifierPool

HELP = "compare final answers: {answer, response} per line in, {reward, reason, extracted} per line out"
WINDOW = 256  # lines on their way at once; also what a reader that stops reading can hold up
MAX_LINE_BYTES = 16 << 20
Row = dict[str, Any]
Done = asyncio.Task[tuple["Verdict", ...]] | Row


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and the example."""
    parser.epilog = (
        "example:\n"
        """  echo '{"answer": "1/2", "response": "The answer is 0.5."}' | capo-ray verify --input -\n"""
        """  {"reward": 1, "reason": "right", "extracted": "0.5"}\n\n"""
        "answer may also be a number, or a list of answers that are all asked for.\n"
        "reward is 1 right, 0 wrong or no answer, null undecided (time-out, crash, refused).\n"
        "exit codes: 0 every line judged or undecided; 1 a line did not fit (named on standard error, null in place)"
    )
    from capo_ray.config.sections import verifier_kinds

    parser.add_argument("--input", required=True, metavar="PAIRS.jsonl", help="file, or - for standard input")
    kinds = ", ".join(verifier_kinds())
    parser.add_argument("--kind", default="math", metavar="KIND", help=f"default: math; one of {kinds}")
    parser.add_argument("--path", default="", metavar="FILE.py:FUNCTION", help="the function of --kind custom")
    parser.add_argument("--tolerance", type=float, default=None, metavar="X", help="of --kind numeric, default 0.01")
    parser.add_argument("--timeout", type=float, default=None, metavar="S", help="processor seconds for one pair")
    parser.add_argument("--processes", type=int, default=None, metavar="N", help="child processes")


def run(args: argparse.Namespace) -> int:
    """0 when every line was a pair, 1 when one was not."""
    from capo_ray.verifiers import VerifierPool

    given = {"kind": args.kind, "path": args.path, "timeout_s": args.timeout, "num_processes": args.processes}
    config = config_of(**given, tolerance=args.tolerance)
    try:
        source = sys.stdin.buffer if args.input == "-" else open(args.input, "rb")  # noqa: SIM115  ends with the process
    except OSError as error:
        raise RunFailed(f"expected a file of JSON lines or -, got {args.input}: {error.strerror}") from None
    with VerifierPool(config) as pool:
        try:
            return asyncio.run(_stream(pool, cast(IO[bytes], source)))
        except PartLost as error:
            raise RunFailed(str(error)) from None


def config_of(**given: Any) -> VerifierConfig:
    """The verifier's configuration with what is given of it (None: not); raises `RunFailed`."""
    from pydantic import ValidationError

    from capo_ray.config.sections import VerifierConfig

    try:
        return VerifierConfig(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise RunFailed(
            "; ".join(
                f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}".strip(": ")
                for e in error.errors()
            )
        ) from None


async def _stream(pool: VerifierPool, source: IO[bytes]) -> int:
    """Judge line after line with `WINDOW` of them on their way; the exit code."""
    waiting: deque[Done] = deque()
    progress = LineCount("judged")
    refused = number = 0
    while True:
        read = asyncio.get_running_loop().run_in_executor(None, _read_line, source)
        while waiting and not read.done() and _is_done(waiting[0]):
            await _print_first(waiting, progress)
        while waiting and not read.done():  # a slow producer must not hold back what is judged
            first = waiting[0]
            await asyncio.wait({read} | ({first} if isinstance(first, asyncio.Task) else set()),
                               return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
            if _is_done(first):
                await _print_first(waiting, progress)
        line = await read
        if line is None:
            break
        number += 1
        pair = _to_pair(line, number)
        if pair is None:
            continue
        if isinstance(pair, str):
            refused += 1
            print(f"capo-ray verify: {pair}", file=sys.stderr)
            waiting.append({"reward": None, "reason": pair, "extracted": None})
        else:
            waiting.append(asyncio.ensure_future(pool.verify(pair[0], [pair[1]])))
        while len(waiting) >= WINDOW:
            await _print_first(waiting, progress)
    while waiting:
        await _print_first(waiting, progress)
    progress.end()
    return 1 if refused else 0


def _is_done(item: Done) -> bool:
    return not isinstance(item, asyncio.Task) or item.done()


async def _print_first(waiting: deque[Done], progress: LineCount) -> None:
    """Print the oldest line's verdict as soon as it is there."""
    item = waiting.popleft()
    if isinstance(item, asyncio.Task):
        (verdict,) = await item
        item = {"reward": verdict.reward, "reason": verdict.reason, "extracted": verdict.extracted}
    sys.stdout.write(json.dumps(item) + "\n")
    sys.stdout.flush()
    progress.count()


def _read_line(source: IO[bytes]) -> bytes | None:
    """The next line, cut one byte above the limit (its rest is read and dropped), or None at the end."""
    line = source.readline(MAX_LINE_BYTES + 1)
    if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
        while (rest := source.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
    return line or None


def _to_pair(line: bytes, number: int) -> tuple[str, str] | str | None:
    """The pair of a line, what is wrong with the line, or None for an empty one."""
    if len(line) > MAX_LINE_BYTES:
        return f"line {number}: expected at most {MAX_LINE_BYTES >> 20} MiB; cut the response"
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"line {number}: expected a JSON object, got {str(error)[:120]}"
    pair = pair_of(row) if isinstance(row, dict) else f"expected a JSON object, got {type(row).__name__}"
    return f"line {number}: {pair}" if isinstance(pair, str) else pair


def pair_of(row: Mapping[str, Any]) -> tuple[str, str] | str:
    """The answer and response of a row, or what is wrong with it."""
    answer, response = answer_text(row.get("answer")), row.get("response")
    for name, text in (("answer", answer), ("response", response)):
        if not isinstance(text, str):
            got = type(row[name]).__name__ if name in row else "nothing"
            return f"expected a string in {name!r}, got {got}"
    return str(answer), str(response)
