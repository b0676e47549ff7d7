"""Which files a path names, and the rows of each: JSON lines or arrays, CSV, Parquet, Arrow, compressed or not.

    FILE        that file                        DIR        its data files, of the asked-for split where names tell it
    a*.jsonl    the files that match, in order   DIR        of `save_to_disk`: the shards that its state.json lists

What a file is, its first bytes say, not its name alone.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from capo_ray.protocols import RunFailed

MAX_ROW_BYTES = 1 << 20
"""Of a line, or a text in a column: to tokenise a megabyte takes seconds in which a run stands still."""
Format = Literal["jsonl", "csv", "parquet", "arrow"]
FORMAT_NAMES = {"jsonl": "JSON or other text", "csv": "CSV", "parquet": "Parquet", "arrow": "Arrow"}
Place = tuple[str, "dict[str, Any] | str"]
"""Where a row stands, and the row; or in its stead why it is none."""
SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
ROOTS = ("data", "rows", "examples", "problems", "questions", "instances")
"""Under which an object keeps its rows."""
BOM = b"\xef\xbb\xbf"
PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev", "eval"), "validation"
)


def data_files(path: str, split: str) -> list[Path]:
    """The files that a path names, in order; raises `RunFailed` where there are none."""
    where = Path(path).expanduser()
    if where.is_file():
        return [where]
    if where.is_dir():
        return _of_folder(where, split)
    found = [Path(name) for name in sorted(glob.glob(str(where), recursive=True)) if Path(name).is_file()]
    if not found:
        what = "which matches no file" if glob.has_magic(str(where)) else "which is no file: there is no such path"
        raise RunFailed(f"data.path: expected a file, a folder or a pattern, got {path!r}, {what}; check it")
    return found


def left_out(path: str, split: str) -> list[Path]:
    """The data files of a folder whose names tell no split, where others are read for theirs."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return []
    chosen = frozenset(_of_folder(folder, split))
    return [p for p in _data_in(folder) if p not in chosen and not _split_of(p.relative_to(folder))]


def _data_in(folder: Path) -> list[Path]:
    """The data files under a folder."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and _is_data(p.relative_to(folder))]
    listed = {p.parent: _shards(p) for p in folder.rglob("state.json")}
    # Beside its shards, save_to_disk's folder may hold caches that are no data.
    return [p for p in files if p.parent not in listed or p.name in listed[p.parent]]


def _of_folder(folder: Path, split: str) -> list[Path]:
    """The data files under a folder; of several splits, those of the asked-for one."""
    files = _data_in(folder)
    if not files:
        raise RunFailed(f"data.path: expected data files ({', '.join(SUFFIXES)}) in {folder}, found none")
    splits = {p: _split_of(p.relative_to(folder)) for p in files}
    known = {name for name in splits.values() if name}
    wanted = SPLITS.get(split, split)
    chosen = [p for p in files if splits[p] == wanted] or [p for p in files if not splits[p]]
    if (len(known) > 1 and wanted not in known) or not chosen:
        raise RunFailed(
            f"expected files of the split {split!r} in {folder}, found those of {', '.join(sorted(known))}; set "
            "data.split, or name the files"
        )
    return chosen


def _is_data(path: Path) -> bool:
    name = _unpacked_name(path)
    hidden = any(part.startswith((".", "_")) for part in path.parts)
    return (
        name.endswith(SUFFIXES) and name not in ("state.json", "dataset_info.json", "dataset_dict.json") and not hidden
    )


def _unpacked_name(path: Path) -> str:
    """A file's name in small letters, without the ending that packing gave it."""
    name = path.name.lower()
    for packing in (".gz", ".zst", ".bz2"):
        name = name.removesuffix(packing)
    return name


