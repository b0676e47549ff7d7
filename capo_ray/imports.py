"""Imports that nobody looks through for garbage.

The modules of vLLM, transformers and DeepSpeed make some million objects that live as long as the process. Looking for
garbage among them, while they are imported and at each collection after, takes a quarter of what their import costs.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Nothing is looked through for garbage meanwhile: for an import in whoever's process this is."""
    watched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if watched:
            gc.enable()


@contextlib.contextmanager
def imported_for_good() -> Iterator[None]:
    """`unwatched`, and what there is afterwards is never looked through again: for processes that are a run's alone.

    Where all was imported before, nothing is kept: garbage of that moment would be kept with it.
    """
    known = len(sys.modules)
    with unwatched():
        yield
        if len(sys.modules) > known:
            gc.freeze()
