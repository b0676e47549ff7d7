"""This machine's NVIDIA GPUs, as nvidia-smi tells of them."""

from __future__ import annotations

import shutil
import subprocess

GPU_QUERY = "name,memory.total,driver_version,compute_cap"
BF16_CAPABILITY = 8.0
"""Of NVIDIA's devices from Ampere on."""
ANSWER_S = 20


def found_gpus() -> tuple[dict[str, str], ...]:
    """The answers to `GPU_QUERY` for each GPU; none where nvidia-smi is not there or does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, f"--query-gpu={GPU_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=ANSWER_S, check=True)
    except (subprocess.SubprocessError, OSError):
        return ()
    return read_gpus(done.stdout)


def read_gpus(table: str) -> tuple[dict[str, str], ...]:
    """The same from the lines of nvidia-smi, as `H100, 81559, 580.65, 9.0`."""
    rows = [[cell.strip() for cell in line.split(",")] for line in table.strip().splitlines()]
    return tuple(dict(zip(GPU_QUERY.split(","), row, strict=False)) for row in rows)


def sizes_of(gpus: tuple[dict[str, str], ...]) -> list[tuple[float, float]]:
    """Memory in GiB and compute capability of each."""
    return [(float(gpu["memory.total"]) / 1024, float(gpu["compute_cap"])) for gpu in gpus]
