"""Imports that nobody looks through for garbage, and imports that wait until somebody asks.

The modules of vLLM, transformers and DeepSpeed make some million objects that live as long as the process. Looking for
garbage among them, while they are imported and at each collection after, takes a quarter of what their import costs.

A driver holds no tensors. Where it imports a room of them for a name or two that need no torch, and for the names of
what its workers run, torch would cost it two seconds and 150 MB: such a room imports what needs torch `on_demand`.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

# Kept here, for `left_frozen` in two threads at once: the second would find, and later put back, what the first set.
_FREEZE, _UNFREEZE = gc.freeze, gc.unfreeze


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


@contextlib.contextmanager
def left_frozen() -> Iterator[None]:
    """What is frozen stays so, and nothing is added: for the building and the closing of an engine.

    vLLM freezes every object there is once an engine is loaded, and unfreezes all of them when it ends: each of the
    three collections that it then asks for, and of the five at the next engine's start, would go through a million
    objects of the imports, for most of a second. This way the imports' objects stay frozen, and an engine's own never
    are, so that what it held is freed.
    """
    gc.freeze = gc.unfreeze = lambda: None
    try:
        yield
    finally:
        gc.freeze, gc.unfreeze = _FREEZE, _UNFREEZE


def on_demand(room: str, *modules: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package: what its `__all__` names and it has not is in one of its `modules`.

    They are imported, in this order and until the name is found, when it is asked for first.
    """

    def find(name: str) -> Any:
        package = sys.modules[room]
        if name in package.__all__:
            for module in modules:
                with unwatched():
                    found = vars(import_module(f"{room}.{module}"))
                if name in found:
                    setattr(package, name, found[name])
                    return found[name]
        raise AttributeError(f"module {room!r} has no attribute {name!r}")

    return find
