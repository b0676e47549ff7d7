"""A verifier of one's own: the last whole number of a response must be the answer. It runs in a process that may be
killed, so it may hang or crash: that is an invalid verdict, never a wrong one."""

from __future__ import annotations

import re


def last_number(answer: str, response: str) -> bool | None:
    """Whether the last whole number is the answer; None (invalid) where the answer itself is no whole number."""
    if not re.fullmatch(r"-?\d+", answer.strip()):
        return None
    numbers = re.findall(r"-?\d+", response)
    return bool(numbers) and int(numbers[-1]) == int(answer)
