"""What was written, looked at once, a shard at a time: `quality.json` beside the rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import py3langid
import xxhash
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedTokenizerFast

from fastdraft.synthesize.completions import Completion, Hashes
from fastdraft.synthesize.leaks import runs
from fastdraft.synthesize.repetition import loops, repeats
from fastdraft.synthesize.write import Decoding, Shard
from fastdraft.system.errors import CorpusError

NEAR_RUN_TOKENS, NEAR_FRACTION = 8, 0.5
# Near duplicates and languages are looked for among so many rows: what they need grows with each.
ROWS_LOOKED_AT = 100_000
ROWS_DECODED = 2_000
# Of fewer letters no language can be told.
FEWEST_LETTERS = 20
UNTOLD = "too short to tell"
LOOP = "answers that loop: more than a quarter of their runs of 8 tokens occurred before"


class Quality(BaseModel):
    """What the target wrote. Shares are of the rows written, unless said otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    asked: int
    written: int
    refused: dict[str, int]
    prompts_left_out: dict[str, int]
    tokens: int
    # Of all tokens of prompts and answers, those that the draft is trained on.
    trained_fraction: float
    lengths: dict[str, int]
    truncated_fraction: float
    empty_fraction: float
    exact_duplicates: int
    near_duplicates: int
    looping_fraction: float
    # Of all runs of 8 tokens, those that occurred before in the same answer.
    repeated_8grams: float
    # Mean of -log p under the distribution, in nats a token, over sampled rows whose log-probabilities are known.
    entropy_nats: dict[str, float]
    without_logp: int
    # Of the first answers, by the code of the language (ISO 639-1).
    languages: dict[str, float]


class _Counts:
    """Sums over the rows seen so far."""

    def __init__(self) -> None:
        self.rows = self.tokens = self.prompt_tokens = self.cut = self.empty = self.looping = self.without_logp = 0
        self.repeated = self.runs = self.exact = self.near = 0
        self.lengths: Counter[int] = Counter()
        self.nats: defaultdict[float, float] = defaultdict(float)
        self.sampled: Counter[float] = Counter()
        self.languages: Counter[str] = Counter()
        self._answers, self._runs = Hashes(), Hashes()

    def add(self, row: Completion, decoding: Decoding, tokenizer: PreTrainedTokenizerFast) -> None:
        ended, found = int(row.tokens[-1]) in decoding.eos, repeats(row.tokens)
        self.rows += 1
        self.tokens += len(row.tokens)
        self.prompt_tokens += len(row.prompt)
        self.cut += not ended
        self.empty += ended and len(row.tokens) == 1
        self.looping += loops(row.tokens)
        self.repeated, self.runs = self.repeated + found.repeated, self.runs + found.ngrams
        self.lengths[1 << (len(row.tokens) - 1).bit_length()] += 1
        self._entropy(row)
        if self.rows <= ROWS_LOOKED_AT:
            self._duplicates(row)
        if self.rows <= ROWS_DECODED:
            self.languages[language(str(tokenizer.decode(row.tokens, skip_special_tokens=True)))] += 1

    def _entropy(self, row: Completion) -> None:
        self.without_logp += not len(row.logp)
        if not row.sampling.greedy and len(row.logp):
            self.nats[row.sampling.temperature] -= float(row.logp.sum(dtype=np.float64))
            self.sampled[row.sampling.temperature] += len(row.logp)

    def _duplicates(self, row: Completion) -> None:
        answer = xxhash.xxh3_64_intdigest(row.tokens.tobytes())
        own = np.unique(runs(row.tokens, NEAR_RUN_TOKENS))
        if answer in self._answers:
            self.exact += 1
        elif len(own) and self._runs.known(own).mean() >= NEAR_FRACTION:
            self.near += 1
        self._answers.add([answer])
        self._runs.add(own.tolist())


def quality(
    shards: Iterable[Sequence[Completion]],
    decoding: Decoding,
    tokenizer: PreTrainedTokenizerFast,
    asked: int,
    refused: Counter[str],
    left_out: Counter[str],
) -> Quality:
    """The report on all rows; CorpusError where there is none, or where they leave nothing, or all, to train on."""
    counts = _Counts()
    for shard in shards:
        for row in shard:
            counts.add(row, decoding, tokenizer)
    fraction = counts.tokens / max(counts.tokens + counts.prompt_tokens, 1)
    if not 0 < fraction < 1:
        raise CorpusError(
            f"{counts.rows} rows with {counts.tokens} tokens of answers, {counts.prompt_tokens} of prompts; "
            f"refused: {dict(refused)}; prompts left out: {dict(left_out)}\n  wanted: some of each\n"
            f"  do: check the prompts, the engine and the fields of the rows"
        )
    told, rows = counts.languages.total(), counts.rows
    return Quality(
        asked=asked,
        written=rows,
        refused=dict(refused),
        prompts_left_out=dict(left_out),
        tokens=counts.tokens,
        trained_fraction=fraction,
        lengths={f"<= {length}": counts.lengths[length] for length in sorted(counts.lengths)},
        truncated_fraction=counts.cut / rows,
        empty_fraction=counts.empty / rows,
        exact_duplicates=counts.exact,
        near_duplicates=counts.near,
        looping_fraction=counts.looping / rows,
        repeated_8grams=counts.repeated / max(counts.runs, 1),
        entropy_nats={f"{t:g}": counts.nats[t] / counts.sampled[t] for t in sorted(counts.sampled)},
        without_logp=counts.without_logp,
        languages={name: count / told for name, count in counts.languages.most_common(5)},
    )


def without_loops(shard: Shard) -> Shard:
    """A shard without the answers that loop, which are counted."""
    kept = [row for row in shard.rows if not loops(row.tokens)]
    refused = shard.refused + Counter({LOOP: len(shard.rows) - len(kept)})
    return Shard(kept, refused)


def language(text: str) -> str:
    """The most likely language of a text, by its ISO 639-1 code; a program is in that of its names and comments."""
    if sum(map(str.isalpha, text)) < FEWEST_LETTERS:
        return UNTOLD
    code: str = py3langid.classify(text)[0]
    return code
