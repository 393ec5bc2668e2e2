"""Does starting to train, or drawing a batch, cost more on a larger corpus? Shards of 10M, 100M, 1B and 10B tokens.

    python benchmarks/corpus.py                              # 2 GB in a temporary folder, removed at the end
    python benchmarks/corpus.py --tokens 1e7 --folder /data  # a smaller one, elsewhere

The text is real (Python sources of this machine, a tenth of them), tokenised once by the packaged target's tokenizer
and repeated; the 10 billion tokens are hollow: 200 files that have a size and no content, 40 GB of 4-byte tokens. Each
size is opened by a fresh process, as training opens it: shards, rows of 512 tokens, mixture, first batch of 16; first
with none of the shards' pages in memory, then again. Then batches are drawn, by themselves and one step ahead of a step
that takes 6 ms: 8 192 tokens of a 50M draft on an H200 at 40 % of its peak, by arithmetic. The last table has the order
of the rows alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastdraft.config import SourcePart, TargetPart, TokenizePart
from fastdraft.data.order import Mixture, ShardRows
from fastdraft.data.permutation import Computed
from fastdraft.data.prefetch import Ahead
from fastdraft.data.shards import Shards, SideCard, index_of, survey
from fastdraft.data.tokenize import write_source, write_tokenizer
from fastdraft.models import target

SHARD_TOKENS = 50_000_000
SEQUENCES, SEQUENCE_TOKENS = 16, 512
BATCHES, STEP_SECONDS = 300, 0.006
HOLLOW_TOKENS = 10_000_000_000


class Text(NamedTuple):
    """Tokens of two bytes each, and where their documents end."""

    content: bytes
    ends: np.ndarray[Any, np.dtype[np.uint64]]


def real_text(folder: Path) -> Text:
    """A tenth of this machine's Python sources, as tokens."""
    part, frame = TargetPart(path="demo"), folder / "tokenizer.json"
    write_tokenizer(target.open_tokenizer(part).backend_tokenizer, frame, None, target.card(part)["eos_ids"][0])
    source = SourcePart(source="python_code", sample_fraction=0.1, held_out_fraction=0)
    card = write_source("code", source, TokenizePart(), frame, folder / "code", seed=7)
    (file,) = card.train.files
    shard = folder / "code" / "train" / "shards" / file.name
    return Text(shard.read_bytes(), np.fromfile(index_of(shard), "<u8"))


