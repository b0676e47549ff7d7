"""A ledger opened to be read, whoever writes it meanwhile and wherever it lies."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes nothing in the file; raises `ValueError` with a sentence where it cannot be read.

    SQLite wants a file beside the ledger of a run that was broken off. Where none can be made, as on a read-only disk,
    a copy is read.
    """
    db = copy = None
    try:
        db = _open(path)
        try:
            db.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
            db.close()
            copy = tempfile.TemporaryDirectory(prefix="capo-ray-ledger-")
            for one in (path, path.with_name(f"{path.name}-wal")):
                if one.is_file():
                    shutil.copyfile(one, Path(copy.name) / one.name)
            db = _open(Path(copy.name) / path.name)
        yield db
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} cannot be read as a ledger ({error}); give the directory of a run") from error
    finally:
        if db is not None:
            db.close()
        if copy is not None:
            copy.cleanup()


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30.0)
