"""Records of local files and of data sets on the Hugging Face hub: JSON lines, parquet, and text with markers.

Corpus sources, prompt sets, recorded completions and evaluation tasks all read records here. A record that cannot be
read is yielded with the reason in `fault`; a damaged file stops the reader with a CorpusError.
"""

from __future__ import annotations

import glob
import gzip
import json
import re
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


class Record(NamedTuple):
    """A record and its place (file and line or index). `fault` is the reason why it cannot be read."""

    place: str
    content: dict[str, Any]
    fault: str | None = None


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
    for number, row in enumerate(open_hub_dataset(path, subset, split)):
        yield Record(f"{path}#{number}", dict(row))


def open_hub_dataset(
    path: str, subset: str | None, split: str, *, folder: str | None = None, revision: str | None = None
) -> Any:
    """A streamed `datasets.IterableDataset`; CorpusError if it cannot be opened."""
    import datasets

    try:
        return datasets.load_dataset(path, subset, split=split, data_dir=folder, revision=revision, streaming=True)
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"the data set {path} cannot be opened: {error}\n"
            f"  do: check its name, subset and split, log in with `hf auth login` if it is gated, or use local files"
        ) from error


def find_files(path: str, suffixes: tuple[str, ...], *, any_suffix: bool = False) -> list[Path]:
    """The files that `path` names: a file, all files below a folder, or all matches of a glob, in name order.

    With `any_suffix`, files named by path or glob may have any suffix; in a folder `suffixes` always decide.
    CorpusError if there is none.
    """
    place = Path(path).expanduser()
    is_folder = place.is_dir()
    candidates = place.rglob("*") if is_folder else map(Path, glob.glob(str(place), recursive=True))
    keep_all = any_suffix and not is_folder
    files = sorted(file for file in candidates if file.is_file() and (keep_all or file.name.endswith(suffixes)))
    if not files:
        raise CorpusError(f"no file at {place} (looked for {', '.join(suffixes)})\n  do: correct `path`")
    return files


def read_jsonl(file: Path, portion: Portion = WHOLE) -> Iterator[Record]:
    """One record per line; blank lines are skipped."""
    with undamaged(file), open_binary(file) as lines:
        for number, line in enumerate(lines):
            if portion.holds(number) and line.strip():
                yield _parse_json(line, f"{file}:{number + 1}")


def read_parquet(
    file: Path, portion: Portion = WHOLE, *, field: str | None = None, row_group: int | None = None
) -> Iterator[Record]:
    """The rows of a parquet file or of one of its row groups; with `field`, only that column is read."""
    import pyarrow.parquet as pq

    place, groups = (str(file), None) if row_group is None else (f"{file}, group {row_group}", [row_group])
    with undamaged(file), pq.ParquetFile(file) as parquet:
        if field is not None:
            check_field(field, parquet.schema_arrow.names, str(file))
        columns = None if field is None else [field]
        batches = parquet.iter_batches(batch_size=1024, row_groups=groups, columns=columns)
        for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
            if portion.holds(number):
                yield Record(f"{place}#{number}", row)


def check_field(field: str, columns: Iterable[str], place: str) -> None:
    """CorpusError unless `field` is one of the columns."""
    if field not in columns:
        raise CorpusError(
            f"{place} has no column `{field}`, only {', '.join(columns)}\n"
            f"  do: set `field` of this source to one of them"
        )


def open_binary(file: Path) -> BinaryIO:
    """The content of a file, decompressed if its name ends in .gz."""
    return cast(BinaryIO, gzip.open(file)) if file.suffix == ".gz" else file.open("rb")


@contextmanager
def undamaged(file: Path) -> Iterator[None]:
    """CorpusError if gzip or parquet reports that the file is damaged or cut short."""
    from pyarrow import ArrowException

    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, ArrowException) as error:
        raise CorpusError(f"{file} is damaged or cut short: {error}\n  do: fetch it again") from error


def sound_text(value: Any) -> str | None:
    """The value if it is a text that a tokenizer can encode and not blank, else None."""
    return value if isinstance(value, str) and value.strip() and not LONE_SURROGATE.search(value) else None


def _parse_json(line: bytes, place: str) -> Record:
    try:
        content = json.loads(line.decode(UTF8))
    except UnicodeDecodeError:
        return Record(place, {}, "rows that are not UTF-8")
    # ValueError, not JSONDecodeError: Python also refuses numbers of 5,000 digits. RecursionError: deep nesting.
    except (ValueError, RecursionError):
        return Record(place, {}, "rows that are not JSON")
    return Record(place, content) if isinstance(content, dict) else Record(place, {}, "rows that are not JSON objects")


def _read_marked_text(file: Path, start: str, end: str) -> Iterator[Record]:
    """prompt START answer END, repeated."""
    with undamaged(file), open_binary(file) as content:
        text = content.read().decode(UTF8, "replace")
    *pieces, rest = text.split(end)
    for number, piece in enumerate(pieces):
        prompt, marker, answer = piece.partition(start)
        fault = None if marker else f"pieces without {start}"
        fault = "rows that are not UTF-8" if "\ufffd" in piece else fault
        yield Record(f"{file}#{number}", {"prompt": prompt.strip(), "answer": answer}, fault)
    if rest.strip():
        yield Record(f"{file}#{len(pieces)}", {}, f"pieces without {end}")
