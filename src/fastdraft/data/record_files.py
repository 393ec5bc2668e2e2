"""Rows of local files and of data sets on the hub, for prompts and for recorded answers; broken ones are told apart."""

from __future__ import annotations

import glob
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from fastdraft.system.errors import CorpusError

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", ".txt", ".txt.gz")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Row(NamedTuple):
    """A row and where it stands; `fault` says why it cannot be read."""

    place: str
    content: dict[str, Any]
    fault: str | None = None


def local_rows(path: str, markers: tuple[str, str] | None = None) -> Iterator[Row]:
    """The rows of the files that a path names: itself, those in it, or those a glob matches, in name order.

    Text files are read where `markers` are given: what stands before the first is `prompt`, up to the second `answer`.
    """
    for file in _files(path, ENDINGS if markers else ENDINGS[:3]):
        if file.name.endswith(".parquet"):
            yield from _parquet(file)
        elif file.name.endswith((".txt", ".txt.gz")):
            assert markers is not None, "text files are not looked for without markers"
            yield from _marked(file, *markers)
        else:
            yield from _jsonl(file)


def hub_rows(path: str, subset: str | None, split: str) -> Iterator[Row]:
    """The rows of a data set on the hub, streamed."""
    import datasets

    try:
        rows = datasets.load_dataset(path, subset, split=split, streaming=True)
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"the data set {path} cannot be opened: {error}\n"
            f"  do: check its name, subset and split, log in with `hf auth login` if it is gated, or use local files"
        ) from error
    for number, row in enumerate(rows):
        yield Row(f"{path}#{number}", dict(row))


def sound_text(value: Any) -> str | None:
    """A text that a tokenizer takes; None for anything else."""
    return value if isinstance(value, str) and value.strip() and not LONE_SURROGATE.search(value) else None


def _jsonl(file: Path) -> Iterator[Row]:
    with _open(file) as lines:
        for number, line in enumerate(_whole(lines, file), 1):
            if line.strip():
                yield _parsed(line, f"{file}:{number}")


def _parsed(line: bytes, place: str) -> Row:
    try:
        content = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return Row(place, {}, "rows that are not JSON in UTF-8")
    return Row(place, content) if isinstance(content, dict) else Row(place, {}, "rows that are no JSON objects")


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches = pq.ParquetFile(file).iter_batches(batch_size=1024)
        for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
            yield Row(f"{file}#{number}", row)
    except pa.ArrowException as error:
        raise CorpusError(f"{file} is damaged or cut short: {error}\n  do: fetch it again") from error


def _marked(file: Path, start: str, end: str) -> Iterator[Row]:
    """prompt START answer END, one after the other; a piece without START is no row."""
    with _open(file) as lines:
        text = b"".join(_whole(lines, file)).decode("utf-8-sig", "replace")
    *pieces, rest = text.split(end)
    for number, piece in enumerate(pieces):
        prompt, found, answer = piece.partition(start)
        fault = None if found else f"pieces without {start}"
        fault = "rows that are not UTF-8" if "\ufffd" in piece else fault
        yield Row(f"{file}#{number}", {"prompt": prompt.strip(), "answer": answer}, fault)
    if rest.strip():
        yield Row(f"{file}#{len(pieces)}", {}, f"pieces without {end}")


def _whole(lines: BinaryIO, file: Path) -> Iterator[bytes]:
    import zlib

    try:
        yield from lines
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorpusError(f"{file} is damaged or cut short: {error}\n  do: fetch it again") from error


def _open(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file)) if file.suffix == ".gz" else file.open("rb")


def _files(path: str, endings: tuple[str, ...]) -> list[Path]:
    place = Path(path).expanduser()
    below = place.rglob("*") if place.is_dir() else (Path(match) for match in glob.glob(str(place), recursive=True))
    found = sorted(file for file in below if file.is_file() and file.name.endswith(endings))
    if not found:
        raise CorpusError(f"no file at {place} (looked for {', '.join(endings)})\n  do: correct the `path`")
    return found
