"""The child: imports math-verify once, then forks checkers, one after the other, that do the checks.

    parent --stdin--> checker --stdout--> parent        the pipes are inherited, so nothing is relayed
    child: let the spare checker begin, fork the next spare, wait until the checker is gone (killed by the parent,
           crashed, worn out), and again: the time of a fork is not waited for

A checker has its own memory and CPU limits and an audit hook that tells what a comparison has no business doing
(files, sockets, processes, execution of code) and, for math and a confined environment, forbids what leaves the
process. When the parent dies, the checker reads the end of its input, or runs into its CPU limit if it hangs, and the
child follows.
"""

from __future__ import annotations

import gc
import json
import os
import pkgutil
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any, cast

from capo_ray.verifiers.frames import read_blocking, write_blocking

END_OF_INPUT, WORN_OUT = 10, 11
MAX_EVENTS_TOLD = 32
BEGIN = b"b"
Check = Callable[[str, str], object]

_FILE = ("open", "os.", "shutil.", "tempfile.", "glob.")
_PROCESS = ("subprocess.", "pty.", "ctypes.", "signal.")
_PROCESS_OF_OS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill")


class Forbidden(PermissionError):
    """A comparison tried to leave its process."""


class Audit:
    """Tells the parent of audit events during a check, at once; with `forbid`, those that leave the process raise."""

    def __init__(self, forbid: bool, replies: int) -> None:
        self._forbid, self._replies = forbid, replies
        self.budget = 0  # events still told during this check
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        kind = _kind(event)
        if kind is None:
            return
        if self.budget > 0:
            self.budget -= 1
            write_blocking(self._replies, {"event": kind, "what": f"{event} {str(args[:1])[:200]}"})
        reads = event == "open" and not _writes(args)  # importing a module reads files
        if self._forbid and kind in ("file", "socket", "process") and not reads:
            raise Forbidden(f"a comparison may not do this: {event}")


def _kind(event: str) -> str | None:
    """The kind of an audit event, None for those of no interest."""
    if event.startswith(_PROCESS) or event.startswith(_PROCESS_OF_OS):
        return "process"
    if event.startswith("socket."):
        return "socket"
    if event.startswith(_FILE):
        return "file"
    return event if event in ("exec", "compile", "import") else None


def _writes(args: tuple[Any, ...]) -> bool:
    """Whether the arguments of an `open` event ask for more than reading."""
    mode, flags = (args[1], args[2]) if len(args) >= 3 else (None, 0)
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def main() -> int:
    settings = json.loads(sys.argv[1])
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # what a library prints must not end up between the messages
    check = load_check(settings["kind"], settings["path"])
    if settings.get("preload"):
        pkgutil.resolve_name(settings["preload"])
    if settings.get("prepare"):
        pkgutil.resolve_name(settings["prepare"])(settings["of_environment"])
    gc.collect()
    gc.freeze()

    def work() -> int:
        try:
            return serve(check, requests, replies, settings)
        except BrokenPipeError:  # nobody is left to be told: the end as much as that of the input
            return END_OF_INPUT

    spare = fork_spare(work, null)
    while True:
        pid, begin = spare
        with suppress(BrokenPipeError):  # a spare that is gone already is waited for at once
            os.write(begin, BEGIN)
        os.close(begin)
        spare = fork_spare(work, null)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == END_OF_INPUT:
            os.kill(spare[0], signal.SIGKILL)
            return 0
        drain(requests)


def drain(requests: int) -> None:
    """Read away what a killed checker left unread: the next one would answer it in place of its own pairs.

    The parent sends nothing before the next one says that it is ready.
    """
    waiting = select.poll()
    waiting.register(requests, select.POLLIN)
    while any(event & select.POLLIN for _, event in waiting.poll(0)):
        if not os.read(requests, 1 << 16):
            return


