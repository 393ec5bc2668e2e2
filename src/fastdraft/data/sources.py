"""Sources of documents: one function per kind of source, one entry in `SOURCES` at the end of the file.

A source yields the documents of one task's portion in an order that never changes, and counts the records that it
cannot use in `Rejected`. The portions of all tasks together are the whole source.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from fastdraft.config import SourcePart
from fastdraft.data.document import WHOLE, Document, Portion, Rejected, content_key
from fastdraft.data.python_code import python_code, python_docstrings
from fastdraft.data.record_files import (
    JSONL_SUFFIXES,
    LONE_SURROGATE,
    MAX_ROW_BYTES,
    PARQUET_SUFFIXES,
    UTF8,
    Record,
    UnusableRow,
    check_field,
    checked_row,
    find_files,
    hub_rows,
    local_path,
    open_hub_dataset,
    open_text,
    read_jsonl,
    read_parquet,
    readable,
)
from fastdraft.system.errors import CorpusError

Source = Callable[[SourcePart, Rejected, Portion], Iterator[Document]]

MAX_REJECTED_FRACTION = 0.01


def documents(part: SourcePart, rejected: Rejected) -> Iterator[Document]:
    """All usable documents of a source, each text once, before quality filters; raises like `check_rejected`."""
    seen: set[str] = set()
    for document in read(part, rejected):
        text_key = content_key(document.text)
        if text_key not in seen:
            seen.add(text_key)
            yield document
    check_rejected(part, rejected)


def read(part: SourcePart, rejected: Rejected, portion: Portion = WHOLE) -> Iterator[Document]:
    """The usable documents of a portion of a source; texts may repeat."""
    max_documents = None if part.max_documents is None else portion.count(part.max_documents)
    return islice(SOURCES[part.source](part, rejected, portion), max_documents)


def check_rejected(part: SourcePart, rejected: Rejected) -> None:
    """CorpusError if more than 1 % of the records of a source are unusable."""
    if rejected.fraction > MAX_REJECTED_FRACTION:
        reasons = "; ".join(f"{n} {reason} (first: {rejected.first[reason]})" for reason, n in rejected.counts.items())
        raise CorpusError(
            f"{rejected.fraction:.1%} of the {rejected.records} rows of {part.path or part.source} are unusable: "
            f"{reasons}\n"
            f"  wanted: at most 1 %\n  do: fix the file, or name another `field`"
        )


def with_absolute_path(part: SourcePart) -> SourcePart:
    """The same source for a process in any working directory."""
    if part.path is None or part.source == "hub":
        return part
    return part.model_copy(update={"path": str(local_path(part.path).absolute())})


def text(part: SourcePart, rejected: Rejected, portion: Portion) -> Iterator[Document]:
    """Text files (.txt, .txt.gz, .md): one document per file, or one between each two `separator` lines."""
    files, pieces = portion.split(_local_files(part, (".txt", ".txt.gz", ".md")))
    counted = rejected if pieces.rank == 0 else Rejected()  # only the first task counts a file that several tasks read
    for path in files:
        counted.records += 1
        with readable(path), open_text(path) as file, io.TextIOWrapper(file, encoding=UTF8) as lines:
            try:
                for number, piece in enumerate(_split_at(part.separator, lines)):
                    if pieces.holds(number) and piece.strip():
                        yield Document.of(piece.strip(), f"{path.name}#{number}")
            except UnicodeDecodeError as error:
                counted.add(f"files that are not UTF-8 ({error.reason})", str(path))
            except UnusableRow as unusable:
                counted.add(str(unusable), str(path))


def jsonl(part: SourcePart, rejected: Rejected, portion: Portion) -> Iterator[Document]:
    """The records of .jsonl and .jsonl.gz files."""
    files, lines = portion.split(_local_files(part, JSONL_SUFFIXES))
    for path in files:
        for record in read_jsonl(path, lines):
            yield from _document(record, part.field, rejected)


def parquet(part: SourcePart, rejected: Rejected, portion: Portion) -> Iterator[Document]:
    """The rows of .parquet files; if there are more tasks than files, the tasks share the row groups."""
    files = _local_files(part, PARQUET_SUFFIXES)
    units, rows = portion.split(
        [(path, None) for path in files] if len(files) >= portion.world_size else _row_groups(files)
    )
    for path, row_group in units:
        for record in read_parquet(path, rows, field=part.field, row_group=row_group):
            yield from _document(record, part.field, rejected)


def _row_groups(files: list[Path]) -> list[tuple[Path, int | None]]:
    import pyarrow.parquet as pq

    groups: list[tuple[Path, int | None]] = []
    for path in files:
        with readable(path), pq.ParquetFile(path) as file:
            groups += [(path, group) for group in range(file.num_row_groups)]
    return groups


def hub(part: SourcePart, rejected: Rejected, portion: Portion) -> Iterator[Document]:
    """The records of a data set on the hub, streamed: a task reads only its own files, or its own row groups."""
    path = _path(part)
    dataset = open_hub_dataset(path, part.subset, part.split, folder=part.folder, revision=part.revision)
    if dataset.num_shards < portion.world_size:
        dataset = dataset.reshard()  # splits parquet files into row groups, and no other format
    _, rows = portion.split(range(dataset.num_shards))
    if rows is WHOLE:
        dataset = dataset.shard(portion.world_size, portion.rank, contiguous=False)
    for number, row in enumerate(hub_rows(dataset, path)):
        if number == 0:
            check_field(part.field, list(row), path)
        if rows.holds(number):
            yield from _document(checked_row(f"{path}, portion {portion.rank}#{number}", row), part.field, rejected)


def _document(record: Record, field: str, rejected: Rejected) -> Iterator[Document]:
    """The document of a record. A record without a usable text is counted in `rejected`; a blank text is skipped."""
    rejected.records += 1
    text = record.content.get(field)
    if record.fault is not None:
        rejected.add(record.fault, record.place)
    elif not isinstance(text, str):
        rejected.add(f"rows without a text in `{field}`", record.place)
    elif LONE_SURROGATE.search(text):
        rejected.add("rows with half a character (a lone surrogate)", record.place)
    elif text.strip():
        yield Document.of(text, record.place)


def _path(part: SourcePart) -> str:
    if part.path is None:
        raise CorpusError(f"a `{part.source}` source needs a path\n  do: set `path` of this source in the recipe")
    return part.path


def _local_files(part: SourcePart, suffixes: tuple[str, ...]) -> list[Path]:
    return find_files(_path(part), suffixes, any_suffix=True)


def _split_at(separator: str | None, file: IO[str]) -> Iterator[str]:
    """The texts between the lines that equal `separator`; the whole file if it is None.

    UnusableRow at a text that is too long, or that has NUL bytes, which no text has.
    """
    lines: list[str] = []
    length = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        if line.rstrip("\n") == separator:
            yield "".join(lines)
            lines, length = [], 0
            continue
        lines.append(line)
        length += len(line)
        if length > MAX_ROW_BYTES:
            raise UnusableRow(
                f"files with a text of more than {MAX_ROW_BYTES >> 20} MiB (`separator` sets where a text ends)"
            )
        if "\0" in line:
            raise UnusableRow("files with NUL bytes, which are no text")
    yield "".join(lines)


SOURCES: dict[str, Source] = {
    "python_code": python_code,
    "python_docstrings": python_docstrings,
    "text": text,
    "jsonl": jsonl,
    "parquet": parquet,
    "hub": hub,
}
