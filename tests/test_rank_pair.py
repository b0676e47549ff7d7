"""Two ranks of a test: what becomes of one's failure, and of the other that waits for it."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.rank_pair import run_pair


def fail_or_wait(rank: int, world: int, meetings: Sequence[str], model: str, out: Path) -> None:
    (out / f"pid{rank}").write_text(str(os.getpid()))
    if rank:
        raise RuntimeError("this rank failed")
    time.sleep(600)


def wait(rank: int, world: int, meetings: Sequence[str], model: str, out: Path) -> None:
    (out / f"pid{rank}").write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.real
def test_a_rank_that_fails_or_hangs_takes_the_other_with_it(tmp_path: Path) -> None:
    # The first waits for the server's imports, too.
    for run_rank, timeout_s, words in ((fail_or_wait, 120, "this rank failed"), (wait, 3, "after at most 3 s")):
        with pytest.raises(AssertionError, match=words):
            run_pair(run_rank, 1, tmp_path, tmp_path, timeout_s)
        for rank in range(2):
            pid = (tmp_path / f"pid{rank}").read_text()
            deadline = time.monotonic() + 10
            while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not Path(f"/proc/{pid}").exists()