def fork_spare(work: Callable[[], int], null: int) -> tuple[int, int]:
    """A forked process that does its work once it is sent `BEGIN` by the returned descriptor, and ends if that closes.

    A parent that is killed closes it before its children can see that it is gone: two readers of one pipe would be the
    end of every order in it, so the end of the descriptor alone must not start anyone.
    """
    begun, begin = os.pipe()
    pid = os.fork()
    if pid:
        os.close(begun)
        return pid, begin
    code = 1
    try:
        os.close(begin)
        os.dup2(null, 2)
        if os.read(begun, 1) == BEGIN:
            code = work()
    finally:
        os._exit(code)


def load_check(kind: str, path: str) -> Check:
    """The comparison `check(answer, response)` of a verifier kind."""
    if kind == "math":
        from capo_ray.answers.library import prepare
        from capo_ray.answers.slow import slow_equal

        prepare(slow_equal)
        return slow_equal
    function = _find(path)
    if not callable(function):
        raise TypeError(f"it is no function, but of type {type(function).__name__}")
    return cast(Check, function)


def _find(path: str) -> object:
    """What stands at `package.module:name`, or at `FILE.py:name`, beside which the file may import its neighbours."""
    file, _, name = path.rpartition(":")
    if not file.endswith(".py"):
        return pkgutil.resolve_name(path)
    sys.path.insert(0, os.path.dirname(file))
    # Under a name of its own: the file may be called like a module that is loaded already.
    spec = spec_from_file_location("own_verifier_file", file)
    assert spec is not None and spec.loader is not None, "a name in .py has a loader"
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def serve(check: Check, requests: int, replies: int, settings: dict[str, Any]) -> int:
    """Answer batches of pairs until the input ends or the checker is worn out; the exit code."""
    confined = settings.get("confined", settings["kind"] == "math")
    read = _to_value if settings["kind"] == "environment" else _to_reward
    _limit(settings["memory_mib"], files=not confined)
    audit = Audit(confined, replies)
    write_blocking(replies, {"ready": os.getpid(), "cpu": _cpu_s()})
    done = 0
    while True:
        request = read_blocking(requests)
        if request is None:
            return END_OF_INPUT
        pairs = request["pairs"]
        done += len(pairs)
        worn_out = done >= settings["checks"]
        for index, (answer, response) in enumerate(pairs):
            _limit_cpu(settings["timeout_s"])
            audit.budget = MAX_EVENTS_TOLD
            reply = judge(check, answer, response, read)
            audit.budget = 0
            reply["cpu"], reply["mib"] = _cpu_s(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            if index == len(pairs) - 1:
                reply["last"] = worn_out
            reply["batch"] = request["batch"]
            write_blocking(replies, reply)
        if worn_out:
            return WORN_OUT


def judge(
    check: Check, answer: str, response: str, read: Callable[[object], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """`{"reward", "reason"}` of one pair; whatever the comparison raises makes it invalid."""
    try:
        return (read or _to_reward)(check(answer, response))
    except MemoryError:
        return {"reward": None, "reason": "crash: out of memory"}
    except RecursionError:
        return {"reward": None, "reason": "crash: nested too deep"}
    except Exception as error:  # noqa: BLE001  counted by the parent as an invalid verdict
        return {"reward": None, "reason": f"crash: {type(error).__name__}: {str(error)[:200]}"}


def _to_value(result: object) -> dict[str, Any]:
    """What an environment replied, as it is."""
    return {"reward": 1, "reason": "replied", "value": result}


def _to_reward(result: object) -> dict[str, Any]:
    """What a comparison found; a scalar of numpy or torch is what it holds."""
    if hasattr(result, "item"):
        result = result.item()
    if result is None:
        return {"reward": None, "reason": "undecided: the verifier returned None"}
    if isinstance(result, (bool, int, float)) and result in (0, 1):
        return {"reward": int(result), "reason": "right" if result else "wrong"}
    return {"reward": None, "reason": f"crash: expected True, False or None, got {type(result).__name__}"}


def _limit(memory_mib: int, files: bool) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))
    if not files:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _cpu_s() -> float:
    """Seconds of processor time this process has used."""
    return time.process_time()


def _limit_cpu(timeout_s: float) -> None:
    """Let the kernel end this process should it use twice its time on one check: the backup of a parent that died."""
    soft = int(_cpu_s() + 2 * timeout_s) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


if __name__ == "__main__":
    sys.exit(main())
