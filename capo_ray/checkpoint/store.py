"""Checkpoints as directories `v000012`, each whole or not there at all.

    begin: .writing-v000012/ -> writers fill it and report (name, bytes, sha256) of every file
    seal:  each report is found -> MANIFEST.json -> one rename -> v000012/ -> older ones pruned

Whoever writes a file hashes it on the way: nothing is read again to seal it. Invariant: a directory named `v…` was
complete when it got its name, and `verify` shows whether it still is: size and sha256 of every file stand in the
manifest, which is compared byte for byte with its canonical form. A kill while pruning leaves a directory that does
not verify; a kill while writing leaves `.writing-…`, which the next write removes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capo_ray.checkpoint.state import CheckpointCorrupt, Unreadable, to_bytes
from capo_ray.runs.files import fsync_directory
from capo_ray.types import WrittenFile
from capo_ray.written import sha256

MANIFEST = "MANIFEST.json"
FIND_S = 30.0
"""How long a file that another node wrote may take to be seen here: network file systems cache what was missing."""
HASHING_THREADS = 8
_NAME = re.compile(r"v(\d{6,})")
_WRITING = ".writing-"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Draft:
    """A checkpoint that is being written: its directory, and what its writers say they have put there."""

    version: int
    directory: Path
    files: dict[str, list[object]] = field(default_factory=dict)

    def add(self, folder: str, written: Sequence[WrittenFile]) -> None:
        """Note what was written into a folder of the draft; `CheckpointCorrupt` where nothing was."""
        if not written:
            raise CheckpointCorrupt(f"expected files in {folder} of checkpoint {self.version}, got none")
        for file in written:
            self.files[f"{folder}/{file.name}"] = [file.num_bytes, file.sha256]

    def write(self, name: str, state: Mapping[str, Any]) -> None:
        """Write a JSON state file."""
        content = to_bytes(state)
        (self.directory / name).write_bytes(content)
        _fsync_file(self.directory / name)
        self.files[name] = [len(content), hashlib.sha256(content).hexdigest()]


class CheckpointStore:
    """The checkpoints of one run; one process writes, any may read. Every method may block for as long as a disk may.

    `run_id` stands in every manifest; a checkpoint of another run does not verify. Without one none is asked for.
    """

    def __init__(self, directory: Path, keep: int, run_id: str = "") -> None:
        if keep < 1:
            raise ValueError(f"expected keep >= 1 checkpoints, got {keep}")
        self.directory = directory
        self._keep = keep
        self._run_id = run_id

    def begin(self, version: int, folders: Sequence[str] = ()) -> Draft:
        """An empty directory to fill, with these folders; leftovers of writes that ended early are removed."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in self.directory.iterdir():
            if path.name.startswith(_WRITING):
                shutil.rmtree(path)
        directory = self.directory / f"{_WRITING}v{version:06d}"
        for folder in (".", *folders):
            (directory / folder).mkdir()
        return Draft(version, directory)

    def seal(self, draft: Draft) -> Path:
        """The checkpoint that the draft became; `CheckpointCorrupt` where a file is not there as its writer said.

        Checkpoints of higher versions are removed then: they belong to a line of updates that a resume gave up.
        """
        directory = draft.directory
        for name, (size, _) in draft.files.items():
            _await_file(directory / name, int(str(size)))
        for name in _files(directory):
            if name not in draft.files:
                raise CheckpointCorrupt(f"{directory / name} was written by nobody that reported it; not sealed")
        manifest = directory / MANIFEST
        manifest.write_bytes(_to_manifest(draft.version, self._run_id, draft.files))
        _fsync_file(manifest)
        for parent, _, _ in os.walk(directory):
            fsync_directory(Path(parent))
        final = self._path(draft.version)
        if final.exists():  # only a corrupt one: resuming takes the newest that verifies and goes on from there
            shutil.rmtree(final)
        directory.rename(final)
        fsync_directory(self.directory)
        self._prune(draft.version)
        return final

    def abandon(self, draft: Draft) -> None:
        """Remove a draft that is not to be sealed."""
        shutil.rmtree(draft.directory, ignore_errors=True)

    def latest(self) -> Path | None:
        """The newest checkpoint that verifies fully, or None; each newer one that does not is logged by name.

        Raises `Unreadable` where a file system error keeps one from being looked at: that is not damage.
        """
        return self._newest(self.verify)

    def likely(self) -> Path | None:
        """As `latest`, by manifest, names and sizes alone: told in a moment, whatever the size."""
        return self._newest(self.look)

    def set_aside(self) -> list[Path]:
        """The present checkpoints under names that no store reads or prunes, `aside-…`."""
        moved = []
        for version in self.versions():
            target = self.directory / f"aside-{int(time.time())}-v{version:06d}"
            self._path(version).rename(target)
            moved.append(target)
        return moved

    def versions(self) -> list[int]:
        """The versions that have a directory, ascending, verified or not."""
        try:
            names = [path.name for path in self.directory.iterdir() if path.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Unreadable.of(self.directory, error) from error
        found = [_NAME.fullmatch(name) for name in names]
        return sorted(int(match[1]) for match in found if match)

    def verify(self, path: Path) -> None:
        """Nothing, if every file under `path` is what was written; else raises `CheckpointCorrupt` naming the file."""
        expected = self.look(path)
        with ThreadPoolExecutor(HASHING_THREADS) as threads:
            found = list(threads.map(lambda name: _sha256(path / name), expected))
        for (name, (_, noted)), actual in zip(expected.items(), found, strict=True):
            if actual != noted:
                raise CheckpointCorrupt(
                    f"{path / name} has another sha256 than when it was written (expected {noted}, got {actual}); "
                    f"resume from another checkpoint"
                )

    def look(self, path: Path) -> dict[str, list[object]]:
        """[bytes, sha256] of each file by name, if manifest, names and sizes are what was written; else as `verify`."""
        version, run_id, expected = _read_manifest(path)
        if path.name != f"v{version:06d}":
            raise CheckpointCorrupt(f"{path / MANIFEST} is of version {version}, not of {path.name}")
        if self._run_id and run_id != self._run_id:
            raise CheckpointCorrupt(f"{path / MANIFEST} is of another run ({run_id}), not of this one ({self._run_id})")
        present = {name for name in _files(path) if name != MANIFEST}
        for name in sorted(present | set(expected)):
            if name not in expected:
                raise CheckpointCorrupt(
                    f"{path / name} does not belong to the checkpoint; remove it or resume from another"
                )
            if name not in present:
                raise CheckpointCorrupt(f"{path / name} is missing; resume from another checkpoint")
            size = _size(path / name)
            if size != expected[name][0]:
                raise CheckpointCorrupt(
                    f"{path / name} has another size than when it was written (expected {expected[name][0]} bytes, "
                    f"got {size}); resume from another checkpoint"
                )
        return expected

    def _newest(self, check: Callable[[Path], object]) -> Path | None:
        for version in reversed(self.versions()):
            try:
                check(self._path(version))
            except CheckpointCorrupt as error:
                _log.warning("checkpoint passed over: %s", error)
            else:
                return self._path(version)
        return None

    def _path(self, version: int) -> Path:
        return self.directory / f"v{version:06d}"

    def _prune(self, written: int) -> None:
        """Remove versions above `written`, and of the others all but the newest `keep`."""
        versions = self.versions()
        kept = [v for v in versions if v <= written][-self._keep :]
        for version in versions:
            if version not in kept:
                shutil.rmtree(self._path(version))


def _await_file(path: Path, size: int) -> None:
    """Returns once `path` is here with this size; `CheckpointCorrupt` where it does not come to be."""
    ends = time.monotonic() + FIND_S
    while True:
        try:
            os.listdir(path.parent)  # asks the server anew for what was missing a moment ago
            found = path.stat().st_size
        except FileNotFoundError:
            found = -1
        if found == size:
            return
        if time.monotonic() > ends:
            got = "no such file" if found < 0 else f"{found}"
            raise CheckpointCorrupt(
                f"a checkpoint needs {path} of {size} bytes as its writer reported it, got {got} within "
                f"{FIND_S:.0f} s; not sealed: put run.dir on a file system that all nodes see"
            )
        time.sleep(0.2)


def _to_manifest(version: int, run_id: str, files: Mapping[str, list[object]]) -> bytes:
    """The one byte form of a manifest; its own digest is part of it."""
    content = {"version": version, "run_id": run_id, "files": dict(sorted(files.items()))}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "manifest_sha256": digest}, indent=1) + "\n").encode()


