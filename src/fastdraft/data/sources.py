"""Where documents come from: one function a source, one row in `SOURCES` at the end.

A source yields the documents of a portion in an order that never changes, and reports what it cannot use to
`Rejected`. The portions of all tasks together are the source.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

from fastdraft.config import SourcePart
from fastdraft.data.document import WHOLE, Document, Portion, Rejected, content_key
from fastdraft.data.python_code import python_code, python_docstrings
from fastdraft.system.errors import CorpusError

Source = Callable[[SourcePart, Rejected, Portion], Iterator[Document]]

UTF8 = "utf-8-sig"  # with or without the byte order mark that Windows programs put in front
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can say it, no tokenizer takes it


class Broken(NamedTuple):
    """What stands in for a row that cannot be read."""

    reason: str


def documents(part: SourcePart, rejected: Rejected) -> Iterator[Document]:
    """Every sound document of a source, each text once, no quality filter asked; CorpusError as `check` says."""
    seen: set[str] = set()
    for document in read(part, rejected):
        text_key = content_key(document.text)
        if text_key not in seen:
            seen.add(text_key)
            yield document
    check(part, rejected)


def read(part: SourcePart, rejected: Rejected, portion: Portion = WHOLE) -> Iterator[Document]:
    """The sound documents of a portion of a source; a text may come again."""
    at_most = None if part.max_documents is None else portion.count(part.max_documents)
    return islice(SOURCES[part.source](part, rejected, portion), at_most)


def check(part: SourcePart, rejected: Rejected) -> None:
    """CorpusError where more than 1 % of a source's rows are unsound."""
    if rejected.fraction > 0.01:
        reasons = "; ".join(f"{n} {reason} (first: {rejected.first[reason]})" for reason, n in rejected.counts.items())
        raise CorpusError(
            f"{rejected.fraction:.1%} of the {rejected.rows} rows of {part.path or part.source} are unusable: "
            f"{reasons}\n"
            f"  wanted: at most 1 %\n  do: fix the file, or name another `field`"
        )


def anywhere(part: SourcePart) -> SourcePart:
    """The same source for a process in any working folder: a path to local files in full."""
    if part.path is None or part.source == "hub":
        return part
    return part.model_copy(update={"path": str(Path(part.path).expanduser().absolute())})


def text(part: SourcePart, rejected: Rejected, portion: Portion) -> Iterator[Document]:
    """Text files (.txt, .txt.gz, .md): a file is a document, or what stands between `separator` lines."""
    files, rows = portion.split(_local_files(part, (".txt", ".txt.gz", ".md")))
    counted = rejected if rows.rank == 0 else Rejected()  # a file that several tasks read is counted by the first
    for path in files:
        counted.rows += 1
        try:
            with _whole(path), _open(path) as file, io.TextIOWrapper(file, encoding=UTF8) as lines:
                for number, piece in enumerate(_pieces(lines, part.separator)):
                    if rows.holds(number) and piece.strip():
                        yield Document.of(piece.strip(), f"{path.name}#{number}")
        except UnicodeDecodeError as error:
            counted.add(f"files that are not UTF-8 ({error.reason})", str(path))


def jsonl(part: SourcePart, rejected: Rejected, portion: Portion) -> Iterator[Document]:
    """Rows of .jsonl and .jsonl.gz files; blank lines are no rows."""
    files, rows = portion.split(_local_files(part, (".jsonl", ".jsonl.gz", ".json.gz")))
    for path in files:
        with _whole(path), _open(path) as file:
            for number, line in enumerate(file):
                if rows.holds(number) and line.strip():
                    yield from _row(_parsed(line), f"{path}:{number + 1}", part.field, rejected)


def parquet(part: SourcePart, rejected: Rejected, portion: Portion) -> Iterator[Document]:
    """Rows of .parquet files, read in batches; where the tasks outnumber the files they share the row groups."""
    import pyarrow.parquet as pq

    files = _local_files(part, (".parquet",))
    units, rows = portion.split([(path, None) for path in files] if len(files) >= portion.of else _row_groups(files))
    for path, group in units:
        with _whole(path), pq.ParquetFile(path) as file:
            _check_field(part, str(path), file.schema_arrow.names)
            groups, place = (None, str(path)) if group is None else ([group], f"{path}, group {group}")
            batches = file.iter_batches(batch_size=1024, row_groups=groups, columns=[part.field])
            for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
                if rows.holds(number):
                    yield from _row(row, f"{place}#{number}", part.field, rejected)


