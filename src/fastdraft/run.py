"""A run folder: what is in it, who holds it, and how a thing comes to exist in it: written beside, then renamed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastdraft.errors import DiskFull, RunError

PART = ".part"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def finished_last(path: Path) -> Iterator[Path]:
    """A place to write a file or folder that appears at `path` whole, or not at all.

    DiskFull where the space ends; what was there before stays.
    """
    part = path.with_name(path.name + PART)
    remove(part)
    try:
        with full_disk_named(path):
            part.parent.mkdir(parents=True, exist_ok=True)
            yield part
            _sync(part)
            _swap(part, path)
    finally:
        remove(part)


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """DiskFull, which says what to do, in place of the system's error."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise DiskFull(
            f"no space left while writing {path} ({error.strerror})\n"
            f"  kept: everything finished before it\n  do: free some space, then run the same command again"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """One JSON file, whole or not at all."""
    with finished_last(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def claim(folder: Path, key: str) -> str | None:
    """Make a stage's folder its own; what another recipe left there moves to `stale/` beside it: its new name returns.

    The same key means that the work begun there goes on.
    """
    claim_file, moved = folder / "key", None
    if folder.exists() and (not claim_file.is_file() or claim_file.read_text() != key):
        number = len(list((folder.parent / "stale").glob(f"{folder.name}-*")))
        moved = f"stale/{folder.name}-{number}"
        (folder.parent / "stale").mkdir(exist_ok=True)
        folder.rename(folder.parent / moved)
    folder.mkdir(parents=True, exist_ok=True)
    claim_file.write_text(key)
    return moved


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder; RunError where another process does. The lock goes with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(
                f"{folder} is in use by process {file.read().strip() or 'unknown'}\n"
                f"  do: wait for it, stop it, or choose another folder with --folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _sync(part: Path) -> None:
    """Make sure that the bytes are on the disk before the name says so."""
    for path in [part] if part.is_file() else [p for p in part.rglob("*") if p.is_file()]:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _swap(part: Path, path: Path) -> None:
    if path.is_dir():
        old = path.with_name(path.name + ".old")
        remove(old)
        path.rename(old)
        part.rename(path)
        remove(old)
    else:
        part.replace(path)
