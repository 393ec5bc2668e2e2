"""Which documents are trained on, which are held out, and which of the held-out ones stand in the training side too.

The side depends on the document's content alone, so it is the same on every machine and for every run: that is what
lets a draft be measured on documents that neither it nor the packaged target has seen.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator, Set
from importlib import resources
from pathlib import Path
from typing import Literal

import xxhash

from fastdraft.config import SourcePart
from fastdraft.data.document import Document, uniform
from fastdraft.system.errors import CorpusError

Side = Literal["train", "held_out"]

SHINGLE_LINES = 3
LEAKED_FRACTION = 0.5
LINE_END = re.compile(r"\n|(?<=[.!?]) ")  # prose without line breaks falls into sentences


def side(part: SourcePart, key: str) -> Side | None:
    """The side of the documents with this key; None where the recipe samples it away."""
    if uniform(key, "split") < part.held_out_fraction:
        return "held_out"
    return "train" if uniform(key, "sample") < part.sample_fraction else None


def shingles(text: str) -> set[int]:
    """Hashes of every three successive lines of some substance, indentation apart."""
    lines = [line for line in map(str.strip, LINE_END.split(text)) if len(line) >= 4]
    runs = ("\n".join(lines[i : i + SHINGLE_LINES]) for i in range(max(len(lines) - SHINGLE_LINES + 1, 1)))
    return {xxhash.xxh3_64_intdigest(run.encode("utf-8", "surrogatepass")) for run in runs}


def shingles_of(documents: Iterable[Document]) -> set[int]:
    """Those of all documents together."""
    return set().union(*(shingles(document.text) for document in documents))


def leaked(held_out: list[Document], found: Set[int]) -> set[int]:
    """Positions in `held_out` of documents half of whose shingles are among those found in the training side.

    Against the union of the training side, not file by file: code that was copied together from several files is a
    near-duplicate too.
    """
    of_document = [shingles(document.text) for document in held_out]
    return {i for i, own in enumerate(of_document) if len(own & found) >= LEAKED_FRACTION * len(own)}


def allowed_keys(path: str) -> set[str]:
    """The content keys of an allow-list, one a line; `demo:code` and `demo:text` came with the packaged target."""
    if path.startswith("demo:"):
        lines = resources.files("fastdraft.demo").joinpath(f"held_out.{path[5:]}.txt.gz").read_bytes()
    elif Path(path).is_file():
        lines = Path(path).read_bytes()
    else:
        raise CorpusError(f"no allow-list at {path}\n  do: correct `held_out_list`, or leave it out")
    return set(_lines(gzip.decompress(lines) if lines[:2] == b"\x1f\x8b" else lines))


def _lines(content: bytes) -> Iterator[str]:
    return (line for line in content.decode("ascii").split() if line)
