"""Time and memory to open a corpus and to read batches from it, for shards of 10M, 100M, 1B and 10B tokens.

    python benchmarks/corpus.py                              # 2 GB in a temporary folder, removed at the end
    python benchmarks/corpus.py --tokens 1e7 --folder /data  # a smaller one, elsewhere

The text is a tenth of this machine's Python sources, tokenised once by the packaged target's tokenizer and repeated.
The 10 billion tokens are sparse files: 200 files with a size and no content, 40 GB of 4-byte tokens. Each size is
opened by a fresh process as in training: shards, sequences of 512 tokens, mixture, first batch of 16. This is done with
none of the shards' pages in memory, and then again. Then batches are read, directly and with prefetching during steps
of 6 ms, the computed time of 8 192 tokens of a 50M draft on an H200 at 40 % of its peak. The last table has the time to
compute the order of the sequences.
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
from fastdraft.data.order import Mixture, ShardSequences
from fastdraft.data.permutation import FeistelPermutation
from fastdraft.data.prefetch import PrefetchedMixture
from fastdraft.data.shards import Shards, SplitCard, describe_shards, index_path
from fastdraft.data.tokenize import write_source, write_tokenizer
from fastdraft.models import pretrained

EOS = 0
SHARD_TOKENS = 50_000_000
SEQUENCES, SEQUENCE_TOKENS = 16, 512
BATCHES, STEP_SECONDS = 300, 0.006
SPARSE_TOKENS = 10_000_000_000


class Text(NamedTuple):
    """Tokens of two bytes each, and the ends of the documents."""

    content: bytes
    ends: np.ndarray[Any, np.dtype[np.uint64]]


def real_text(folder: Path) -> Text:
    """The tokens of a tenth of this machine's Python sources."""
    part, frame = TargetPart(path="demo"), folder / "tokenizer.json"
    write_tokenizer(pretrained.open_tokenizer(part).backend_tokenizer, frame, None, EOS)
    source = SourcePart(source="python_code", sample_fraction=0.1, held_out_fraction=0)
    card = write_source("code", source, TokenizePart(), frame, folder / "code", seed=7)
    (file,) = card.train.files
    shard = folder / "code" / "train" / "shards" / file.name
    return Text(shard.read_bytes(), np.fromfile(index_path(shard), "<u8"))


