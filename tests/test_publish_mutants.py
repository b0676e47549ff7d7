"""Wrong weights do not serve and right ones do, in bf16 as in fp32: the benchmark of the same name, made small."""

from __future__ import annotations

import pytest

from benchmarks.publish_mutants import run
from capo_ray.problems import asset_path

pytestmark = pytest.mark.real


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_mutant_of_a_publish_is_refused_and_no_clean_one(dtype: str) -> None:
    result = run(str(asset_path("laptop", "policy")), dtype, repeats=1, clean=20)
    assert result["clean_refused"] == 0
    served = [row for row in result["mutants"] if not row["refused"] and not row["at_start"]]
    # Older weights sealed as new by the learner itself, with their own checksums, show by the canary alone; in bf16 an
    # update may be smaller than rounding.
    for row in served:
        assert dtype == "bfloat16" and "old" in row["mutant"] and row["place"] == "sender", row
        assert row["effect_nats"] < result["allowed"]["mean"], row
    by = {row["mutant"]: row["by"] for row in result["mutants"] if row["place"] != "sender"}
    assert by["nothing loaded"] == ["layers"] == by["a layer not loaded"]
    assert by["whole older handle, relabelled"] == ["fingerprint"] == by["canary taken out, resealed"]
    assert by["half of the tensors old"] == ["checksum"] == by["old payload under the new manifest"]
