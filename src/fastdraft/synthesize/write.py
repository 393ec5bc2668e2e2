"""Requests become rows of the store, each once, by whatever engine answers; what no row can be made of is counted.

What is stored is known by key, so a killed run goes on where it stood. Nothing is held in memory but the shard in hand
and 8 bytes for each row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from fastdraft.synthesize.completions import Completion, CompletionStore, Keys, Request, row_key
from fastdraft.system.errors import TargetError
from fastdraft.system.progress import Bar

# What an engine's log-probabilities are: under the distribution sampled from, before temperature, top-k and top-p, or
# not given.
Logp = Literal["processed", "raw", "none"]


class Decoding(NamedTuple):
    """How requests are answered; `end` is the one of `eos` that is put where an engine leaves it out.

    `top_logprobs`: so many most likely tokens are kept for each token of an answer. `vocab_rows`: ids are below it.
    """

    max_new_tokens: int
    eos: frozenset[int]
    seed: int
    target_revision: str
    batch_size: int
    end: int | None = None
    top_logprobs: int = 0
    vocab_rows: int | None = None

    @property
    def shard_prompts(self) -> int:
        """Rows of a shard: what a kill may cost. Of fewer, more places would stand empty at the end of each."""
        return 4 * self.batch_size


class Unusable(Exception):
    """Why no row can be made of an answer."""


class Keyed(NamedTuple):
    """A request and its key."""

    key: str
    request: Request


@dataclass(frozen=True)
class Shard:
    """Rows that an engine has answered, and why others of its requests have none."""

    rows: Sequence[Completion]
    refused: Counter[str] = field(default_factory=Counter)


class Engine(Protocol):
    """One way to run the target."""

    logp: Logp

    def shards(self, requests: Iterable[Keyed], stored: Keys) -> Iterator[Shard]:
        """Answers to all requests that are not stored, in any order, a shard at a time.

        `stored` grows while this runs: what has been given out is in it when the next shard is asked for.
        """


# Rows under their distribution, from rows without: what cannot be scored is counted.
Rescore = Callable[[Sequence[Completion]], Shard]


def keyed(requests: Iterable[Request], decoding: Decoding) -> Iterator[Keyed]:
    """Requests with their keys; ValueError where two have the same."""
    seen = Keys()
    for request in requests:
        key = row_key(request, decoding.max_new_tokens, decoding.seed, decoding.target_revision)
        if key in seen:
            raise ValueError("two requests have one key; wanted another `index` for each sample of one prompt")
        seen.add([key])
        yield Keyed(key, request)


def write(
    engine: Engine, requests: Iterable[Keyed], store: CompletionStore, decoding: Decoding, bar: Bar, rescore: Rescore
) -> Counter[str]:
    """Bring the store to hold every row; why some could not be had, counted.

    TargetError where the first rows ever are nothing but end-of-text.
    """
    stored, refused = store.stored(), Counter[str]()
    for shard in engine.shards(requests, stored):
        scored = rescore(shard.rows)
        refused.update(shard.refused)
        refused.update(scored.refused)
        if scored.rows:
            if not len(stored):
                _refuse_silence(scored.rows, decoding)
            store.write(scored.rows)
            stored.add([row.key for row in scored.rows])
        bar.advance(len(shard.rows) + shard.refused.total())
    return refused


def as_given(rows: Sequence[Completion]) -> Shard:
    """Rows whose log-probabilities are those of their distribution, or which have none: nothing is done."""
    return Shard(rows)


def _refuse_silence(rows: Sequence[Completion], decoding: Decoding) -> None:
    if decoding.max_new_tokens > 1 and all(len(row.tokens) == 1 and row.tokens[0] in decoding.eos for row in rows):
        raise TargetError(
            f"the target answered each of the first {len(rows)} prompts with the end-of-text token alone\n"
            f"  do: check the target's weights and its end-of-text ids {sorted(decoding.eos)}, and how prompts begin"
        )
