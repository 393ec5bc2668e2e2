"""Python source code that every machine has: the standard library and the packages that this project depends on."""

from __future__ import annotations

import ast
import inspect
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

from fastdraft.config import SourcePart
from fastdraft.data.document import Document, Portion, Rejected, content_key
from fastdraft.data.package_licences import licensed_packages
from fastdraft.data.split import split_of

# Tests are repetitive, vendored code belongs to other packages, and files above 256 KiB are generated tables.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "_vendor", "vendor", "vendored", "site-packages", "dist-packages"}
)
MIN_SOURCE_BYTES, MAX_SOURCE_BYTES = 256, 256 * 1024
MIN_DOCSTRING_CHARACTERS = 120


def python_code(part: SourcePart, rejected: Rejected, portion: Portion) -> Iterator[Document]:
    """The Python files of the standard library and of the permissively licensed dependencies."""
    files, unreadable = _wanted_code(part)
    if portion.rank == 0:
        rejected.records += len(_python_files())
        for origin in unreadable:
            rejected.add("files in an unknown encoding or without permission", origin)
    yield from files[portion.rank :: portion.world_size]


def python_docstrings(part: SourcePart, rejected: Rejected, portion: Portion) -> Iterator[Document]:
    """The docstrings of those files, one document per file in the same split as the file; each docstring once."""
    if portion.rank == 0:
        rejected.records += len(_python_files())
    yield from _wanted_docstrings(part)[portion.rank :: portion.world_size]


# A source is read twice (census.py). Reading and hashing all files takes 3 s and parsing them 35 s, so the documents
# stay in memory: 150 MB.
@lru_cache(maxsize=1)
def _wanted_code(part: SourcePart) -> tuple[list[Document], list[str]]:
    """The files that are in a split, and the origins of the files that cannot be read."""
    files, unreadable = [], []
    for path, origin in _python_files():
        try:
            with tokenize.open(path) as file:
                document = Document.of(file.read(), origin)
        except (SyntaxError, UnicodeDecodeError, OSError):
            unreadable.append(origin)
            continue
        if split_of(part, document.key) is not None:
            files.append(document)
    return files, unreadable


@lru_cache(maxsize=1)
def _wanted_docstrings(part: SourcePart) -> list[Document]:
    documents: list[Document] = []
    seen: set[str] = set()
    for file in _wanted_code(part)[0]:
        by_key = {content_key(text): text for text in _docstrings(file.text)}
        texts = [text for key, text in by_key.items() if key not in seen]
        seen.update(by_key)
        if texts:
            documents.append(Document("\n\n".join(texts), file.origin, file.key))
    return documents


@cache
def _python_files() -> tuple[tuple[Path, str], ...]:
    """(path, origin) of every Python file to use; the origin is the same on every machine."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    files = [(path, f"python/{path.relative_to(stdlib)}") for path in stdlib.rglob("*.py")]
    for package in licensed_packages():
        files += [(path, f"{package.name}/{name}") for path, name in package.python_files()]
    path_of = {
        origin: path
        for path, origin in files
        if not SKIPPED_FOLDERS.intersection(Path(origin).parts[:-1])
        and path.is_file()
        and MIN_SOURCE_BYTES <= path.stat().st_size <= MAX_SOURCE_BYTES
    }
    return tuple((path, origin) for origin, path in sorted(path_of.items()))


def _docstrings(source: str) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the source
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            raw = ast.get_docstring(node, clean=False)
            docstring = inspect.cleandoc(raw) if raw else ""
            if len(docstring) >= MIN_DOCSTRING_CHARACTERS:
                yield docstring