def _row_groups(files: list[Path]) -> list[tuple[Path, int | None]]:
    import pyarrow.parquet as pq

    found: list[tuple[Path, int | None]] = []
    for path in files:
        with _whole(path), pq.ParquetFile(path) as file:
            found += [(path, group) for group in range(file.num_row_groups)]
    return found


def hub(part: SourcePart, rejected: Rejected, portion: Portion) -> Iterator[Document]:
    """Rows of a data set on the hub, streamed: a task reads its own files, or its own row groups of them."""
    dataset = _open_hub(part)
    if dataset.num_shards < portion.of:
        dataset = dataset.reshard()  # parquet files into row groups; of other files none
    _, rows = portion.split(range(dataset.num_shards))
    if rows is WHOLE:
        dataset = dataset.shard(portion.of, portion.rank, contiguous=False)
    for number, row in enumerate(dataset):
        if number == 0:
            _check_field(part, _path(part), list(row))
        if rows.holds(number):
            yield from _row(row, f"{part.path}, portion {portion.rank}#{number}", part.field, rejected)


def _open_hub(part: SourcePart) -> Any:
    """datasets.IterableDataset"""
    import datasets

    place = {"data_dir": part.folder, "split": part.split, "revision": part.revision}
    try:
        return datasets.load_dataset(_path(part), part.subset, streaming=True, **place)
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"the data set {part.path} cannot be opened: {error}\n"
            f"  do: check its name, subset and split, log in with `hf auth login` if it is gated, or use local files"
        ) from error


def _parsed(line: bytes) -> Any:
    """A line as JSON, or the reason why it is none as a `Broken`."""
    try:
        return json.loads(line.decode(UTF8))
    except UnicodeDecodeError:
        return Broken("rows that are not UTF-8")
    except ValueError:  # wider than JSONDecodeError: a number of 5 000 digits is refused too
        return Broken("rows that are not JSON")


def _row(row: Any, place: str, field: str, rejected: Rejected) -> Iterator[Document]:
    """The document of a row; none, and a reason in `rejected`, where it holds no sound text."""
    rejected.rows += 1
    found = row.get(field) if isinstance(row, dict) else None
    if isinstance(row, Broken):
        rejected.add(row.reason, place)
    elif not isinstance(found, str):
        rejected.add(f"rows without a text in `{field}`", place)
    elif LONE_SURROGATE.search(found):
        rejected.add("rows with half a character (a lone surrogate)", place)
    elif found.strip():
        yield Document.of(found, place)


def _check_field(part: SourcePart, place: str, names: list[str]) -> None:
    if part.field not in names:
        raise CorpusError(
            f"{place} has no column `{part.field}`, only {', '.join(names)}\n"
            f"  do: set `field` of this source to one of them"
        )


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """CorpusError where a file's own format says that it is damaged or cut short."""
    from pyarrow import ArrowInvalid

    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, ArrowInvalid) as error:
        raise CorpusError(f"{path} is damaged or cut short: {error}\n  do: fetch it again") from error


def _path(part: SourcePart) -> str:
    if part.path is None:
        raise CorpusError(f"a `{part.source}` source needs a path\n  do: set `path` of this source in the recipe")
    return part.path


def _local_files(part: SourcePart, endings: tuple[str, ...]) -> list[Path]:
    """The files that a path names: itself, those below it, or those a glob matches, in name order."""
    path = Path(_path(part)).expanduser()
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.name.endswith(endings)]
    else:
        found = [Path(match) for match in glob.glob(str(path), recursive=True)]
    if not found:
        raise CorpusError(
            f"no file at {path} (looked for {', '.join(endings)})\n  do: correct `path` of this `{part.source}` source"
        )
    return sorted(file for file in found if file.is_file())


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _pieces(file: IO[str], separator: str | None) -> Iterator[str]:
    if separator is None:
        yield file.read()
        return
    lines: list[str] = []
    for line in file:
        if line.rstrip("\n") == separator:
            yield "".join(lines)
            lines = []
        else:
            lines.append(line)
    yield "".join(lines)


SOURCES: dict[str, Source] = {
    "python_code": python_code,
    "python_docstrings": python_docstrings,
    "text": text,
    "jsonl": jsonl,
    "parquet": parquet,
    "hub": hub,
}
