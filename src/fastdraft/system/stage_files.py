"""The files of a finished stage as its card records them: names, sizes and digests.

They are checked whenever the stage is opened. A stage of up to 2 GiB is then read in full. In a larger one each file is
sampled: its size, and 16 blocks of 64 KiB from head to tail, so that opening a stage reads at most 2 GiB, or 1 MiB for
each of its files.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path, PurePosixPath

import xxhash
from pydantic import BaseModel, ConfigDict

WHOLE_BYTES = 2 << 30
BLOCKS, BLOCK_BYTES = 16, 64 << 10
# Names that no reader opens: unfinished files of FastDraft and of network file systems.
TEMPORARY = ("*.fastdraft-part*", "*.fastdraft-old*", ".nfs*", "*/.nfs*")


class StageFile(BaseModel):
    """A file of a stage. `digest` is the hash of all bytes, `sample` that of the size and of 16 blocks."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    bytes: int
    digest: str
    sample: str


def record_files(folder: Path, left_out: tuple[str, ...]) -> dict[str, StageFile]:
    """Every file below a folder by its relative path, except those whose path matches a pattern of `left_out`."""
    return {
        name: StageFile(bytes=path.stat().st_size, digest=digest_of(path), sample=digest_of(path, BLOCKS))
        for name, path in _files(folder, left_out).items()
    }


def damaged_files(folder: Path, files: Mapping[str, StageFile], whole: bool = False) -> dict[str, str]:
    """What is wrong with each damaged file, by its relative path; empty if all files are as recorded.

    whole: read every file in full, however large the stage is.
    """
    whole = whole or sum(file.bytes for file in files.values()) <= WHOLE_BYTES
    problems = {name: _problem(folder / name, file, whole) for name, file in files.items()}
    return {name: problem for name, problem in problems.items() if problem}


def added_files(folder: Path, files: Mapping[str, StageFile], left_out: tuple[str, ...]) -> list[str]:
    """The relative paths of files that are not recorded, but stand next to recorded ones of their kind in a subfolder.

    A reader of all shards of a folder would take them for part of the stage.
    """
    kinds = {(path.parent, path.suffix) for path in map(PurePosixPath, files) if len(path.parts) > 1}
    names = _files(folder, left_out).keys() - files.keys()
    return sorted(name for name in names if ((path := PurePosixPath(name)).parent, path.suffix) in kinds)


def digest_of(path: Path, blocks: int | None = None) -> str:
    """16 hex digits: the hash of a file's size and of all its bytes, or of that many blocks from head to tail.

    A process reads each file once, unless its size or its time of change differs.
    """
    status = path.stat()
    return _digest(str(path.absolute()), status.st_size, status.st_ctime_ns, blocks)


@lru_cache(maxsize=1 << 16)
def _digest(path: str, size: int, _changed: int, blocks: int | None) -> str:
    hashed = xxhash.xxh3_64(size.to_bytes(8, "little"))
    with Path(path).open("rb", buffering=0) as file:
        if blocks is None or size <= blocks * BLOCK_BYTES:
            while block := file.read(4 << 20):
                hashed.update(block)
        else:
            for number in range(blocks):
                file.seek(number * (size - BLOCK_BYTES) // (blocks - 1))
                hashed.update(file.read(BLOCK_BYTES))
    return str(hashed.hexdigest())


def _files(folder: Path, left_out: tuple[str, ...]) -> dict[str, Path]:
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    patterns = (*left_out, *TEMPORARY)
    return {name: path for name, path in paths.items() if not any(fnmatch(name, pattern) for pattern in patterns)}


def _problem(path: Path, file: StageFile, whole: bool) -> str | None:
    """What is wrong with a file; None if it is as recorded."""
    try:
        if not path.is_file():
            return "is missing"
        if (size := path.stat().st_size) != file.bytes:
            return f"has {size:,} bytes, its card says {file.bytes:,}"
        same = digest_of(path) == file.digest if whole else digest_of(path, BLOCKS) == file.sample
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return f"cannot be read ({error})"
    return None if same else "has changed since its card was written"
