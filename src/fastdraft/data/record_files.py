"""Records of local files and of data sets on the Hugging Face hub: JSON lines, parquet, and text with markers.

Corpus sources, prompt sets, recorded completions and evaluation tasks all read records here. A record that cannot be
read is yielded with the reason in `fault`. A file that cannot be read stops the reader with a CorpusError, whatever the
cause: the file system, another format or encoding, a damaged compression or page (`readable`).

Memory: a row or a text of more than MAX_ROW_BYTES is unusable. Parsed, JSON takes up to 25 times its length (empty
lists). The rows of a parquet file are decoded in batches of about MAX_ROW_BYTES.
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from fastdraft.data.document import WHOLE, Portion
from fastdraft.system.errors import CorpusError

JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".json.gz")
PARQUET_SUFFIXES = (".parquet",)
RECORD_SUFFIXES = (*JSONL_SUFFIXES, *PARQUET_SUFFIXES)
MARKED_TEXT_SUFFIXES = (".txt", ".txt.gz")

UTF8 = "utf-8-sig"  # accepts the byte order mark that Windows programs write
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can hold one, but no tokenizer encodes it

MAX_ROW_BYTES = 64 << 20
TOO_LONG_ROW = f"rows of more than {MAX_ROW_BYTES >> 20} MiB"
MAX_BATCH_ROWS = 1024
# What is no UTF-8 text, by its first bytes (after gzip), and what to do about it.
NO_TEXT = {
    b"\xff\xfe\0\0": ("UTF-32 text", "iconv -f UTF-32 -t UTF-8"),
    b"\0\0\xfe\xff": ("UTF-32 text", "iconv -f UTF-32 -t UTF-8"),
    b"\xff\xfe": ("UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
    b"{\0": ("UTF-16 text without a byte order mark", "iconv -f UTF-16LE -t UTF-8"),
    b"\0{": ("UTF-16 text without a byte order mark", "iconv -f UTF-16BE -t UTF-8"),
    b"\x1f\x8b": ("gzip without a name that ends in .gz", "rename it"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d"),
    b"PK\x03\x04": ("a zip archive", "unzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"PAR1": ("parquet", "rename it to .parquet, and read it as parquet"),
}


class Record(NamedTuple):
    """A record and its place (file and line or index). `fault` is the reason why it cannot be read."""

    place: str
    content: dict[str, Any]
    fault: str | None = None


class UnusableRow(Exception):
    """A row gives no prompt or no completion; the message is the reason, under which it is counted."""


def local_records(path: str, markers: tuple[str, str] | None = None) -> Iterator[Record]:
    """The records of a file, of all files in a folder, or of all files that match a glob, in name order.

    With `markers`, text files are read too: the text before the first marker is `prompt`, the text from there to the
    second marker is `answer`.
    """
    for file in find_files(path, RECORD_SUFFIXES + MARKED_TEXT_SUFFIXES if markers else RECORD_SUFFIXES):
        if file.name.endswith(PARQUET_SUFFIXES):
            yield from read_parquet(file)
        elif markers and file.name.endswith(MARKED_TEXT_SUFFIXES):
            yield from _read_marked_text(file, *markers)
        else:
            yield from read_jsonl(file)


def hub_records(path: str, subset: str | None, split: str) -> Iterator[Record]:
    """The records of a data set on the hub, streamed."""
    for number, row in enumerate(hub_rows(open_hub_dataset(path, subset, split), path)):
        yield checked_row(f"{path}#{number}", dict(row))


def open_hub_dataset(
    path: str, subset: str | None, split: str, *, folder: str | None = None, revision: str | None = None
) -> Any:
    """A streamed `datasets.IterableDataset`; CorpusError if it cannot be opened."""
    import datasets

    try:
        return datasets.load_dataset(path, subset, split=split, data_dir=folder, revision=revision, streaming=True)
    except Exception as error:  # of the hub, of the network and of each format: they have no common class
        raise CorpusError(
            f"the data set {path} cannot be opened: {_first_line(error)}\n"
            f"  do: check its name, subset and split, log in with `hf auth login` if it is gated, or use local files"
        ) from error


def hub_rows(dataset: Any, path: str) -> Iterator[dict[str, Any]]:
    """The rows of an opened data set; CorpusError if it cannot be read to its end."""
    try:
        yield from dataset
    except Exception as error:  # of the network and of each format: they have no common class
        raise CorpusError(
            f"the data set {path} cannot be read: {_first_line(error)}\n"
            f"  do: run again; if its files are local, check or fetch them again"
        ) from error


def local_path(path: str) -> Path:
    """The path with `~` expanded; CorpusError if no file can have this name."""
    try:
        os.fsencode(path)
        if "\0" in path:
            raise ValueError("it contains a NUL character")
        return Path(path).expanduser()
    except (ValueError, RuntimeError) as error:
        raise CorpusError(f"{path!r} cannot be a path: {error}\n  do: correct `path`") from error


def find_files(path: str, suffixes: tuple[str, ...], *, any_suffix: bool = False) -> list[Path]:
    """The files that `path` names: a file, all files below a folder, or all matches of a glob, in name order.

    An existing path is never a glob, whatever characters it contains. With `any_suffix`, files named by path or glob
    may have any suffix; in a folder `suffixes` always decide. CorpusError if there is no file, or one of them is not a
    regular file.
    """
    place = local_path(path)
    ending = f"a name that ends in {', '.join(suffixes)}"
    if os.path.isdir(place):  # False where Path.is_dir raises: a name that is too long
        files = [file for file in _files_below(place) if file.name.endswith(suffixes)]
        found = f"the folder {place} has no file with {ending}"
    else:
        named = [place] if os.path.lexists(place) else list(map(Path, glob.glob(str(place), recursive=True)))
        files = [file for file in named if (any_suffix or file.name.endswith(suffixes)) and not os.path.isdir(file)]
        found = f"{place} does not have {ending}" if named else f"no file at {place}"
    if not files:
        raise CorpusError(f"{found}\n  do: correct `path`")
    for file in files:
        _check_regular(file)
    return sorted(files)


def read_jsonl(file: Path, portion: Portion = WHOLE) -> Iterator[Record]:
    """One record per line; blank lines are skipped."""
    with readable(file), open_text(file) as lines:
        number = 0
        while line := lines.readline(MAX_ROW_BYTES + 1):
            number += 1
            is_too_long = len(line) > MAX_ROW_BYTES
            while is_too_long and not line.endswith(b"\n") and (rest := lines.readline(MAX_ROW_BYTES)):
                line = rest
            if portion.holds(number - 1) and line.strip():
                place = f"{file}:{number}"
                yield Record(place, {}, TOO_LONG_ROW) if is_too_long else _parse_json(line, place)


def read_parquet(
    file: Path, portion: Portion = WHOLE, *, field: str | None = None, row_group: int | None = None
) -> Iterator[Record]:
    """The rows of a parquet file or of one of its row groups; with `field`, only that column is read."""
    import pyarrow.parquet as pq

    with readable(file), pq.ParquetFile(file) as parquet:
        if field is not None:
            check_field(field, parquet.schema_arrow.names, str(file))
        columns, groups = None if field is None else [field], range(parquet.num_row_groups)
        number = 0
        for group in groups if row_group is None else [row_group]:
            place = f"{file}" if row_group is None else f"{file}, group {row_group}"
            metadata = parquet.metadata.row_group(group)
            mean_bytes = metadata.total_byte_size // max(metadata.num_rows, 1)
            batch_rows = max(1, min(MAX_BATCH_ROWS, MAX_ROW_BYTES // max(mean_bytes, 1)))
            with readable(file, f"row group {group}"):
                for batch in parquet.iter_batches(batch_size=batch_rows, row_groups=[group], columns=columns):
                    for row in batch.to_pylist():
                        if portion.holds(number):
                            yield checked_row(f"{place}#{number}", row)
                        number += 1


def check_field(field: str, columns: Iterable[str], place: str) -> None:
    """CorpusError unless `field` is one of the columns."""
    if field not in columns:
        raise CorpusError(
            f"{place} has no column `{field}`, only {', '.join(columns)}\n"
            f"  do: set `field` of this source to one of them"
        )


@contextmanager
def open_text(file: Path) -> Iterator[BinaryIO]:
    """The bytes of a text file, decompressed if its name ends in .gz; CorpusError if it begins like another format."""
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as content:
        head = content.peek(8)
        for magic, (found, remedy) in NO_TEXT.items():
            if head.startswith(magic):
                raise CorpusError(f"{file} is {found}, wanted UTF-8 text\n  do: {remedy}")
        yield cast(BinaryIO, content)


@contextmanager
def readable(file: Path, part: str = "") -> Iterator[None]:
    """CorpusError, with the file and the part of it, instead of any error of the file system or of a format."""
    from pyarrow import ArrowException

    where = f"{file}, {part}," if part else f"{file}"
    try:
        yield
    except (EOFError, ValueError, OverflowError, zlib.error, gzip.BadGzipFile, ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # pyarrow's and gzip's own errors have no number
            raise CorpusError(
                f"{where} cannot be read: {os.strerror(error.errno)}\n  do: check the file and its permissions"
            ) from error
        raise CorpusError(f"{where} is damaged or cut short: {_first_line(error)}\n  do: fetch it again") from error


def sound_text(value: Any) -> str | None:
    """The value if it is a text that a tokenizer can encode and not blank, else None."""
    return value if isinstance(value, str) and value.strip() and not LONE_SURROGATE.search(value) else None


def checked_row(place: str, row: dict[str, Any]) -> Record:
    """The record of a row that is in memory already; one that is too long is faulty, as in a file of text."""
    length = sum(len(value) for value in row.values() if isinstance(value, str | bytes))
    return Record(place, row) if length <= MAX_ROW_BYTES else Record(place, {}, TOO_LONG_ROW)


def _files_below(folder: Path) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        raise CorpusError(
            f"the folder {error.filename} cannot be read: {error.strerror}\n  do: check its permissions"
        ) from error

    for parent, _, names in os.walk(folder, onerror=unreadable):
        yield from (Path(parent, name) for name in names)


def _check_regular(file: Path) -> None:
    """CorpusError unless it is a regular file with a printable name: a source is read twice, and a pipe only once."""
    try:
        str(file).encode()
        is_regular = stat.S_ISREG(file.stat().st_mode)
    except UnicodeEncodeError as error:
        raise CorpusError(f"the file {str(file)!r} has a name that is not UTF-8\n  do: rename it") from error
    except OSError as error:
        raise CorpusError(f"{file} cannot be read: {error.strerror}\n  do: correct `path`") from error
    if not is_regular:
        raise CorpusError(
            f"{file} is a pipe, a socket or a device, wanted a regular file\n  do: save its content first"
        )


def _parse_json(line: bytes, place: str) -> Record:
    try:
        content = json.loads(line.decode(UTF8))
    except UnicodeDecodeError:
        return Record(place, {}, "rows that are not UTF-8")
    # ValueError, not JSONDecodeError: Python also refuses numbers of 5,000 digits.
    except ValueError:
        return Record(place, {}, "rows with NUL bytes" if b"\0" in line else "rows that are not JSON")
    except RecursionError:
        return Record(place, {}, "rows that are nested too deeply")
    return Record(place, content) if isinstance(content, dict) else Record(place, {}, "rows that are not JSON objects")


def _read_marked_text(file: Path, start: str, end: str) -> Iterator[Record]:
    """prompt START answer END, repeated."""
    with readable(file), open_text(file) as content:
        for number, (piece, has_end) in enumerate(_split(content, end.encode())):
            prompt, marker, answer = piece.decode(UTF8, "replace").partition(start)
            fault = None if marker else f"pieces without {start}"
            fault = "rows that are not UTF-8" if "\ufffd" in prompt + answer else fault
            fault = fault if has_end else f"pieces without {end}"
            fault = TOO_LONG_ROW if len(piece) > MAX_ROW_BYTES else fault
            if has_end or piece.strip():
                yield Record(f"{file}#{number}", {} if fault else {"prompt": prompt.strip(), "answer": answer}, fault)


def _split(content: BinaryIO, end: bytes) -> Iterator[tuple[bytes, bool]]:
    """The pieces before each `end`, and the rest (False). Of a piece that is too long the beginning is left out."""
    rest = b""
    while chunk := content.read(MAX_ROW_BYTES):
        *pieces, rest = (rest + chunk).split(end)
        yield from ((piece, True) for piece in pieces)
        rest = rest[-(MAX_ROW_BYTES + 1 + len(end)) :]
    yield rest, False


def _first_line(error: Exception) -> str:
    """The first line of an error's message; its class if it has none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
