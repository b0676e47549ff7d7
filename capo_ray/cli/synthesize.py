"""`capo-ray synthesize`: new problems with answers that hold, from worked ones or from a generator."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capo_ray.cli.overrides import output_path
from capo_ray.protocols import RunFailed

if TYPE_CHECKING:
    from capo_ray.synthesis import Candidate, Filters, Program

HELP = """new problems with checked answers: worked problems with other numbers, or what a generator wrote, filtered

Every candidate and the filter that dropped it stand in PATH/candidates.jsonl, what is kept in problems.jsonl (question,
solution, answer, provenance), the counts in manifest.json. The same command goes on where it was cut short."""
CANDIDATES, PROBLEMS, MANIFEST = "candidates.jsonl", "problems.jsonl", "manifest.json"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and the examples."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--templates", metavar="FILE", help="worked problems with marked calculations, as GSM8K's train.jsonl"
    )
    source.add_argument("--responses", metavar="DIR", help="what a generator answered (a directory of capo-ray solve)")
    source.add_argument("--topics", metavar="FILE", help="write what a generator is to be asked about these topics")
    parser.add_argument(
        "-o", "--output", metavar="PATH", type=output_path, required=True, help="directory; with --topics a file"
    )
    parser.add_argument("-n", "--num", type=int, default=1000, metavar="N", help="candidates (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--span", type=float, metavar="X", help="with --templates: as data.number_span (default: 2)")
    parser.add_argument("--against", action="append", default=[], metavar="FILE", help="held-out problems; repeatable")
    parser.add_argument("--agreement", metavar="EVAL", help="the generator's own evaluation on the candidates")
    parser.add_argument("--band", metavar="EVAL", help="the evaluation of the policy that is to be trained on them")
    parser.add_argument("--principles", metavar="FILE", help="with --topics: what the generator is held to")
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON object")
    examples = (
        "capo-ray synthesize --templates train.jsonl --against test.jsonl -n 5000 -o synthesized",
        "capo-ray synthesize --topics topics.jsonl -n 500 -o prompts.jsonl",
        "capo-ray synthesize --responses solutions/generator --against test.jsonl --band evals/policy -o synthesized",
    )
    parser.epilog = "\n".join(f"{'' if i else 'examples: '}{text}" for i, text in enumerate(examples))


def run(args: argparse.Namespace) -> int:
    """0 where something was kept or written, 1 where no candidate came through."""
    _check_span(args)
    if args.topics:
        return _write_prompts(args)
    if args.principles:
        raise RunFailed("--principles is only read with --topics; remove it")
    directory: Path = args.output
    directory.mkdir(parents=True, exist_ok=True)
    settings = _settings(args)
    _refuse_changes(directory, settings)
    filters = _filters(args)
    templates = _templates(args, filters) if args.templates else []
    kept, made = _filter(directory, filters, _candidates(args, templates))
    manifest = settings | {"num": args.num, "counts": filters.counts(), "not_asked": list(filters.not_asked)}
    if args.templates:
        manifest["programs"] = len(templates)
    if kept:
        text = "".join(json.dumps(_row(one, args, filters), ensure_ascii=False) + "\n" for one in kept)
        _write(directory / PROBLEMS, text)
        manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    _write(directory / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    print(json.dumps(manifest) if args.json else _to_text(manifest, directory), flush=True)
    if not kept:
        print(f"synthesize: none of {made} candidates came through, so there is no {PROBLEMS}", file=sys.stderr)
    return 0 if kept else 1


def _check_span(args: argparse.Namespace) -> None:
    """How far numbers may be from those of the original: the default where nothing is said."""
    from capo_ray.config.data import NUMBER_SPAN

    if args.span is None:
        args.span = NUMBER_SPAN
    elif not args.templates:
        raise RunFailed("--span is only read with --templates; remove it")
    elif not 1 < args.span <= 10:
        raise RunFailed(f"--span: expected a number over 1, at most 10, got {args.span:g}")


def _filter(
    directory: Path, filters: Filters, candidates: Callable[[int], Iterator[Candidate]]
) -> tuple[list[Candidate], int]:
    """The candidates that are kept, and how many there were; what was decided before an interruption is not again."""
    from capo_ray.metrics.rows import read_rows
    from capo_ray.synthesis import Candidate

    path, kept, last = directory / CANDIDATES, list[Candidate](), -1
    whole = path.read_bytes()[: path.read_bytes().rfind(b"\n") + 1] if path.is_file() else b""
    path.write_bytes(whole)  # a torn line is decided again
    for row in read_rows(path):
        refused = str(row.pop("refused"))
        one = Candidate(**row)
        filters.count(one, refused)
        kept += [] if refused else [one]
        last = one.number
    with path.open("a", encoding="utf-8") as file:
        for one in candidates(last + 1):
            refused = filters.admit(one)
            file.write(json.dumps(asdict(one) | {"refused": refused}, ensure_ascii=False) + "\n")
            kept += [] if refused else [one]
    return kept, filters.num_seen


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What decides what a candidate is and becomes, with the digests of the files."""
    named = {"templates": args.templates, "responses": args.responses, "agreement": args.agreement, "band": args.band}
    files = {name: str(path) for name, path in named.items() if path}
    digests = {str(path): _digest(Path(path)) for path in (*files.values(), *args.against)}
    span = {"span": args.span} if args.templates else {}
    return {"seed": args.seed, **span, **files, "against": list(args.against), "files_sha256": digests}


