"""Attempts at work that consists of numbered tasks; a new attempt takes over the finished tasks of earlier ones.

Every process makes an attempt in a folder of its own, because tasks of a killed process, on this machine or on a
cluster, may still write into theirs. The folder has a subfolder for each pipeline. The names of all files that task 7
writes begin with its number (00007.npz, 00007_00000_doc_shuffled.ds). datatrove marks a finished task with an empty
file log/completions/00007.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastdraft.system.files import remove


def new_attempt(attempts: Path) -> Path:
    """A new attempt folder that holds the finished tasks of all earlier attempts; these are removed."""
    earlier = sorted(attempts.glob("attempt-*"))
    attempt = attempts / f"attempt-{os.getpid()}-{len(earlier)}"
    attempt.mkdir(parents=True)
    for old in earlier:
        for mark in sorted(old.glob("*/log/completions/*")):
            _take_over(mark, attempt / mark.relative_to(old))
        remove(old, inside=attempts)
    return attempt


def _take_over(mark: Path, new_mark: Path) -> None:
    """Move the files of a finished task. The mark is removed first and written last: after a kill in between, the
    task counts as unfinished.
    """
    pipeline, new_pipeline = mark.parents[2], new_mark.parents[2]
    remove(mark, inside=pipeline)
    for file in sorted(pipeline.rglob(f"{mark.name}[._]*")):
        destination = new_pipeline / file.relative_to(pipeline)
        destination.parent.mkdir(parents=True, exist_ok=True)
        file.rename(destination)
    new_mark.parent.mkdir(parents=True, exist_ok=True)
    new_mark.touch()
