"""`capo-ray export RUN`: a verified copy of the policy of a run's checkpoint, as a Hugging Face model directory."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capo_ray.checkpoint import MANIFEST, CheckpointCorrupt, CheckpointStore
from capo_ray.cli.model_card import CARD_FILE, card_of
from capo_ray.cli.models import read_facts
from capo_ray.cli.overrides import output_path
from capo_ray.protocols import RunFailed
from capo_ray.runs.layout import CHECKPOINTS, LEARNER_DIR, POLICY_DIR
from capo_ray.written import sha256

ADAPTER = {
    f"{LEARNER_DIR}/adapter_model.safetensors": "adapter_model.safetensors",
    f"{LEARNER_DIR}/adapter_model.json": "adapter_config.json",
}
"""Where a checkpoint keeps the adapters of its policy, and what peft calls them."""
HELP = """copy a run's policy out of its checkpoint, as a Hugging Face model directory

The checkpoint is verified file by file before, and the copy after; an existing output is never written into. Beside the
weights stands a card, README.md: how the policy was made, its accuracy, how it was asked."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("run", metavar="RUN", type=Path, help="run directory, as runs/latest")
    parser.add_argument("--output", type=output_path, required=True, help="directory to make")
    parser.add_argument("--checkpoint", type=int, metavar="N", help="version; without it the newest whole one")
    parser.add_argument("--adapter", action="store_true", help="only the adapters of a run with learner.lora, for peft")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """0 once the copy is whole."""
    checkpoint = find_checkpoint(args.run, args.checkpoint)
    version = int(checkpoint.name[1:])
    card = card_of(args.run, version)
    if args.adapter:
        files, what = copy_files(checkpoint, ADAPTER, args.output, card), "adapters of the policy"
        report = {"output": str(args.output), "version": version, "files": files}
    else:
        files = copy_policy(checkpoint, args.output, card)
        size = read_facts(args.output, "--output").num_params
        what = f"{size:,} parameters"
        report = {"output": str(args.output), "version": version, "files": files, "parameters": size}
    if args.json:
        print(json.dumps(report))
    else:
        print(f"{args.output}: version {version}, {what}, {len(files)} files, verified")
    return 0


def find_checkpoint(run_dir: Path, version: int | None) -> Path:
    """The asked-for or newest checkpoint of a run that verifies."""
    folder = run_dir / CHECKPOINTS
    if not folder.is_dir():
        raise RunFailed(f"expected a run directory with checkpoints/, got {run_dir}; give the path of a run")
    store = CheckpointStore(folder, keep=1)
    if version is None:
        latest = store.latest()
        if latest is None:
            raise RunFailed(f"expected a whole checkpoint in {folder}, found none; let the run reach its first one")
        return latest
    path = folder / f"v{version:06d}"
    if not path.is_dir():
        raise RunFailed(f"--checkpoint: expected one of {store.versions()} in {folder}, got {version}")
    try:
        store.verify(path)
    except CheckpointCorrupt as error:
        raise RunFailed(str(error)) from error
    return path


def copy_policy(checkpoint: Path, output: Path, card: str = "") -> list[str]:
    """The names of the files of the policy copied to `output`, which appears whole or not at all."""
    if not (checkpoint / POLICY_DIR).is_dir():
        raise RunFailed(f"expected {POLICY_DIR}/ in {checkpoint}, found none; this checkpoint cannot be exported")
    names = (name for name in _sealed(checkpoint) if name.startswith(f"{POLICY_DIR}/"))
    return copy_files(checkpoint, {name: name.removeprefix(f"{POLICY_DIR}/") for name in names}, output, card)


def copy_files(checkpoint: Path, names: Mapping[str, str], output: Path, card: str = "") -> list[str]:
    """The names of a checkpoint's files in `output`, which appears whole or not at all, with a card beside them."""
    sealed = _sealed(checkpoint)
    if missing := sorted(name for name in names if name not in sealed):
        raise RunFailed(
            f"--adapter: expected {', '.join(missing)} in {checkpoint}, found none: only a run with learner.lora.rank "
            f"has adapters; leave it out"
        )
    if output.exists():
        raise RunFailed(f"--output: {output} already exists; choose a new directory")
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, target in names.items():
            (partial / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint / name, partial / target)
            if sha256(partial / target) != sealed[name][1]:
                raise RunFailed(f"the copy of {target} differs from the checkpoint; check the disk of {output.parent}")
        if card and CARD_FILE not in names.values():
            (partial / CARD_FILE).write_text(card, encoding="utf-8")
        partial.rename(output)
    except OSError as error:
        raise RunFailed(f"--output: cannot write {output} ({error}); choose another place") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(names.values())


def _sealed(checkpoint: Path) -> dict[str, list[Any]]:
    """Size and sha256 of every file of a checkpoint, by its name in it."""
    files: dict[str, list[Any]] = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    return files
