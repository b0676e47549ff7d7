"""How many examples a property is tried on: all that it asks for, or a part of them in `make check`."""

import os

PART = int(os.environ.get("CAPO_RAY_EXAMPLES_PART", "1"))
"""One of so many is tried."""


def examples(count: int) -> int:
    """The `max_examples` of a property that asks for `count`."""
    return max(count // PART, min(count, 10))