def write_shards(folder: Path, tokens: int, text: Text) -> SplitCard:
    """Write `tokens` tokens of the repeated text in shards of 50M."""
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, tokens, SHARD_TOKENS)):
        size = min(SHARD_TOKENS, tokens - first)
        repeats = -(-2 * size // len(text.content))
        ends = np.concatenate([text.ends + i * (len(text.content) // 2) for i in range(repeats)])
        path = folder / f"{number:05d}.ds"
        path.write_bytes((text.content * repeats)[: 2 * size])
        np.append(ends[ends < size], size).astype("<u8").tofile(index_path(path))
    return describe_shards(folder, 2)


def sparse_shards(folder: Path, tokens: int) -> SplitCard:
    """Create sparse files in place of shards, with one document each."""
    folder.mkdir(parents=True)
    for number in range(tokens // SHARD_TOKENS):
        path = folder / f"{number:05d}.ds"
        path.touch()
        os.truncate(path, 4 * SHARD_TOKENS)
        np.array([SHARD_TOKENS], "<u8").tofile(index_path(path))
    return describe_shards(folder, 4)


def evict(folder: Path) -> None:
    """Remove the shards from the page cache."""
    for path in folder.glob("*.ds"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def open_and_measure(folder: Path) -> dict[str, float]:
    """Open the shards as training does, in a fresh process, and measure."""
    before, begun = memory_megabytes(), time.perf_counter()
    card = SplitCard.model_validate_json((folder / "side.json").read_text())
    shards = Shards(folder, card)
    opened_at = time.perf_counter()
    mixture = Mixture({"code": ShardSequences(shards, SEQUENCE_TOKENS)}, {"code": 1.0}, seed=7)
    mixture.next_batch(SEQUENCES)
    first_at, memory = time.perf_counter(), memory_megabytes()
    direct = waits(mixture, 0)
    prefetched = waits(PrefetchedMixture(mixture), STEP_SECONDS)
    return {
        "open_seconds": opened_at - begun,
        "first_batch_seconds": first_at - begun,
        "rss_megabytes": memory["VmRSS"],
        "own_megabytes": memory["RssAnon"] - before["RssAnon"],
        "mapped_megabytes": memory["RssFile"] - before["RssFile"],
        "batch_median_ms": float(np.median(direct)),
        "batch_95th_ms": float(np.quantile(direct, 0.95)),
        "prefetched_median_ms": float(np.median(prefetched)),
        "prefetched_95th_ms": float(np.quantile(prefetched, 0.95)),
    }


def waits(stream: Mixture | PrefetchedMixture, step_seconds: float) -> list[float]:
    """Milliseconds that each step waits for its batch."""
    stream.next_batch(SEQUENCES)
    milliseconds = []
    for _ in range(BATCHES):
        time.sleep(step_seconds)
        started = time.perf_counter()
        stream.next_batch(SEQUENCES)
        milliseconds.append(1000 * (time.perf_counter() - started))
    return milliseconds


def memory_megabytes() -> dict[str, float]:
    """Resident memory of this process: all, anonymous, and mapped files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) / 1024 for words in lines if words[0] in ("VmRSS:", "RssAnon:", "RssFile:")}


def measure(folder: Path) -> dict[str, float]:
    """`open_and_measure` in a fresh process."""
    command = [sys.executable, __file__, "--open", str(folder)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def orders() -> None:
    """Print the time and memory until the first sequence of an epoch, by the number of sequences of a source."""
    print(
        "\n| sequences | tokens | stored: seconds | MB | computed: seconds | MB | per sequence, us |\n"
        "|---|---|---|---|---|---|---|"
    )
    for count in (19_531, 195_313, 1_953_125, 19_531_250):
        begun = time.perf_counter()
        stored = np.random.default_rng([7, 0, 0]).permutation(count)
        stored_seconds, begun = time.perf_counter() - begun, time.perf_counter()
        computed = FeistelPermutation(count, [7, 0, 0])
        computed[0]
        computed_seconds, begun = time.perf_counter() - begun, time.perf_counter()
        for index in range(10_000):
            computed[index]
        sequence_us = 100 * (time.perf_counter() - begun)
        print(
            f"| {count:,} | {count * SEQUENCE_TOKENS / 1e6:,.0f}M | {stored_seconds:.3f} | {stored.nbytes / 1e6:.1f} "
            f"| {computed_seconds:.4f} | 0 | {sequence_us:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, nargs="+", default=[1e7, 1e8, 1e9], help="sizes to measure")
    parser.add_argument("--folder", type=Path, help="where a temporary folder is created; default: the system's")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(open_and_measure(options.open)))
        return
    sizes = [int(tokens) for tokens in options.tokens]
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="corpus-") as folder:
        free, needed = shutil.disk_usage(folder).free, 2.2 * max(sizes)
        if free < 2 * needed:
            sys.exit(
                f"{folder} has {free / 1e9:.1f} GB free, wanted {2 * needed / 1e9:.1f}\n  do: choose another --folder"
            )
        table(Path(folder), sizes)
    orders()


def table(root: Path, sizes: list[int]) -> None:
    """Print a row for each size with cold and with warm pages, and one for the sparse files."""
    text = real_text(root)
    print(f"{len(text.content) // 2:,} tokens of real text, repeated; batches of {SEQUENCES} x {SEQUENCE_TOKENS}\n")
    columns = (
        "open s | first batch s | RSS MB | anonymous | shards | batch ms, median | 95th | prefetched ms, median | 95th"
    )
    print(f"| tokens | shards | pages | {columns} |\n|{'---|' * 12}")
    for tokens in [*sizes, SPARSE_TOKENS]:
        folder = root / str(tokens) / "tokenize" / "code" / "train" / "shards"
        sparse = tokens == SPARSE_TOKENS
        card = sparse_shards(folder, tokens) if sparse else write_shards(folder, tokens, text)
        (folder / "side.json").write_text(card.model_dump_json())
        for pages in ["sparse"] if sparse else ["cold", "warm"]:
            if pages == "cold":
                evict(folder)
            print(f"| {tokens / 1e6:,.0f}M | {len(card.files)} | {pages} | {cells(measure(folder))} |", flush=True)
        shutil.rmtree(root / str(tokens))


def cells(row: dict[str, float]) -> str:
    """The measured columns of a row."""
    digits = {"seconds": 3, "megabytes": 1, "ms": 2}
    return " | ".join(f"{value:.{digits[name.rpartition('_')[2]]}f}" for name, value in row.items())


if __name__ == "__main__":
    main()
