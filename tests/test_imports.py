"""Heavy imports: not looked through for garbage, and made by those alone who need what they bring."""

from __future__ import annotations

import gc
import subprocess
import sys
from importlib import import_module

import pytest

from capo_ray.imports import left_frozen, unwatched

LOOKS = """
import gc
from capo_ray.imports import imported_for_good

looks = []
gc.callbacks.append(lambda phase, about: looks.append(about["generation"]))
with imported_for_good():
    import colorsys
    many = [[] for _ in range(100_000)]
    during = len(looks)
assert gc.isenabled() and gc.get_freeze_count() >= len(many)
kept = gc.get_freeze_count()
more = [[] for _ in range(100_000)]
gc.disable()
with imported_for_good():
    import colorsys
print(during, gc.isenabled(), gc.get_freeze_count() < kept + len(more))
"""


def test_what_is_imported_for_good_is_not_looked_through_and_collection_is_as_it_was() -> None:
    done = subprocess.run([sys.executable, "-c", LOOKS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False", "True"]


def test_an_import_in_a_users_process_is_not_looked_through_and_freezes_nothing() -> None:
    frozen = gc.get_freeze_count()
    with unwatched():
        assert not gc.isenabled()
        with unwatched():
            pass
        assert not gc.isenabled(), "whoever is inside does not switch it on for whoever is outside"
    assert gc.isenabled() and gc.get_freeze_count() == frozen


DRIVER = """
import sys
import capo_ray.place.train, capo_ray.place.evaluate, capo_ray.place.session
from capo_ray.engines import HfTokenizer
from capo_ray.place.cluster import object_store_bytes
from capo_ray.cli.compose import compose_train
from capo_ray.problems import asset_path

HfTokenizer(asset_path("novice", "policy"))
assert object_store_bytes(compose_train(["experiment=novice"])) > 0
heavy = ("torch", "vllm", "deepspeed", "transformers.models.auto.modeling_auto")
print([name for name in heavy if name in sys.modules])
"""


@pytest.mark.slow
def test_a_driver_imports_neither_torch_nor_what_its_workers_run() -> None:
    done = subprocess.run([sys.executable, "-c", DRIVER], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("room", ["capo_ray.engines", "capo_ray.learners", "capo_ray.verifiers", "capo_ray.weights"])
def test_a_room_has_every_name_of_its_list_and_says_which_it_has_not(room: str) -> None:
    package = import_module(room)
    for name in package.__all__:
        assert getattr(package, name) is not None, name
    with pytest.raises(AttributeError, match=f"module '{room}' has no attribute 'sead'"):
        package.sead  # noqa: B018


def test_an_engine_neither_freezes_nor_unfreezes_also_where_two_are_built_at_once() -> None:
    freeze, unfreeze, frozen = gc.freeze, gc.unfreeze, gc.get_freeze_count()
    one, other = left_frozen(), left_frozen()
    one.__enter__()
    other.__enter__()
    gc.unfreeze()
    gc.freeze()
    one.__exit__(None, None, None)
    other.__exit__(None, None, None)
    assert gc.get_freeze_count() == frozen
    assert (gc.freeze, gc.unfreeze) == (freeze, unfreeze)
