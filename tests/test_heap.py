"""Freed memory is used again, not fetched anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import capo_ray

HEAP = Path(capo_ray.__file__).parent / "engines" / "heap.py"
FREE_AND_TAKE = """
import resource, runpy, sys, threading
import numpy as np

if sys.argv[1] == "keep":
    assert runpy.run_path(sys.argv[2])["keep_freed_memory"]()  # the file alone: its room would import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def take():
    blocks = [np.empty(size << 20, dtype=np.uint8) for size in (100, 3, 7, 3, 40)]
    for block in blocks:
        block[:: 4096] = 1

def twice():
    take()
    before = faults()
    take()
    print(faults() - before)

thread = threading.Thread(target=twice)  # as an engine loads: not on the main thread
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_was_freed_is_not_fetched_page_by_page_again() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FREE_AND_TAKE, how, str(HEAP)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    kept, usual = faults("keep"), faults("give back")
    assert kept < 50 < usual, "153 MiB are at least 76 pages, of 2 MiB each where the kernel gives such"
