"""Attempts at a piece of work that is done in numbered tasks: what an attempt finished, the next one takes over.

Each process that starts makes an attempt: a folder of its own, since one that was killed may leave tasks behind, on
this machine or on a cluster, that go on writing into theirs. In it lies a folder for each pipeline of tasks; all that
task 7 leaves there has a name that begins with its number (00007.npz, 00007_00000_doc_shuffled.ds), and a finished task
has an empty file log/completions/00007 there, which datatrove writes.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastdraft.system.files import remove


def new_attempt(attempts: Path) -> Path:
    """An attempt of this process, with the finished tasks of those before it, which are removed."""
    before = sorted(attempts.glob("attempt-*"))
    attempt = attempts / f"attempt-{os.getpid()}-{len(before)}"
    attempt.mkdir(parents=True)
    for old in before:
        for mark in sorted(old.glob("*/log/completions/*")):
            _take_over(mark, attempt / mark.relative_to(old))
        remove(old)
    return attempt


def _take_over(mark: Path, own: Path) -> None:
    """Move a finished task. The mark goes first and comes last: a kill in between makes the task an unfinished one."""
    pipeline, destination = mark.parents[2], own.parents[2]
    mark.unlink()
    for file in sorted(pipeline.rglob(f"{mark.name}[._]*")):
        place = destination / file.relative_to(pipeline)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.rename(place)
    own.parent.mkdir(parents=True, exist_ok=True)
    own.touch()
