"""The command line: one module per command, imported when it is asked for; every failure is one sentence and a code.

A command module holds `HELP` (a text whose first line is the summary), `configure(parser)` and `run(args) -> int`.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 Ctrl-C, 141 reader gone, 143 asked to end.
Invariant: listing the commands imports none of them, so `capo-ray --help` stays instant.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

from capo_ray.runs.layout import CHECKPOINTS, ERROR_FILE

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("capo_ray.cli.train", "capo-ray train credit=capo run.num_updates=40"),
    "eval": ("capo_ray.cli.eval", "capo-ray eval model=/any/directory suite=gsm8k eval.path=test.jsonl"),
    "solve": (
        "capo_ray.cli.solve",
        "capo-ray solve --input questions.jsonl model=runs/latest search=navigator",
    ),
    "synthesize": (
        "capo_ray.cli.synthesize",
        "capo-ray synthesize --templates train.jsonl --against test.jsonl -o made",
    ),
    "sft": ("capo_ray.cli.sft", "capo-ray sft --help"),
    "credit": ("capo_ray.cli.credit", "capo-ray credit capo --input groups.jsonl"),
    "critique": ("capo_ray.cli.critique", "capo-ray critique --input solutions.jsonl critic=laptop"),
    "verify": ("capo_ray.cli.verify", "capo-ray verify --input pairs.jsonl"),
    "view": ("capo_ray.cli.view", "capo-ray view runs/latest"),
    "report": ("capo_ray.cli.report", "capo-ray report runs/latest -o report.html"),
    "runs": ("capo_ray.cli.runs", "capo-ray runs"),
    "compare": ("capo_ray.cli.compare", "capo-ray compare runs/a runs/b"),
    "ledger": ("capo_ray.cli.ledger", "capo-ray ledger runs/latest --json"),
    "doctor": ("capo_ray.cli.doctor", "capo-ray doctor"),
    "export": ("capo_ray.cli.export", "capo-ray export runs/latest --output policy"),
    "submit": ("capo_ray.cli.submit", "capo-ray submit --address http://127.0.0.1:8265 credit=capo"),
}
_SWEEP = "; a command is one run: call it for each, as `for s in 0 1 2; do capo-ray train run.seed=$s …; done`"
OF_HYDRA = {"m": _SWEEP, "multirun": _SWEEP} | dict.fromkeys(("c", "cfg"), "; --dry-run=full prints the configuration")
"""What Hydra's own program takes as options, and what is in their place here."""
LEAVE_S = 20.0
INTERRUPTED, READER_GONE, TERMINATED = 130, 141, 143


class _Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would be, so that both take the same way out."""


def program() -> None:
    """One command line as a process of its own, which is gone soon after its last word whatever still waits in it."""
    from capo_ray.place.last_resort import force_exit_after

    code = main()
    force_exit_after(LEAVE_S, code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of one command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(importlib.import_module("capo_ray").__version__)
        return 0
    name = words[0]
    if name not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "see capo-ray --help"
        return _say(f"expected a command ({', '.join(COMMANDS)}), got {name!r}; {hint}", 2)
    return _guarded(name, words[1:])


def _guarded(name: str, words: list[str]) -> int:
    """The exit code of a command, with every exception turned into its sentence and code."""
    from asyncio import CancelledError

    from capo_ray.protocols import RunFailed, RunStopped

    prefer_own_programs()
    _end_like_ctrl_c()
    try:
        module = importlib.import_module(COMMANDS[name][0])
        return int(module.run(_parse(name, module, words)) or 0)
    except RunFailed as error:
        return _say(f"{name}: {error}{_where_to_go_on(name, error)}", 1)
    except RunStopped as stop:
        asked = "asked to end (SIGTERM)" if stop.signum == signal.SIGTERM else "interrupted (Ctrl-C)"
        code = TERMINATED if stop.signum == signal.SIGTERM else INTERRUPTED
        return _say(f"{name}: {asked}; ended: {stop}{_where_to_go_on(name, stop)}", code)
    except (_Terminated, CancelledError) as error:  # a run's event loop turns SIGTERM into its own cancellation
        return _say(f"{name}: asked to end (SIGTERM); ended{_where_to_go_on(name, error)}", TERMINATED)
    except KeyboardInterrupt as error:
        return _say(f"{name}: interrupted (Ctrl-C); ended{_where_to_go_on(name, error)}", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except SystemExit as leave:
        if leave.code == signal.SIGTERM:  # Ray's own handler leaves this way
            return _say(f"{name}: asked to end (SIGTERM); ended", TERMINATED)
        if isinstance(leave.code, str):
            return _say(f"{name}: {leave.code}", 1)
        return leave.code or 0
    except Exception as error:  # noqa: BLE001 the last frame of the program: reported, and the exit code says so
        where = _where_to_go_on(name, error)
        return _say(f"{name}: {_cause(error)} (traceback: {_keep_traceback(error)}){where}", 1)


def _source(module: str) -> Path:
    return Path(__file__).parent / f"{module.rsplit('.', 1)[1]}.py"


def _overview() -> str:
    """The text of `capo-ray --help`."""
    lines = ["usage: capo-ray COMMAND …   (capo-ray COMMAND --help tells more)", ""]
    for name in COMMANDS:
        lines.append(f"  {name:<9} {_read_help(name)}")
        lines.append(f"            e.g. {COMMANDS[name][1]}")
    return "\n".join(lines)


def _read_help(name: str) -> str:
    """The first line of a command's HELP, read from its source without importing it."""
    tree = ast.parse(_source(COMMANDS[name][0]).read_text(encoding="utf-8"))
    for node in tree.body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(isinstance(t, ast.Name) and t.id == "HELP" for t in targets):
            value = getattr(node, "value", None)
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                return value.value.strip().split("\n", 1)[0]
    return (ast.get_docstring(tree) or "").split("\n", 1)[0]