def _refuse_changes(directory: Path, settings: dict[str, Any]) -> None:
    """Raise where the directory holds candidates of another command."""
    path = directory / "settings.json"
    if path.is_file() and (before := json.loads(path.read_text(encoding="utf-8"))) != settings:
        changed = next(name for name in {**before, **settings} if before.get(name) != settings.get(name))
        raise RunFailed(
            f"{directory} was made with {changed}={before.get(changed)}, got {settings.get(changed)}; give the same, "
            "or another --output"
        )
    if not path.is_file() and (directory / CANDIDATES).is_file():
        raise RunFailed(f"{directory} holds candidates of an unknown command; give another --output")
    _write(path, json.dumps(settings))


def _filters(args: argparse.Namespace) -> Filters:
    from capo_ray.synthesis import Filters, Held, derived_agreement

    held = Held()
    for path in args.against:
        held.add(question for question, _ in _questions(path))
    agreement = _rates(args.agreement, "--agreement") if args.agreement else None
    if args.templates and agreement is None:
        agreement = derived_agreement
    return Filters(held, agreement, _rates(args.band, "--band") if args.band else None)


def _templates(args: argparse.Namespace, filters: Filters) -> list[tuple[str, Program]]:
    """The programs among the worked problems, none of which may come out as it went in, or is held out."""
    from capo_ray.synthesis import read_programs

    rows = list(_questions(args.templates))
    filters.know(question for question, _ in rows)
    programs = read_programs(Path(args.templates).stem, rows)
    if not programs:
        raise RunFailed(
            f"--templates: expected worked problems with calculations marked <<a*b=c>> and an answer after ####, got "
            f"none among {len(rows)} rows of {args.templates}"
        )
    return programs


def _candidates(
    args: argparse.Namespace, programs: Sequence[tuple[str, Program]]
) -> Callable[[int], Iterator[Candidate]]:
    """The candidates from a number on."""
    from capo_ray.metrics.rows import read_rows
    from capo_ray.runs.layout import RESPONSES_FILE
    from capo_ray.synthesis import instances, read_response

    if args.templates:
        return lambda start: instances(programs, args.seed, args.num, start, args.span)
    path = Path(args.responses) / RESPONSES_FILE
    if not path.is_file():
        raise RunFailed(f"--responses: expected a directory of capo-ray solve, got {args.responses}")
    texts = [str(row["response"]) for row in sorted(read_rows(path), key=lambda row: str(row["question"]))][: args.num]
    return lambda start: (read_response(i, text) for i, text in enumerate(texts) if i >= start)


