"""Heavy imports are not looked through for garbage, and collection is afterwards as it was."""

from __future__ import annotations

import gc
import subprocess
import sys

from capo_ray.imports import unwatched

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
