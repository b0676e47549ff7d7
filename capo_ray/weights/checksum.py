"""A checksum of many bytes in 0.6 of the time of CRC-32: the CRC-32 of what they sum up to, lengthwise and across.

    block of 256 KiB = 32 x 1024 words of 64 bits  ->  CRC-32 over 32 sums of its rows and 1024 sums of its columns

A flip changes one sum of each kind, whatever else happens in its row; words that change places change their columns'
sums or their rows'; blocks that do change the CRC. Only errors that cancel in both directions at once (mod 2^64) pass.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch

BLOCK_BYTES = 1 << 18
_COLUMNS = 1024


def checksum(flat: np.ndarray[Any, Any], start: int = 0) -> int:
    """The checksum of bytes that follow others, whose checksum is `start` and whose number is whole blocks."""
    for at in range(0, len(flat), BLOCK_BYTES):
        block = flat[at : at + BLOCK_BYTES]
        if len(block) == BLOCK_BYTES:
            words = block.view(np.uint64).reshape(-1, _COLUMNS)
            start = zlib.crc32(words.sum(0).data, zlib.crc32(words.sum(1).data, start))
        else:
            start = zlib.crc32(block.data, start)
    return start


def device_checksum(flat: torch.Tensor) -> int:
    """The checksum of a tensor of bytes, summed where it lies: 3% of them come to the host."""
    if flat.storage_offset() % torch.int64.itemsize:
        flat = flat.clone()  # a part of a larger tensor, between two words
    whole = len(flat) // BLOCK_BYTES * BLOCK_BYTES
    words = flat[:whole].view(torch.int64).view(-1, BLOCK_BYTES // (8 * _COLUMNS), _COLUMNS)
    start = 0
    for rows, columns in zip(words.sum(2).cpu().numpy(), words.sum(1).cpu().numpy(), strict=True):
        start = zlib.crc32(columns.data, zlib.crc32(rows.data, start))
    rest = flat[whole:].cpu().numpy()
    return zlib.crc32(rest.data, start) if len(rest) else start