def _rates(evaluation: str, option: str) -> Callable[[Candidate], float]:
    """The share of right responses to a candidate's question in an evaluation; 0 where it was not asked."""
    from capo_ray.metrics.rows import read_rows
    from capo_ray.runs.layout import RESPONSES_FILE

    path = Path(evaluation) / RESPONSES_FILE
    if not path.is_file():
        raise RunFailed(f"{option}: expected a directory of capo-ray eval with {RESPONSES_FILE}, got {evaluation}")
    rewards: dict[str, list[int]] = {}
    for row in read_rows(path):
        if row["reward"] is not None:
            rewards.setdefault(str(row["question"]).strip(), []).append(int(row["reward"]))

    def rate(candidate: Candidate) -> float:
        found = next((r for text, r in rewards.items() if text.startswith(candidate.question.strip())), [])
        return sum(found) / len(found) if found else 0.0

    return rate


def _questions(path: str) -> Iterator[tuple[str, str]]:
    """Question and answer column of each row, as they stand there; the answer is empty where there is none."""
    from capo_ray.problems.columns import QUESTIONS, BadRow, question_of
    from capo_ray.problems.rows import RowReport, read_rows

    for _, row in read_rows("files", path, "", RowReport(0)):
        column = next((name for name in QUESTIONS if name in row), QUESTIONS[0])
        try:
            yield question_of(row, column), str(row.get("answer") or row.get("solution") or "")
        except BadRow as error:
            raise RunFailed(f"{path}: {error}") from error


def _row(one: Candidate, args: argparse.Namespace, filters: Filters) -> dict[str, Any]:
    """A kept problem, as training reads it, with where it comes from."""
    from capo_ray.synthesis import plain_solution

    told: dict[str, Any] = {"question": one.question, "answer": one.answer}
    told["solution"] = plain_solution(one.solution, one.answer) if args.templates else one.solution
    if filters.agreement is not None:
        told["agreement"] = filters.agreement(one)
    if filters.pass_rate is not None:
        told["pass_rate"] = filters.pass_rate(one)
    return told | {"generator": "programs" if args.templates else args.responses, "origin": one.origin,
                   "seed": args.seed, "number": one.number}  # fmt: skip


def _write_prompts(args: argparse.Namespace) -> int:
    from capo_ray.metrics.rows import read_rows
    from capo_ray.synthesis import PRINCIPLES, prompt

    topics = list(read_rows(Path(args.topics)))
    if not topics or not all(topic.get("topic") for topic in topics):
        raise RunFailed(f'--topics: expected lines {{"subject": …, "category": …, "topic": …}}, got {args.topics}')
    principles = Path(args.principles).read_text(encoding="utf-8") if args.principles else PRINCIPLES
    asked = (prompt(i, topics, principles, args.seed) for i in range(args.num))
    _write(args.output, "".join(json.dumps({"question": text}, ensure_ascii=False) + "\n" for text in asked))
    print(f"{args.num} prompts: {args.output}; ask a generator with capo-ray solve --input {args.output} search=sample")
    return 0


def _to_text(manifest: dict[str, Any], directory: Path) -> str:
    from capo_ray.cli.critique_table import to_text

    counts = manifest["counts"]
    rows = [{"": name, " ": count} for name, count in counts.items() if name not in manifest["not_asked"]]
    asked = f"\nnot asked: {', '.join(manifest['not_asked'])}" if manifest["not_asked"] else ""
    return f"{to_text(rows)}{asked}\n\nin: {directory}"


def _digest(path: Path) -> str:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    found = hashlib.sha256()
    for one in files:
        try:
            found.update(one.read_bytes())
        except OSError as error:
            raise RunFailed(f"{path}: {error.strerror}") from error
    return found.hexdigest()


def _write(path: Path, text: str) -> None:
    from capo_ray.runs.files import replace_whole

    replace_whole(path, text.encode())
