"""A run folder: what is in it, who holds it, and how a thing comes to exist in it: written beside, then renamed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fastdraft.system.errors import DiskFull, RunError

PART, OLD = ".part", ".old"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHORT_WRITE = re.compile(r"\d+ requested and \d+ written|iostream error")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A place to write a file or folder that appears at `path` whole, or not at all.

    DiskFull where the space ends; what was there before stays.
    """
    part = path.with_name(path.name + PART)
    remove(part)
    recover(path)
    try:
        with disk_full_explained(path):
            part.parent.mkdir(parents=True, exist_ok=True)
            yield part
            _sync(part)
            _swap(part, path)
    finally:
        remove(part)
        recover(path)


def recover(path: Path) -> None:
    """End a replacement of `path` that was cut short: what was there before comes back, unless the new one stands."""
    old = path.with_name(path.name + OLD)
    if path.exists():
        remove(old)
    elif old.exists():
        old.rename(path)


def cache_folder(*names: str) -> Path:
    """Where things that can be made again are kept for this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").joinpath("fastdraft", *names)


@contextmanager
def disk_full_explained(path: Path) -> Iterator[None]:
    """DiskFull, which says what to do, in place of the system's error."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _error_number(error)
        if number not in NO_SPACE:
            raise
        raise DiskFull(
            f"no space left while writing {path} ({os.strerror(number)})\n"
            f"  kept: everything finished before it\n  do: free some space, then run the same command again"
        ) from error


@contextmanager
def short_writes_explained() -> Iterator[None]:
    """The system's error for a full disk where numpy and C++'s streams say only that not all was written."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not SHORT_WRITE.search(str(error)):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def write_json(path: Path, content: Any) -> None:
    """One JSON file, whole or not at all."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def claim(folder: Path, key: str) -> str | None:
    """Make a stage's folder its own; what another recipe left there moves to `stale/` beside it: its new name returns.

    The same key means that the work begun there goes on.
    """
    claim_file, moved = folder / "key", None
    if folder.exists():
        if claim_file.is_file() and claim_file.read_text() == key:
            return None
        names = (f"stale/{folder.name}-{number}" for number in count())
        moved = next(name for name in names if not (folder.parent / name).exists())
        (folder.parent / "stale").mkdir(exist_ok=True)
        folder.rename(folder.parent / moved)
    with atomic_write(claim_file) as part:
        part.write_text(key)
    return moved


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_folder(folder: Path, option: str = "--folder") -> None:
    """A run's folder, where none is yet; RunError, which names the option that chooses another, where none can be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be a run folder: {error.strerror}\n  do: choose another one with {option}"
        ) from error


@contextmanager
def locked(folder: Path, option: str = "--folder") -> Iterator[None]:
    """Hold a folder; RunError, which names the option that chooses another, where another process does, or none can.

    The lock goes with the process, however it ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+")
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise RunError(
            f"{folder} is no folder to write into: {error.strerror}\n  do: choose another one with {option}"
        ) from error
    with lock as file:
        try:
            # Not flock: that one is inherited by forked children, and datatrove's can outlive a killed run.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(
                f"{folder} is in use by process {file.read().strip() or 'unknown'}\n"
                f"  do: wait for it, stop it, or choose another folder with {option}"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _error_number(error: OSError | SafetensorError) -> int:
    """The system's number of an error, which safetensors leaves in the text; 0 where there is none."""
    if isinstance(error, OSError):
        return error.errno or 0
    named = re.search(r"\(os error (\d+)\)", str(error))
    return int(named[1]) if named else 0


def _sync(part: Path) -> None:
    """Make sure that the bytes, and the names of a folder's files, are on the disk before its own name says so."""
    for path in [part, *part.rglob("*")]:
        _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(part: Path, path: Path) -> None:
    """Rename; a kill between the two renames of a folder's replacement is fixed by `recover`."""
    if path.is_dir():
        path.rename(path.with_name(path.name + OLD))
        part.rename(path)
    else:
        part.replace(path)
    _flush(path.parent)