def _shards(state: Path) -> set[str]:
    try:
        return {str(entry["filename"]) for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise RunFailed(f"expected the state of a saved data set in {state}, got {error!r}; save it again") from error


def _split_of(path: Path) -> str:
    """The split that the name of a file, or of a folder above it, tells; empty where none does."""
    for part in reversed(path.parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLITS:
                return SPLITS[word]
    return ""


def format_of(path: Path) -> Format:
    """What a file is by its first bytes, and where those are text, by its name."""
    try:
        with open_unpacked(path) as file:
            head = file.read(8)
    except OSError as error:
        raise RunFailed(f"expected to read {path}, got: {error}; check it, or pack it again") from error
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    return "csv" if re.search(r"\.[ct]sv(\.|$)", path.name.lower()) else "jsonl"


def open_unpacked(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where they are packed (gzip, zstd, bzip2)."""
    file = path.open("rb")
    head = file.read(4)
    file.seek(0)
    packing = next((name for magic, name in PACKED.items() if head.startswith(magic)), None)
    if packing is None:
        return file
    import pyarrow

    # Its stream says the size of the packed file where asked for its own; a plain reader in between does not ask.
    return io.BufferedReader(cast(io.RawIOBase, pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), packing)))


def rows_of(path: Path, kind: Format, columns: Collection[str] = (), max_bytes: int = MAX_ROW_BYTES) -> Iterator[Place]:
    """The rows of a file in order; of a table only `columns`, where it has all; of lines those up to `max_bytes`."""
    try:
        yield from _rows(path, kind, columns, max_bytes)
    except OSError as error:  # of the disk, or of a packed file that is cut short
        raise RunFailed(f"expected to read {path} to its end, got: {error}; fetch or pack it again") from error


def _rows(path: Path, kind: Format, columns: Collection[str], max_bytes: int) -> Iterator[Place]:
    if kind in ("parquet", "arrow"):
        yield from _table_rows(path, kind, columns)
        return
    with open_unpacked(path) as file:
        if kind == "csv":
            yield from _csv_rows(path, file)
            return
        head = file.peek(64) if isinstance(file, io.BufferedReader) else b""
        whole = _opens_array(head) or _unpacked_name(path).endswith(".json")
        yield from (_json_rows if whole else line_rows)(path, file, max_bytes)


def _opens_array(head: bytes) -> bool:
    return head.removeprefix(BOM).lstrip().startswith(b"[")


def _json_rows(path: Path, file: BinaryIO, max_bytes: int) -> Iterator[Place]:
    """The rows of one JSON array, or of the one array in a JSON object; of anything else its lines."""
    text = file.read()
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        yield from line_rows(path, io.BytesIO(text), max_bytes)
        return
    if isinstance(tree, dict):
        tree = next((tree[name] for name in ROOTS if isinstance(tree.get(name), list)), [tree])
    for number, row in enumerate(tree if isinstance(tree, list) else [tree], 1):
        said = row if isinstance(row, dict) else f"expected a JSON object, got {type(row).__name__}"
        yield f"{path}:{number}", said


def line_rows(path: Path | str, file: BinaryIO, max_bytes: int = MAX_ROW_BYTES) -> Iterator[Place]:
    """The rows of JSON lines, blank ones left out."""
    for number, line in enumerate(_lines(file, max_bytes), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        if len(line) > max_bytes:
            yield place, f"expected a line of at most {max_bytes >> 20} MiB, got a longer one"
            continue
        try:
            row = json.loads(line.removeprefix(BOM) if number == 1 else line)
        except (ValueError, RecursionError) as error:
            yield place, f"expected a JSON object in UTF-8, got {line[:40]!r} ({error})"
            continue
        yield place, row if isinstance(row, dict) else f"expected a JSON object, got {type(row).__name__}"


def _lines(file: BinaryIO, max_bytes: int) -> Iterator[bytes]:
    """The lines of a file; of one that is too long its first bytes, one more than are allowed."""
    while line := file.readline(max_bytes + 1):
        rest = line
        while len(rest) > max_bytes and not rest.endswith(b"\n"):
            rest = file.readline(max_bytes + 1)
        yield line


def _csv_rows(path: Path, file: BinaryIO) -> Iterator[Place]:
    """Every cell as the text that it is: an answer `007` or `1.50` stays so."""
    csv.field_size_limit(MAX_ROW_BYTES)
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        table = csv.DictReader(text, delimiter="\t" if ".tsv" in path.name.lower() else ",", strict=True)
        while True:
            try:
                row = next(table, None)
            except (csv.Error, UnicodeDecodeError) as error:
                raise RunFailed(
                    f"expected CSV in UTF-8, got {path}, which cannot be read at line {table.line_num + 1}: {error}"
                ) from error
            if row is None:
                return
            fits = None not in row and None not in row.values()
            yield f"{path}:{table.line_num}", dict(row) if fits else "expected a cell for each column of the first line"


def _table_rows(path: Path, kind: Format, columns: Collection[str]) -> Iterator[Place]:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    number = 0
    try:
        with path.open("rb") as source:
            if kind == "parquet":
                file = pyarrow.parquet.ParquetFile(source)
                batches = file.iter_batches(batch_size=1024, columns=_known(columns, file.schema_arrow.names))
            elif source.peek(6).startswith(b"ARROW1"):
                table = pyarrow.ipc.open_file(source)
                batches = (table.get_batch(index) for index in range(table.num_record_batches))
            else:
                batches = iter(pyarrow.ipc.open_stream(source))
            for batch in batches:
                names = _known(columns, batch.schema.names)
                for row in (batch.select(names) if names else batch).to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise RunFailed(
            f"expected whole {FORMAT_NAMES[kind]} at data.path, got {path}, which cannot be read: {error}"
        ) from error


def _known(columns: Collection[str], names: Collection[str]) -> list[str] | None:
    """The columns where the table has them all, else None: then whoever reads the rows says which it has."""
    tops = {name if name in names else name.partition(".")[0] for name in columns}
    return sorted(tops) if tops and tops <= set(names) else None