def _parse(name: str, module: ModuleType, words: list[str]) -> argparse.Namespace:
    """The parsed arguments; options may stand before, between and after overrides."""
    parser = argparse.ArgumentParser(
        prog=f"capo-ray {name}",
        description=str(module.HELP),
        epilog=f"example: {COMMANDS[name][1]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.configure(parser)
    wrong = parser.error

    def error(message: str) -> NoReturn:
        """What other programs take as an option is a setting here."""
        _, unknown, rest = message.partition("unrecognized arguments: -")
        option = rest.split()[0].lstrip("-").partition("=")[0] if unknown else ""
        plain = f"; settings have no dashes: {option}=VALUE" if rest.startswith("-") else ""
        wrong(message + OF_HYDRA.get(option, plain))

    parser.error = error  # type: ignore[method-assign]
    try:
        return parser.parse_intermixed_args(words)
    except TypeError:  # a parser with sub-commands or a remainder cannot intermix
        return parser.parse_args(words)


def _say(sentence: str, code: int) -> int:
    print(f"capo-ray {sentence}" if code != 2 else f"capo-ray: {sentence}", file=sys.stderr, flush=True)
    return code


def _where_to_go_on(name: str, error: BaseException) -> str:
    """How to go on with the run that an exception ended, and what of it is lost; nothing where there is no run."""
    run_dir = getattr(error, "run_dir", None)
    if run_dir is None:
        return ""
    lost = "".join(f"; {note}" for note in getattr(error, "__notes__", ()) if note.startswith("no checkpoint"))
    begun = any(Path(run_dir, CHECKPOINTS).glob("v*"))
    again = "" if begun else " run.from_zero=true"
    what = "go on" if begun else "it has no checkpoint: begin again"
    return f"{lost}; {what} with capo-ray {name} resume={run_dir}{again}"


def _cause(error: BaseException) -> str:
    """The innermost cause of an exception in one line; a cancellation or an empty time-out is nobody's cause."""
    from asyncio import CancelledError

    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    while (cause := error.__cause__) is not None and not isinstance(cause, CancelledError) and str(cause):
        error = cause
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}" if text else type(error).__name__


def _keep_traceback(error: BaseException) -> Path:
    """The file that now holds the traceback: error.txt of the run named by `error.run_dir`, else a temporary one."""
    text = "".join(traceback.format_exception(error))
    run_dir = getattr(error, "run_dir", None)
    if run_dir is not None and Path(run_dir).is_dir():
        path = Path(run_dir) / ERROR_FILE
        path.write_text(text, encoding="utf-8")
        return path
    handle, name = tempfile.mkstemp(prefix="capo-ray-error-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(name)


def prefer_own_programs() -> None:
    """Put this environment's programs (ninja) on PATH, for children of a script that runs without activation."""
    own = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", "")
    if own not in path.split(os.pathsep):
        os.environ["PATH"] = own + os.pathsep + path


def _end_like_ctrl_c() -> None:
    """Turn SIGTERM into an exception, unless someone else already handles it."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise _Terminated

    try:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, end)
    except ValueError:
        return  # not the main thread: whoever owns it decides
