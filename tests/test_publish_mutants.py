"""Wrong weights do not serve and right ones do, in bf16 as in fp32: the benchmark of the same name, made small."""

from __future__ import annotations

import pytest

from capo_ray.problems import asset_path

pytestmark = pytest.mark.real

KNOWN = ", on a known way"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_mutant_of_a_publish_is_refused_and_no_clean_one(dtype: str) -> None:
    from benchmarks.publish_mutants import run  # takes vLLM with it, for seconds: not for every collection

    result = run(str(asset_path("laptop", "policy")), dtype, repeats=1, clean=20)
    assert result["clean_refused"] == 0
    served = [row["mutant"] for row in result["mutants"] if not row["refused"] and not row["at_start"]]
    assert served == []
    # Older weights move bf16's scores by less than its rounding does: they show by their bytes alone.
    old = {row["mutant"]: row for row in result["mutants"] if row["place"] == "sender" and "old" in row["mutant"]}
    assert len(old) == 6 and all(row["by"] == ["checksum"] for row in old.values())
    if dtype == "bfloat16":
        assert min(row["effect_nats"] for row in old.values()) < result["allowed"]["mean"]
    by = {row["mutant"]: row["by"] for row in result["mutants"] if row["place"] != "sender"}
    assert all(by[f"{what} loaded{way}"] == ["layers"] for what in ("nothing", "a layer not") for way in ("", KNOWN))
    assert by["whole older handle, relabelled"] == ["fingerprint"] == by["canary taken out, resealed"]
    assert by["half of the tensors old"] == ["checksum"] == by["old payload under the new manifest"]
    wire = {row["mutant"]: row["by"] for row in result["mutants"] if row["place"] == "wire"}
    assert len(wire) == 14 and wire["a tensor cut on the way"] == ["wire"]
    assert wire["half of the tensors old"] == ["checksum"] == wire["two tensors of one shape swapped"]
    assert wire["a tensor lost on the way"] == ["places"] == wire["names swapped on the way"]
