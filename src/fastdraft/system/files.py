"""Run folders: atomic writes, removal, locks, and clear errors on full disks."""

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

# Names that no user gives a file: what has them is FastDraft's own, and is removed. A user's backup `recipe.yaml.old`
# stays.
PART, OLD = ".fastdraft-part", ".fastdraft-old"
# The key of a stage: the digest of its inputs.
KEY = re.compile("[0-9a-f]{16}")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHORT_WRITE = re.compile(r"\d+ requested and \d+ written|iostream error")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path. What is written there, a file or a folder, replaces `path` when the block ends.

    If the block fails, `path` stays as it was. DiskFull if there is no space left.
    """
    part = path.with_name(path.name + PART)
    remove(part, inside=path.parent)
    recover(path)
    try:
        with disk_full_explained(path):
            part.parent.mkdir(parents=True, exist_ok=True)
            yield part
            # The contents must be on the disk before the final name is.
            for written in (part, *part.rglob("*")):
                _fsync(written)
            if path.is_dir() and part.is_dir():  # a folder where a file belongs is the user's, and stays
                # If the process is killed between these two lines, `recover` renames the old folder back.
                path.rename(path.with_name(path.name + OLD))
                part.rename(path)
            else:
                part.replace(path)
            _fsync(path.parent)
    finally:
        remove(part, inside=path.parent)
        recover(path)


def recover(path: Path) -> None:
    """Finish a replacement of `path` that was interrupted: keep the new version if it is complete, else the old one."""
    old = path.with_name(path.name + OLD)
    if path.exists():
        remove(old, inside=path.parent)
    elif old.exists():
        old.rename(path)


def cache_folder(*names: str) -> Path:
    """A path below the user's cache folder, for files that can be generated again. The folder that holds it is made.

    RunError if that is impossible.
    """
    remedy = "set XDG_CACHE_HOME to a writable folder"
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").joinpath("fastdraft", *names)
    except RuntimeError as error:
        raise RunError(f"the cache folder is unknown: {error}\n  do: {remedy}") from error
    with _writable_or_refused(path.parent, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


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
    if stored_key(folder) == key:
        return None
    moved = _move_to_stale(folder)
    with atomic_write(folder / "key") as part:
        part.write_text(key)
    return moved


def restore(folder: Path, key: str) -> str | None:
    """Bring the work with this key back from `stale/`, and return its name there; None if there is none.

    A folder with another key is moved to `stale/` first.
    """
    place = place_of(folder, key)
    if place == folder:
        return None
    _move_to_stale(folder)
    place.rename(folder)
    return f"stale/{place.name}"


def place_of(folder: Path, key: str) -> Path:
    """Where the work with this key is: in the folder, in `stale/`, or nowhere yet, which gives the folder too."""
    if stored_key(folder) == key:
        return folder
    stale = (folder.parent / "stale").glob(f"{folder.name}-*")
    return next((path for path in stale if stored_key(path) == key), folder)


def stored_key(folder: Path) -> str | None:
    """The key of the work in a stage's folder; None if it has none."""
    file = folder / "key"
    return file.read_text(errors="replace") if file.is_file() else None


def _move_to_stale(folder: Path) -> str | None:
    """Move a folder to the first free name in `stale/`, next to it, and return it; None if nothing was in the folder.

    A folder that holds nothing but the key of a stage is removed.
    """
    if not folder.exists():
        return None
    if [path.name for path in folder.iterdir()] == ["key"] and KEY.fullmatch(stored_key(folder) or ""):
        remove(folder, inside=folder.parent)
        return None
    names = (f"stale/{folder.name}-{number}" for number in count())
    moved = next(name for name in names if not (folder.parent / name).exists())
    (folder.parent / "stale").mkdir(exist_ok=True)
    folder.rename(folder.parent / moved)
    return moved


def remove(path: Path, inside: Path) -> None:
    """Remove a file, a link or a folder, if it exists. Whatever FastDraft removes is removed here.

    RunError, and nothing is removed, unless `path` is within the folder `inside` after links and `..` are followed. Of
    a link the link itself is removed.
    """
    place = Path(os.path.realpath(path.parent), path.name)
    if path.name in ("", "..") or Path(os.path.realpath(inside)) not in place.parents:
        raise RunError(f"{path} is not within {inside}, so it is not removed\n  do: remove it yourself if you want to")
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def make_folder(folder: Path, option: str = "--folder") -> None:
    """Make a folder if it does not exist. RunError, which names the option for another folder, if that fails."""
    with _writable_or_refused(folder, f"choose another folder with {option}"):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def locked(folder: Path, option: str = "--folder") -> Iterator[None]:
    """Make a folder if it does not exist, and lock it. The lock ends with the process, even if it is killed.

    RunError, which names the option for another folder, if it cannot be made or written, if another process holds it,
    or if its file `lock` is not FastDraft's.
    """
    remedy = f"choose another folder with {option}"
    make_folder(folder, option)
    with _writable_or_refused(folder, remedy):
        lock = (folder / "lock").open("a+", errors="replace")
    with lock as file:
        file.seek(0)
        holder = file.read(100).strip()
        if not re.fullmatch(r"\d*", holder):
            raise RunError(f"{folder / 'lock'} is not a lock of FastDraft, so it is not overwritten\n  do: {remedy}")
        try:
            # Not flock: forked children inherit it, and those of datatrove can outlive a killed run.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{folder} is in use by process {holder or 'unknown'}\n  do: wait for it, stop it, or {remedy}"
            ) from None
        with _writable_or_refused(folder, remedy):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield


@contextmanager
def _writable_or_refused(folder: Path, remedy: str) -> Iterator[None]:
    """Raise RunError instead of the system's error if a folder cannot be made or written."""
    try:
        yield
    except OSError as error:
        place, reason = Path(error.filename or folder), error.strerror
        if os.path.islink(place) and not os.path.exists(place):  # Path's own raise errors for impossible names
            reason = f"it is a link to {os.readlink(place)}, which does not exist"
        where = "" if place == folder else f"{place}: "
        raise RunError(f"{folder} is not a writable folder: {where}{reason}\n  do: {remedy}") from error


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
