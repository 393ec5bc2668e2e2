"""The split of a source into training and held-out documents, and near-duplicates between the two.

The split depends only on the content of a document, so it is the same on every machine and in every run. A draft can
therefore be measured on documents that neither it nor the packaged target has seen.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Set
from importlib import resources
from pathlib import Path
from typing import Literal

import xxhash

from fastdraft.config import SourcePart
from fastdraft.data.document import Document, uniform
from fastdraft.data.record_files import local_path, readable
from fastdraft.system.errors import CorpusError

SplitName = Literal["train", "held_out"]

SHINGLE_LINES = 3
NEAR_DUPLICATE_FRACTION = 0.5
LINE_END = re.compile(r"\n|(?<=[.!?]) ")  # prose without line breaks is divided into sentences
GZIP_MAGIC = b"\x1f\x8b"
PACKAGED_LISTS = ("demo:code", "demo:text")
CONTENT_KEY = re.compile("[0-9a-f]{16}")


def split_of(part: SourcePart, key: str) -> SplitName | None:
    """The split of the documents with this key; None if `sample_fraction` leaves them out."""
    if uniform(key, "split") < part.held_out_fraction:
        return "held_out"
    return "train" if uniform(key, "sample") < part.sample_fraction else None


def shingles(text: str) -> set[int]:
    """Hashes of all runs of three lines, without indentation and without lines of fewer than four characters."""
    lines = [line for line in map(str.strip, LINE_END.split(text)) if len(line) >= 4]
    runs = ("\n".join(lines[i : i + SHINGLE_LINES]) for i in range(max(len(lines) - SHINGLE_LINES + 1, 1)))
    return {xxhash.xxh3_64_intdigest(run.encode("utf-8", "surrogatepass")) for run in runs}


def all_shingles(documents: Iterable[Document]) -> set[int]:
    """The union of the shingles of all documents."""
    return set().union(*(shingles(document.text) for document in documents))


def near_duplicates(held_out: list[Document], train_shingles: Set[int]) -> set[int]:
    """Indices into `held_out` of the documents with at least half of their shingles in the training documents.

    They are compared with the union of all training documents, because code that was copied together from several
    files is a near-duplicate too.
    """
    of_documents = [shingles(document.text) for document in held_out]
    return {i for i, own in enumerate(of_documents) if len(own & train_shingles) >= NEAR_DUPLICATE_FRACTION * len(own)}


def allowed_keys(path: str) -> set[str]:
    """The content keys of an allow-list, 16 hex digits each, one per line, gzipped or not.

    `demo:code` and `demo:text` are the lists of the packaged target. CorpusError if the list cannot be read.
    """
    if path in PACKAGED_LISTS:
        file = Path(str(resources.files("fastdraft.demo"))) / f"held_out.{path[5:]}.txt.gz"
    else:
        file = local_path(path)
    if not file.is_file():
        raise CorpusError(
            f"no allow-list at {path}\n  wanted: a file, or one of {', '.join(PACKAGED_LISTS)}\n"
            f"  do: correct `held_out_list`, or leave it out"
        )
    with readable(file):
        content = file.read_bytes()
        keys = (gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content).decode("ascii").split()
    if invalid := next((key for key in keys if not CONTENT_KEY.fullmatch(key)), None):
        raise CorpusError(
            f"the allow-list {path} has the key {invalid[:40]!r}, wanted 16 hex digits per line\n"
            f"  do: correct `held_out_list`, or leave it out"
        )
    return set(keys)
