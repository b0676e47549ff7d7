"""What an engine that ended leaves behind in its process: the imports as they were, and nothing of its own."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from benchmarks.tiny import write_tiny_model
from capo_ray.engines import EngineSpec, VllmEngine
from capo_ray.engines.twin import worker_model

pytestmark = pytest.mark.real
IMPORTS = 100_000
"""Objects of vLLM's imports, of which there are some 900,000."""


def test_an_engine_that_ended_frees_its_model_and_no_collection_goes_through_the_imports(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    spec = EngineSpec(model_path=str(tmp_path), max_model_len=64, kv_cache_gib=0.05)
    for _ in range(2):  # the second finds the imports made, and is the one looked at: vLLM keeps a first one's model
        engine = VllmEngine(spec)
        engine.start()
        model = weakref.ref(worker_model(engine._stepper.engine))
        engine.close()
        assert gc.get_freeze_count() > IMPORTS > len(gc.get_objects())
        del engine
        gc.collect()
    assert model() is None
