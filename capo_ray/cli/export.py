"""`capo-ray export RUN`: a verified copy of the policy of a run's checkpoint, as a Hugging Face model directory."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from capo_ray.checkpoint import MANIFEST, CheckpointCorrupt, CheckpointStore
from capo_ray.cli.models import read_facts
from capo_ray.protocols import RunFailed
from capo_ray.runs.layout import CHECKPOINTS, POLICY_DIR
from capo_ray.written import sha256

HELP = """copy a run's policy out of its checkpoint, as a Hugging Face model directory

The checkpoint is verified file by file before, and the copy after; an existing output is never written into."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("run", metavar="RUN", type=Path, help="run directory, as runs/latest")
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    parser.add_argument("--checkpoint", type=int, metavar="N", help="version; without it the newest whole one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """0 once the copy is whole."""
    checkpoint = find_checkpoint(args.run, args.checkpoint)
    files = copy_policy(checkpoint, args.output)
    facts = read_facts(args.output, "--output")
    version = int(checkpoint.name[1:])
    report = {"output": str(args.output), "version": version, "files": files, "parameters": facts.num_params}
    if args.json:
        print(json.dumps(report))
    else:
        print(f"{args.output}: version {version}, {facts.num_params:,} parameters, {len(files)} files, verified")
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


def copy_policy(checkpoint: Path, output: Path) -> list[str]:
    """The names of the files copied to `output`, which appears whole or not at all."""
    source = checkpoint / POLICY_DIR
    if not source.is_dir():
        raise RunFailed(f"expected {POLICY_DIR}/ in {checkpoint}, found none; this checkpoint cannot be exported")
    if output.exists():
        raise RunFailed(f"--output: {output} already exists; choose a new directory")
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(source, partial)
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        names = sorted(name.removeprefix(f"{POLICY_DIR}/") for name in files if name.startswith(f"{POLICY_DIR}/"))
        for name in names:
            (partial / name).chmod(0o644)  # writers of safetensors make files for their owner alone
            if sha256(partial / name) != files[f"{POLICY_DIR}/{name}"][1]:
                raise RunFailed(f"the copy of {name} differs from the checkpoint; check the disk of {output.parent}")
        partial.rename(output)
    except OSError as error:
        raise RunFailed(f"--output: cannot write {output} ({error}); choose another place") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return names
