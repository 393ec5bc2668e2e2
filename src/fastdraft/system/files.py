"""Run folders: atomic writes, locks, and clear errors on full disks."""

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
    """Yield a temporary path. What is written there, a file or a folder, replaces `path` when the block ends.

    If the block fails, `path` stays as it was. DiskFull if there is no space left.
    """
    part = path.with_name(path.name + PART)
    remove(part)
    recover(path)
    try:
        with disk_full_explained(path):
            part.parent.mkdir(parents=True, exist_ok=True)
            yield part
            # The contents must be on the disk before the final name is.
            for written in (part, *part.rglob("*")):
                _fsync(written)
            if path.is_dir():
                # If the process is killed between these two lines, `recover` renames the old folder back.
                path.rename(path.with_name(path.name + OLD))
                part.rename(path)
            else:
                part.replace(path)
            _fsync(path.parent)
    finally:
        remove(part)
        recover(path)


def recover(path: Path) -> None:
    """Finish a replacement of `path` that was interrupted: keep the new version if it is complete, else the old one."""
    old = path.with_name(path.name + OLD)
    if path.exists():
        remove(old)
    elif old.exists():
        old.rename(path)


def cache_folder(*names: str) -> Path:
    """A folder below the user's cache folder, for files that can be generated again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").joinpath("fastdraft", *names)


@contextmanager
def disk_full_explained(path: Path) -> Iterator[None]:
    """Raise DiskFull instead of the system's error if the disk is full."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError):
            number = error.errno
        else:  # safetensors writes in Rust, and gives the number only in the text
            match = re.search(r"\(os error (\d+)\)", str(error))
            number = int(match[1]) if match else None
        if number is None or number not in NO_SPACE:
            raise
        raise DiskFull(
            f"no space left while writing {path} ({os.strerror(number)})\n"
            f"  kept: everything that was finished before\n  do: free some space, then run the same command again"
        ) from error


@contextmanager
def short_writes_explained() -> Iterator[None]:
    """Raise the system's error for a full disk where numpy and C++ streams report only a short write."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not SHORT_WRITE.search(str(error)):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def claim(folder: Path, key: str) -> str | None:
    """Take a stage's folder for the work with this key.

    If the folder has the same key, the work in it continues. A folder with another key is moved to `stale/`, next to
    it, and its new name is returned.
    """
    key_file, moved = folder / "key", None
    if folder.exists():
        if key_file.is_file() and key_file.read_text() == key:
            return None
        names = (f"stale/{folder.name}-{number}" for number in count())
        moved = next(name for name in names if not (folder.parent / name).exists())
        (folder.parent / "stale").mkdir(exist_ok=True)
        folder.rename(folder.parent / moved)
    with atomic_write(key_file) as part:
        part.write_text(key)
    return moved


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_folder(folder: Path, option: str = "--folder") -> None:
    """Make a run folder if it does not exist. RunError, which names the option for another folder, if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be a run folder: {error.strerror}\n  do: choose another one with {option}"
        ) from error


@contextmanager
def locked(folder: Path, option: str = "--folder") -> Iterator[None]:
    """Lock a folder. RunError, which names the option for another folder, if another process holds it.

    The lock ends with the process, even if it is killed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+")
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise RunError(
            f"{folder} is not a writable folder: {error.strerror}\n  do: choose another one with {option}"
        ) from error
    with lock as file:
        try:
            # Not flock: forked children inherit it, and those of datatrove can outlive a killed run.
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


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