def _read_manifest(path: Path) -> tuple[int, str, dict[str, list[object]]]:
    """Version, run and files of the checkpoint at `path`, from a manifest that is exactly as it was written."""
    manifest = path / MANIFEST
    try:
        raw = manifest.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointCorrupt(f"{manifest} cannot be read ({error}); resume from another checkpoint") from error
    except OSError as error:
        raise Unreadable.of(manifest, error) from error
    try:
        content = json.loads(raw)
        version, run_id = int(content["version"]), str(content["run_id"])
        files = {str(k): list(v) for k, v in content["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointCorrupt(f"{manifest} cannot be read ({error}); resume from another checkpoint") from error
    if raw != _to_manifest(version, run_id, files):
        raise CheckpointCorrupt(f"{manifest} is not as it was written; resume from another checkpoint")
    return version, run_id, files


def _files(directory: Path) -> Iterator[str]:
    """The relative names of all files below `directory`; raises `CheckpointCorrupt` on anything but plain files."""

    def unreadable(error: OSError) -> None:
        raise Unreadable.of(directory, error) from error

    for parent, directories, names in os.walk(directory, onerror=unreadable):
        for name in (*directories, *names):
            path = Path(parent, name)
            try:
                plain = not path.is_symlink() and (path.is_dir() or path.is_file())
            except OSError as error:
                raise Unreadable.of(path, error) from error
            if not plain:
                raise CheckpointCorrupt(
                    f"{path} is neither a plain file nor a directory; a checkpoint holds only these"
                )
        for name in names:
            yield Path(parent, name).relative_to(directory).as_posix()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise Unreadable.of(path, error) from error


def _sha256(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise Unreadable.of(path, error) from error


def _fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
