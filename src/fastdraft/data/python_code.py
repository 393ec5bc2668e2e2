"""Python found on every machine: the interpreter's own library and the packages that this project depends on."""

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
from fastdraft.data.split import side

# Tests repeat themselves, vendored code is another package's, and above a quarter megabyte sit generated tables.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "_vendor", "vendor", "vendored", "site-packages", "dist-packages"}
)
SOURCE_BYTES_AT_LEAST, SOURCE_BYTES_AT_MOST = 256, 256 * 1024
DOCSTRING_CHARACTERS_AT_LEAST = 120


def python_code(part: SourcePart, rejected: Rejected, portion: Portion) -> Iterator[Document]:
    """The Python sources of the interpreter and of the packages that this project depends on."""
    files, unreadable = _wanted_code(part)
    if portion.rank == 0:
        rejected.rows += len(_python_files())
        for origin in unreadable:
            rejected.add("files in an unknown encoding", origin)
    yield from files[portion.rank :: portion.of]


def python_docstrings(part: SourcePart, rejected: Rejected, portion: Portion) -> Iterator[Document]:
    """The docstrings of those files, one document a file, split as the file is, each docstring once."""
    if portion.rank == 0:
        rejected.rows += len(_python_files())
    yield from _wanted_docstrings(part)[portion.rank :: portion.of]


# A source is read twice (see survey.py). Reading and hashing all files takes 3 s and
# parsing them 35 s, so what is wanted is kept; all of it is 150 MB.
@lru_cache(maxsize=1)
def _wanted_code(part: SourcePart) -> tuple[list[Document], list[str]]:
    """The files on either side, and the origins of those that cannot be decoded."""
    files, unreadable = [], []
    for path, origin in _python_files():
        try:
            with tokenize.open(path) as file:
                document = Document.of(file.read(), origin)
        except (SyntaxError, UnicodeDecodeError):
            unreadable.append(origin)
            continue
        if side(part, document.key) is not None:
            files.append(document)
    return files, unreadable


@lru_cache(maxsize=1)
def _wanted_docstrings(part: SourcePart) -> list[Document]:
    found: list[Document] = []
    seen: set[str] = set()
    for file in _wanted_code(part)[0]:
        fresh = {content_key(text): text for text in _docstrings(file.text)}
        texts = [text for key, text in fresh.items() if key not in seen]
        seen.update(fresh)
        if texts:
            found.append(Document("\n\n".join(texts), file.origin, file.key))
    return found


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
