"""The quality report of a run's completions, `quality.json`: one pass, one shard at a time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import py3langid
import xxhash
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedTokenizerFast

from fastdraft.synthesize.completions import Completion
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_interface import Shard
from fastdraft.synthesize.key_set import HashSet
from fastdraft.synthesize.leaks import ngram_hashes
from fastdraft.synthesize.repetition import loops, repeats
from fastdraft.system.errors import CorpusError

# A near duplicate: at least half of its 8-grams occurred in earlier answers.
NEAR_NGRAM, NEAR_FRACTION = 8, 0.5
# Only the first rows are checked for near duplicates and languages: the memory and time for them grow with each row.
DUPLICATE_ROWS = 100_000
LANGUAGE_ROWS = 2_000
MIN_LETTERS = 20
UNKNOWN_LANGUAGE = "too short to tell"
LOOPING = "answers that loop: more than a quarter of their runs of 8 tokens occurred before"


class Quality(BaseModel):
    """The quality report. Fractions are of the rows written, unless stated otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    asked: int
    written: int
    refused: dict[str, int]
    prompts_left_out: dict[str, int]
    tokens: int
    # The draft is trained on this fraction of all tokens of prompts and answers.
    trained_fraction: float
    lengths: dict[str, int]
    truncated_fraction: float
    empty_fraction: float
    exact_duplicates: int
    near_duplicates: int
    looping_fraction: float
    # The fraction of all 8-grams that occurred earlier in the same answer.
    repeated_8grams: float
    # By temperature: mean -log p in nats per token, over sampled rows with known log-probabilities.
    entropy_nats: dict[str, float]
    without_logp: int
    # The fraction of the first answers, by ISO 639-1 code.
    languages: dict[str, float]


class _Counts:
    """Sums over the rows so far."""

    def __init__(self) -> None:
        self.rows = self.tokens = self.prompt_tokens = self.truncated = self.empty = self.looping = 0
        self.repeated_ngrams = self.ngrams = self.exact_duplicates = self.near_duplicates = self.without_logp = 0
        self.lengths: Counter[int] = Counter()
        self.nats: defaultdict[float, float] = defaultdict(float)
        self.sampled_tokens: Counter[float] = Counter()
        self.languages: Counter[str] = Counter()
        self._answers, self._ngrams = HashSet(), HashSet()

    def add(self, row: Completion, decoding: DecodingParams, tokenizer: PreTrainedTokenizerFast) -> None:
        ended, ngrams = int(row.tokens[-1]) in decoding.eos, repeats(row.tokens)
        self.rows += 1
        self.tokens += len(row.tokens)
        self.prompt_tokens += len(row.prompt)
        self.truncated += not ended
        self.empty += ended and len(row.tokens) == 1
        self.looping += loops(row.tokens)
        self.repeated_ngrams += ngrams.repeated
        self.ngrams += ngrams.ngrams
        self.lengths[1 << (len(row.tokens) - 1).bit_length()] += 1
        self.without_logp += not len(row.logp)
        if not row.sampling.greedy and len(row.logp):
            self.nats[row.sampling.temperature] -= float(row.logp.sum(dtype=np.float64))
            self.sampled_tokens[row.sampling.temperature] += len(row.logp)
        if self.rows <= DUPLICATE_ROWS:
            self._count_duplicates(row)
        if self.rows <= LANGUAGE_ROWS:
            self.languages[language(str(tokenizer.decode(row.tokens, skip_special_tokens=True)))] += 1

    def _count_duplicates(self, row: Completion) -> None:
        answer = xxhash.xxh3_64_intdigest(row.tokens.tobytes())
        ngrams = np.unique(ngram_hashes(row.tokens, NEAR_NGRAM))
        if answer in self._answers:
            self.exact_duplicates += 1
        elif len(ngrams) and self._ngrams.contains(ngrams).mean() >= NEAR_FRACTION:
            self.near_duplicates += 1
        self._answers.add([answer])
        self._ngrams.add(ngrams.tolist())


def measure_quality(
    shards: Iterable[Sequence[Completion]],
    decoding: DecodingParams,
    tokenizer: PreTrainedTokenizerFast,
    asked: int,
    refused: Counter[str],
    left_out: Counter[str],
) -> Quality:
    """The report on all rows. CorpusError if there is no row, or if none or all of the tokens are trained on."""
    counts = _Counts()
    for shard in shards:
        for row in shard:
            counts.add(row, decoding, tokenizer)
    fraction = counts.tokens / max(counts.tokens + counts.prompt_tokens, 1)
    if not 0 < fraction < 1:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in (refused + left_out).items())
        raise CorpusError(
            f"{counts.rows:,} completions with {counts.tokens:,} tokens after prompts of {counts.prompt_tokens:,} "
            f"tokens; left out: {reasons or 'nothing, because there was no prompt or row'}\n"
            f"  wanted: some tokens of both\n"
            f"  do: correct the prompts, the file and fields in synthesize.recorded, or what runs the target"
        )
    return Quality(
        asked=asked,
        written=counts.rows,
        refused=dict(refused),
        prompts_left_out=dict(left_out),
        tokens=counts.tokens,
        trained_fraction=fraction,
        lengths={f"<= {length}": counts.lengths[length] for length in sorted(counts.lengths)},
        truncated_fraction=counts.truncated / counts.rows,
        empty_fraction=counts.empty / counts.rows,
        exact_duplicates=counts.exact_duplicates,
        near_duplicates=counts.near_duplicates,
        looping_fraction=counts.looping / counts.rows,
        repeated_8grams=counts.repeated_ngrams / max(counts.ngrams, 1),
        entropy_nats={f"{t:g}": counts.nats[t] / counts.sampled_tokens[t] for t in sorted(counts.sampled_tokens)},
        without_logp=counts.without_logp,
        languages={name: n / counts.languages.total() for name, n in counts.languages.most_common(5)},
    )


def without_loops(shard: Shard) -> Shard:
    """A shard without looping answers, which are counted as refused."""
    kept = [row for row in shard.rows if not loops(row.tokens)]
    return Shard(kept, shard.refused + Counter({LOOPING: len(shard.rows) - len(kept)}))


def language(text: str) -> str:
    """The most likely language of a text as ISO 639-1 code; of a program, that of its names and comments."""
    if sum(map(str.isalpha, text)) < MIN_LETTERS:
        return UNKNOWN_LANGUAGE
    code: str = py3langid.classify(text)[0]
    return code