def write_shards(folder: Path, tokens: int, text: Text) -> SideCard:
    """`tokens` tokens of the text, over and over, in shards of 50M."""
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, tokens, SHARD_TOKENS)):
        size = min(SHARD_TOKENS, tokens - first)
        repeats = -(-2 * size // len(text.content))
        ends = np.concatenate([text.ends + i * (len(text.content) // 2) for i in range(repeats)])
        path = folder / f"{number:05d}.ds"
        path.write_bytes((text.content * repeats)[: 2 * size])
        np.append(ends[ends < size], size).astype("<u8").tofile(index_of(path))
    return survey(folder, 2)


def hollow_shards(folder: Path, tokens: int) -> SideCard:
    """Shards of the right sizes that take no room; a document each."""
    folder.mkdir(parents=True)
    for number in range(tokens // SHARD_TOKENS):
        path = folder / f"{number:05d}.ds"
        path.touch()
        os.truncate(path, 4 * SHARD_TOKENS)
        np.array([SHARD_TOKENS], "<u8").tofile(index_of(path))
    return survey(folder, 4)


def forget(folder: Path) -> None:
    """Take the shards out of the system's memory."""
    for path in folder.glob("*.ds"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def opened(folder: Path) -> dict[str, float]:
    """What a process that trains on the shards does first; in a process of its own."""
    before, begun = memory_megabytes(), time.perf_counter()
    card = SideCard.model_validate_json((folder / "side.json").read_text())
    shards = Shards(folder, card)
    opened_at = time.perf_counter()
    mixture = Mixture({"code": ShardRows(shards, SEQUENCE_TOKENS)}, {"code": 1.0}, seed=7)
    mixture.next_batch(SEQUENCES)
    first_at, memory = time.perf_counter(), memory_megabytes()
    took = waits(mixture, 0)
    waited = waits(Ahead(mixture), STEP_SECONDS)
    return {
        "open_seconds": opened_at - begun,
        "first_batch_seconds": first_at - begun,
        "rss_megabytes": memory["VmRSS"],
        "own_megabytes": memory["RssAnon"] - before["RssAnon"],
        "mapped_megabytes": memory["RssFile"] - before["RssFile"],
        "batch_median_ms": float(np.median(took)),
        "batch_95th_ms": float(np.quantile(took, 0.95)),
        "ahead_median_ms": float(np.median(waited)),
        "ahead_95th_ms": float(np.quantile(waited, 0.95)),
    }


def waits(stream: Mixture | Ahead, step_seconds: float) -> list[float]:
    """Milliseconds that each step waits for its batch."""
    stream.next_batch(SEQUENCES)
    took = []
    for _ in range(BATCHES):
        time.sleep(step_seconds)
        started = time.perf_counter()
        stream.next_batch(SEQUENCES)
        took.append(1000 * (time.perf_counter() - started))
    return took


def memory_megabytes() -> dict[str, float]:
    """Of this process: all that is resident, what is its own, and what is of files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) / 1024 for words in lines if words[0] in ("VmRSS:", "RssAnon:", "RssFile:")}


def measure(folder: Path) -> dict[str, float]:
    """`opened`, by a fresh process."""
    command = [sys.executable, __file__, "--open", str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def orders() -> None:
    """Seconds until the first row of an epoch, and megabytes, by the rows of a source."""
    print(
        "\n| rows | tokens | kept: seconds | MB | computed: seconds | MB | a row, us |\n|---|---|---|---|---|---|---|"
    )
    for rows in (19_531, 195_313, 1_953_125, 19_531_250):
        begun = time.perf_counter()
        kept = np.random.default_rng([7, 0, 0]).permutation(rows)
        kept_seconds, begun = time.perf_counter() - begun, time.perf_counter()
        computed = Computed(rows, [7, 0, 0])
        computed[0]
        computed_seconds, begun = time.perf_counter() - begun, time.perf_counter()
        for place in range(10_000):
            computed[place]
        row_us = 100 * (time.perf_counter() - begun)
        print(
            f"| {rows:,} | {rows * SEQUENCE_TOKENS / 1e6:,.0f}M | {kept_seconds:.3f} | {kept.nbytes / 1e6:.1f} "
            f"| {computed_seconds:.4f} | 0 | {row_us:.1f} |"
        )


def main() -> None:
    """Write, measure, print, remove."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, nargs="+", default=[1e7, 1e8, 1e9], help="sizes to measure")
    parser.add_argument("--folder", type=Path, help="where a temporary folder is made; otherwise the system's place")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.open:
        print(json.dumps(opened(given.open)))
        return
    sizes = [int(tokens) for tokens in given.tokens]
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="corpus-") as place:
        free, wanted = shutil.disk_usage(place).free, 2.2 * max(sizes)
        if free < 2 * wanted:
            sys.exit(f"{place} has {free / 1e9:.1f} GB free, wanted {2 * wanted / 1e9:.1f}\n  do: name a --folder")
        table(Path(place), sizes)
    orders()


def table(place: Path, sizes: list[int]) -> None:
    """A row for each size, cold and warm, and for the hollow one."""
    text = real_text(place)
    print(f"{len(text.content) // 2:,} tokens of real text, repeated; batches of {SEQUENCES} x {SEQUENCE_TOKENS}\n")
    columns = (
        "open s | first batch s | RSS MB | of its own | of shards | batch ms, median | 95th | ahead ms, median | 95th"
    )
    print(f"| tokens | shards | pages | {columns} |\n|{'---|' * 12}")
    for tokens in [*sizes, HOLLOW_TOKENS]:
        folder = place / str(tokens) / "tokenize" / "code" / "train" / "shards"
        hollow = tokens == HOLLOW_TOKENS
        card = hollow_shards(folder, tokens) if hollow else write_shards(folder, tokens, text)
        (folder / "side.json").write_text(card.model_dump_json())
        for pages in ["hollow"] if hollow else ["cold", "warm"]:
            if pages == "cold":
                forget(folder)
            print(f"| {tokens / 1e6:,.0f}M | {len(card.files)} | {pages} | {cells(measure(folder))} |", flush=True)
        shutil.rmtree(place / str(tokens))


def cells(row: dict[str, float]) -> str:
    """The measured columns."""
    digits = {"seconds": 3, "megabytes": 1, "ms": 2}
    return " | ".join(f"{value:.{digits[name.rpartition('_')[2]]}f}" for name, value in row.items())


if __name__ == "__main__":
    main()
