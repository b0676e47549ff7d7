"""Checkpoints as directories `v000012`, each whole or not there at all.

    .writing-v000012/ files -> hashed and synced -> MANIFEST.json -> one rename -> v000012/ -> older ones pruned

Invariant: a directory named `v…` was complete when it got its name, and `verify` shows whether it still is: size and
sha256 of every file stand in the manifest, which is compared byte for byte with its canonical form. A kill
while pruning leaves a directory that does not verify; a kill while writing leaves `.writing-…`, which the next write
removes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from capo_ray.checkpoint.state import CheckpointCorrupt, fsync_directory

MANIFEST = "MANIFEST.json"
_NAME = re.compile(r"v(\d{6,})")
_WRITING = ".writing-"
_log = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one run; one process writes, any may read."""

    def __init__(self, directory: Path, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"expected keep >= 1 checkpoints, got {keep}")
        self._dir = directory
        self._keep = keep

    @contextmanager
    def writing(self, version: int) -> Iterator[Path]:
        """An empty directory to fill; on leaving it becomes checkpoint `version`, or vanishes if there was an error.

        Checkpoints of higher versions are removed then: they belong to a line of updates that a resume gave up.
        """
        self._dir.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        name = f"v{version:06d}"
        temporary, final = self._dir / f"{_WRITING}{name}", self._dir / name
        temporary.mkdir()
        try:
            yield temporary
            _seal(temporary, version)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if final.exists():  # only a corrupt one: resuming takes the newest that verifies and goes on from there
            shutil.rmtree(final)
        temporary.rename(final)
        fsync_directory(self._dir)
        self._prune(version)

    def latest(self) -> Path | None:
        """The newest checkpoint that verifies fully, or None; each newer one that does not is logged by name."""
        for version in reversed(self.versions()):
            path = self._dir / f"v{version:06d}"
            try:
                self.verify(path)
            except CheckpointCorrupt as error:
                _log.warning("checkpoint passed over: %s", error)
            else:
                return path
        return None

    def versions(self) -> list[int]:
        """The versions that have a directory, ascending, verified or not."""
        if not self._dir.is_dir():
            return []
        found = [_NAME.fullmatch(path.name) for path in self._dir.iterdir() if path.is_dir()]
        return sorted(int(match[1]) for match in found if match)

    def verify(self, path: Path) -> None:
        """Nothing, if every file under `path` is what was written; else raises `CheckpointCorrupt` naming the file."""
        version, expected = _read_manifest(path)
        if path.name != f"v{version:06d}":
            raise CheckpointCorrupt(f"{path / MANIFEST} is of version {version}, not of {path.name}")
        present = {name for name in _files(path) if name != MANIFEST}
        for name in sorted(present | set(expected)):
            if name not in expected:
                raise CheckpointCorrupt(
                    f"{path / name} does not belong to the checkpoint; remove it or resume from another"
                )
            if name not in present:
                raise CheckpointCorrupt(f"{path / name} is missing; resume from another checkpoint")
            try:
                found = _fingerprint(path / name)
            except OSError as error:
                raise CheckpointCorrupt(f"{path / name} cannot be read ({error}); resume from another one") from error
            if found != expected[name]:
                what = "size" if found[0] != expected[name][0] else "sha256"
                raise CheckpointCorrupt(
                    f"{path / name} has another {what} than when it was written "
                    f"(expected {expected[name]}, got {found}); resume from another checkpoint"
                )

    def _prune(self, written: int) -> None:
        """Remove versions above `written`, and of the others all but the newest `keep`."""
        versions = self.versions()
        kept = [v for v in versions if v <= written][-self._keep :]
        for version in versions:
            if version not in kept:
                shutil.rmtree(self._dir / f"v{version:06d}")

    def _remove_leftovers(self) -> None:
        for path in self._dir.iterdir():
            if path.name.startswith(_WRITING):
                shutil.rmtree(path)


def _seal(directory: Path, version: int) -> None:
    """Write the manifest of `directory` and bring everything in it to the disk."""
    files = {}
    for name in sorted(_files(directory)):
        files[name] = _fingerprint(directory / name)
        _fsync_file(directory / name)
    manifest = directory / MANIFEST
    manifest.write_bytes(_to_bytes(version, files))
    _fsync_file(manifest)
    for parent, _, _ in os.walk(directory):
        fsync_directory(Path(parent))


def _to_bytes(version: int, files: Mapping[str, list[object]]) -> bytes:
    """The one byte form of a manifest; its own digest is part of it."""
    content = {"version": version, "files": dict(sorted(files.items()))}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "manifest_sha256": digest}, indent=1) + "\n").encode()


def _read_manifest(path: Path) -> tuple[int, dict[str, list[object]]]:
    """Version and files of the checkpoint at `path`, from a manifest that is exactly as it was written."""
    manifest = path / MANIFEST
    try:
        raw = manifest.read_bytes()
        content = json.loads(raw)
        version, files = int(content["version"]), {str(k): list(v) for k, v in content["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointCorrupt(f"{manifest} cannot be read ({error}); resume from another checkpoint") from error
    if raw != _to_bytes(version, files):
        raise CheckpointCorrupt(f"{manifest} is not as it was written; resume from another checkpoint")
    return version, files


def _files(directory: Path) -> Iterator[str]:
    """The relative names of all files below `directory`; raises `CheckpointCorrupt` on anything but plain files."""
    for parent, directories, names in os.walk(directory):
        for name in (*directories, *names):
            path = Path(parent, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise CheckpointCorrupt(
                    f"{path} is neither a plain file nor a directory; a checkpoint holds only these"
                )
        for name in names:
            yield Path(parent, name).relative_to(directory).as_posix()


def _fingerprint(path: Path) -> list[object]:
    """[size in bytes, sha256] of a file."""
    with path.open("rb") as file:
        return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
