"""Two ranks that do something together, in processes of their own.

    test process ──asks──> fork server (imports `rank_imports` once) ──forks──> lead ──forks──> rank 0, rank 1

Imports cost a rank more than all its training, so none of these processes imports anything anew. The server is a new
process: nothing of pytest, of its threads or of Ray is inherited.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from capo_ray.learners.store import reserve_meeting

RunRank = Callable[[int, int, Sequence[str], str, Path], None]
"""Rank, number of ranks, where they meet (once or more often, in turn), the model's directory, and where files go."""


def run_pair(run_rank: RunRank, num_meetings: int, model: Path, out: Path, timeout_s: float = 300) -> None:
    """Returns once both ranks ended well; `run_rank` is a function of a module, or a partial of one.

    Raises AssertionError with what they printed where one did not, or `timeout_s` passed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.rank_imports"])
    log = out / "ranks.log"
    lead = context.Process(target=_lead, args=(run_rank, num_meetings, str(model), out, log))
    lead.start()
    try:
        lead.join(timeout_s)
        said = log.read_text(errors="replace")[-3000:] if log.exists() else ""
        assert lead.exitcode == 0, f"after at most {timeout_s} s: exit code {lead.exitcode}\n{said}"
    finally:
        if lead.exitcode is None and lead.pid is not None:
            os.killpg(lead.pid, signal.SIGKILL)


def _lead(run_rank: RunRank, num_meetings: int, model: str, out: Path, log: Path) -> None:
    """Forks both ranks and ends as they do.

    They inherit ports that are listened on already: one that was only found free is sometimes somebody else's by the
    time they meet.
    """
    os.setsid()
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    meetings = [reserve_meeting("127.0.0.1") for _ in range(num_meetings)]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=run_rank, args=(rank, 2, meetings, model, out)) for rank in range(2)]
    for process in ranks:
        process.start()
    while any(process.exitcode is None for process in ranks):
        if any(process.exitcode for process in ranks):  # the others would wait for it
            for process in ranks:
                process.terminate()
        for process in ranks:
            process.join(0.2)
    sys.exit(max(abs(process.exitcode or 0) for process in ranks))
