"""Where documents come from: one function a source, one row in `SOURCES` at the end.

A source yields documents in an order that never changes and reports what it cannot use to `Rejected`.
"""

from __future__ import annotations

import ast
import glob
import gzip
import inspect
import json
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import IO, Any

from fastdraft.corpus.document import Document, Rejected, content_key
from fastdraft.corpus.licences import licensed_packages
from fastdraft.corpus.split import side
from fastdraft.errors import CorpusError
from fastdraft.recipe import SourcePart

Source = Callable[[SourcePart, Rejected], Iterator[Document]]

# Tests repeat themselves, vendored code is another package's, and above a quarter megabyte sit generated tables.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "_vendor", "vendor", "vendored", "site-packages", "dist-packages"}
)
SOURCE_BYTES_AT_LEAST, SOURCE_BYTES_AT_MOST = 256, 256 * 1024
DOCSTRING_CHARACTERS_AT_LEAST = 120


def documents(part: SourcePart, rejected: Rejected) -> Iterator[Document]:
    """Every sound document of a source, each text once; CorpusError above 1 % of unsound rows."""
    seen: set[str] = set()
    for document in islice(SOURCES[part.source](part, rejected), part.documents_at_most):
        text_key = content_key(document.text)
        if text_key not in seen:
            seen.add(text_key)
            yield document
    if rejected.share > 0.01:
        reasons = "; ".join(f"{n} {reason} (first: {rejected.first[reason]})" for reason, n in rejected.counts.items())
        raise CorpusError(
            f"{rejected.share:.1%} of the {rejected.rows} rows of {part.path or part.source} are unusable: {reasons}\n"
            f"  wanted: at most 1 %\n  do: mend the file, or name another `field`"
        )


def python_code(part: SourcePart, rejected: Rejected) -> Iterator[Document]:
    """The Python sources of the interpreter and of the packages that this project depends on."""
    for path, origin in _python_files():
        rejected.rows += 1
        try:
            with tokenize.open(path) as file:
                text = file.read()
        except (SyntaxError, UnicodeDecodeError):
            rejected.add("files in an unknown encoding", origin)
            continue
        yield Document.of(text, origin)


def python_docstrings(part: SourcePart, rejected: Rejected) -> Iterator[Document]:
    """The docstrings of those files, one document a file, split as the file is, each docstring once."""
    seen: set[str] = set()
    for file in python_code(part, rejected):
        if side(part, file.key) is None:  # parsing is the dear part: 35 s for all files, so not for those left out
            continue
        fresh = {content_key(text): text for text in _docstrings(file.text)}
        texts = [text for key, text in fresh.items() if key not in seen]
        seen.update(fresh)
        if texts:
            yield Document("\n\n".join(texts), file.origin, file.key)


def text(part: SourcePart, rejected: Rejected) -> Iterator[Document]:
    """Text files (.txt, .txt.gz): a file is a document, or what stands between `separator` lines."""
    for path in _local_files(part, (".txt", ".txt.gz", ".md")):
        rejected.rows += 1
        try:
            with _open(path) as file:
                for number, piece in enumerate(_pieces(file, part.separator)):
                    if piece.strip():
                        yield Document.of(piece.strip(), f"{path.name}#{number}")
        except UnicodeDecodeError as error:
            rejected.add(f"files that are not UTF-8 ({error.reason})", str(path))


def jsonl(part: SourcePart, rejected: Rejected) -> Iterator[Document]:
    """Rows of .jsonl and .jsonl.gz files."""
    for path in _local_files(part, (".jsonl", ".jsonl.gz", ".json.gz")):
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line.decode("utf-8"))
                except UnicodeDecodeError:
                    rejected.rows += 1
                    rejected.add("rows that are not UTF-8", f"{path}:{number}")
                except json.JSONDecodeError:
                    rejected.rows += 1
                    rejected.add("rows that are not JSON", f"{path}:{number}")
                else:
                    yield from _rows([row], f"{path}:{number}", part.field, rejected)


def parquet(part: SourcePart, rejected: Rejected) -> Iterator[Document]:
    """Rows of .parquet files, read in batches."""
    import pyarrow.parquet as pq

    for path in _local_files(part, (".parquet",)):
        file = pq.ParquetFile(path)
        if part.field not in file.schema_arrow.names:
            raise CorpusError(
                f"{path} has no column `{part.field}`, only {', '.join(file.schema_arrow.names)}\n"
                f"  do: set `field` of this source to one of them"
            )
        for batch in file.iter_batches(batch_size=1024, columns=[part.field]):
            yield from _rows(batch.to_pylist(), str(path), part.field, rejected)


def hub(part: SourcePart, rejected: Rejected) -> Iterator[Document]:
    """Rows of a data set on the hub, streamed."""
    import datasets

    try:
        rows: Iterable[Any] = datasets.load_dataset(_path(part), part.subset, split=part.split, streaming=True)
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"the data set {part.path} cannot be opened: {error}\n"
            f"  do: check its name, subset and split, log in with `hf auth login` if it is gated, or use local files"
        ) from error
    yield from _rows(rows, _path(part), part.field, rejected)


def _rows(rows: Iterable[Any], place: str, field: str, rejected: Rejected) -> Iterator[Document]:
    for number, row in enumerate(rows):
        rejected.rows += 1
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            rejected.add(f"rows without a text in `{field}`", place)
        elif row[field].strip():
            yield Document.of(row[field], f"{place}#{number}")


@cache
def _python_files() -> tuple[tuple[Path, str], ...]:
    """Every Python file of the interpreter and of our dependencies, with a name that is the same on every machine."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    found = [(path, f"python/{path.relative_to(stdlib)}") for path in stdlib.rglob("*.py")]
    for package in licensed_packages():
        found += [(path, f"{package.name}/{name}") for path, name in package.python_files()]
    kept = {origin: path for path, origin in found if _wanted(path, origin)}
    return tuple((path, origin) for origin, path in sorted(kept.items()))


def _wanted(path: Path, origin: str) -> bool:
    folders = Path(origin).parts[:-1]
    if SKIPPED_FOLDERS.intersection(folders):
        return False
    return path.is_file() and SOURCE_BYTES_AT_LEAST <= path.stat().st_size <= SOURCE_BYTES_AT_MOST


def _docstrings(source: str) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found = ast.get_docstring(node, clean=False)
            cleaned = inspect.cleandoc(found) if found else ""
            if len(cleaned) >= DOCSTRING_CHARACTERS_AT_LEAST:
                yield cleaned


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


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


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
