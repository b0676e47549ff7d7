"""Files that ranks write: what they report is what stands there, and the library reads it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, safe_open

from capo_ray.learners.export import ModelSource, export_model
from capo_ray.learners.files import write_bytes, write_tensors
from capo_ray.learners.shards import Snapshot, copy_to_host, read_shard, snapshot
from capo_ray.protocols import RunFailed
from capo_ray.types import WrittenFile


def found(path: Path) -> WrittenFile:
    content = path.read_bytes()
    return WrittenFile(path.name, len(content), hashlib.sha256(content).hexdigest())


def test_tensors_are_read_by_the_library_as_they_were_written_and_reported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "half": torch.randn(5, 3).to(torch.bfloat16),
        "turned": torch.randn(4, 6).T,
        "scalar": torch.tensor(7.0, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "whole": torch.tensor([1, -2], dtype=torch.int64),
        "mask": torch.tensor([True, False, True]),
    }
    written = write_tensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    assert written == found(tmp_path / "x.safetensors")
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_bytes_longer_than_a_chunk_are_hashed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capo_ray.learners.files.CHUNK_BYTES", 7)
    assert write_bytes(tmp_path / "x", [b"0123456789" * 5, b"end"]) == found(tmp_path / "x")


def test_a_snapshot_is_not_reached_by_what_is_trained_after_it(tmp_path: Path) -> None:
    weights = {"master.0": torch.ones(3)}
    kept = snapshot(0, copy_to_host(weights), {"version": 4})
    weights["master.0"].add_(1)
    draw = torch.rand(1)
    files = kept.save(str(tmp_path))
    assert {file.name for file in files} == {"rank0.safetensors", "rank0.json"}
    assert list(files) == [found(tmp_path / file.name) for file in files]
    tensors, facts = read_shard(tmp_path, 0)
    assert tensors["master.0"].tolist() == [1, 1, 1] and facts == {"version": 4}
    assert torch.rand(1) == draw, "the generators are those of the snapshot's moment too"


def test_a_rank_never_makes_the_directory_that_the_driver_should_have_made(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="made by the driver, to be seen by every learner rank"):
        Snapshot(0, {}, {}, {}).save(str(tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()


class Config(SimpleNamespace):
    def save_pretrained(self, path: str) -> None:
        Path(path, "config.json").write_text("{}")


def test_a_large_policy_is_exported_in_several_files_with_their_index(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    weights = {f"layer.{i}": torch.full((10,), float(i)) for i in range(5)}  # 40 bytes each
    out = tmp_path / "out"
    out.mkdir()
    files = export_model(ModelSource(Config(), str(source)), weights, out, shard_bytes=100)
    assert list(files) == [found(out / file.name) for file in files] and len(files) == len(list(out.iterdir()))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 200
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(out / file)[name], weights[name])
    assert {"config.json", "tokenizer.json"} <= {file.name for file in files}


def test_weights_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    bad = {"layer": torch.tensor([1.0, float("nan")])}
    with pytest.raises(RunFailed, match=r"weights must be finite to be kept .* in layer"):
        Snapshot(0, {}, {}, {}, policy=(ModelSource(Config(), str(tmp_path)), bad)).export(str(tmp_path))
