"""The order of training rows: mixed by weight, every token once per epoch of its source, resumable to the row.

The order is a function of (seed, source, epoch) alone and not of the number of processes: a process takes its portion
of the sequences out of each batch.

Dimensions: B sequences, T tokens of a sequence, K tokens of which a distribution is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fastdraft.data.document import WHOLE, Portion
from fastdraft.data.permutation import Order, permutation
from fastdraft.data.shards import Shards
from fastdraft.system.errors import ShardError

IGNORED = -100


class Place(NamedTuple):
    """Where a sequence comes from: the row of a source; in shards, row i begins at token i x sequence_tokens."""

    source: str
    row: int


class Record(NamedTuple):
    """What the target said of the labels when it wrote them; NaN where nobody knows. Of a row, without B.

    logp_BT: log p of each label under the distribution it was sampled from, at temperature_BT (0 is greedy; 1 where
    unknown). top_ids_BTK, top_logp_BTK: the most likely tokens and their log-probabilities at temperature 1; K is 0
    where none were kept.
    """

    logp_BT: Tensor
    temperature_BT: Tensor
    top_ids_BTK: Tensor
    top_logp_BTK: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> Record:
        """The same of every tensor."""
        return Record(*map(change, self))


def unknown(tokens: int, known_tokens: int) -> Record:
    """The record of a row that the target did not write."""
    nowhere_T, top_TK = torch.full((tokens,), torch.nan), torch.full((tokens, known_tokens), torch.nan)
    return Record(nowhere_T, torch.ones(tokens), torch.zeros(top_TK.shape, dtype=torch.long), top_TK)


@dataclass(frozen=True)
class Batch:
    """inputs_BT, labels_BT: token ids; a label of -100 is not trained on. `places` are those of all processes.

    `record` is there where a source of the mixture has records.
    """

    inputs_BT: Tensor
    labels_BT: Tensor
    places: tuple[Place, ...] = ()
    record: Record | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same of every tensor."""
        record = None if self.record is None else self.record.each(change)
        return Batch(change(self.inputs_BT), change(self.labels_BT), self.places, record)

    def split(self, sequences: int) -> list[Batch]:
        """Micro-batches of so many sequences; the last may be smaller."""
        places = [slice(start, start + sequences) for start in range(0, len(self.inputs_BT), sequences)]
        return [self.each(itemgetter(place)) for place in places]


class Rows(Protocol):
    """Training rows of one source, all of one length; `labels` tokens of them are trained on in an epoch."""

    rows: int
    labels: int

    def row(self, index: int) -> tuple[Tensor, Tensor]:
        """inputs_T, labels_T"""


@runtime_checkable
class RecordedRows(Rows, Protocol):
    """Rows that the target wrote, with what it said of them; the distribution of `known_tokens` tokens at each
    place.
    """

    known_tokens: int

    def record(self, index: int) -> Record:
        """What is known of a row's labels, NaN where a label is IGNORED."""


class ShardRows:
    """Shards cut into sequences: the i-th has inputs [iT, iT + T) and as labels the tokens one further on.

    So every token but the very first is a label exactly once; the last sequence may be shorter and is padded.
    """

    def __init__(self, shards: Shards, sequence_tokens: int) -> None:
        self._shards, self._length = shards, sequence_tokens
        self.labels = max(shards.tokens - 1, 0)
        self.rows = -(-self.labels // sequence_tokens)

    def row(self, index: int) -> tuple[Tensor, Tensor]:
        """inputs_T, labels_T"""
        start = index * self._length
        window = torch.from_numpy(self._shards[start : start + self._length + 1])
        if len(window) == self._length + 1:
            return window[:-1], window[1:]
        inputs_T, labels_T = torch.zeros(self._length, dtype=torch.long), torch.full((self._length,), IGNORED)
        inputs_T[: len(window) - 1], labels_T[: len(window) - 1] = window[:-1], window[1:]
        return inputs_T, labels_T


class Mixture:
    """An endless stream of batches; `position`, the rows drawn of each source so far, is all its state."""

    def __init__(self, sources: dict[str, Rows], weights: dict[str, float], seed: int) -> None:
        self.names = sorted(weights)
        self.position = [0] * len(self.names)
        self._rows = [sources[name] for name in self.names]
        self._weights = np.array([weights[name] for name in self.names]) / sum(weights.values())
        self._seed = seed
        self._orders: dict[int, tuple[int, Order]] = {}
        known = [source.known_tokens for source in self._rows if isinstance(source, RecordedRows)]
        self._known_tokens = max(known, default=None)

    @property
    def labels_per_row(self) -> float:
        """How many tokens of a row are trained on, in the mean over the mixture."""
        fraction = [source.labels / source.rows for source in self._rows]
        return float(self._weights @ np.array(fraction))

    def next_batch(self, sequences: int, portion: Portion = WHOLE) -> Batch:
        """A portion of the next sequences of the stream, which moves on by all of them.

        All portions are of one length: the short ones end in a row without labels.
        """
        places = tuple(self._next_place() for _ in range(sequences))
        mine = places[portion.rank :: portion.of]
        rows = [self._source(place).row(place.row) for place in mine]
        if missing := len(mine) * portion.of < sequences:
            inputs_T, labels_T = self._source(places[0]).row(places[0].row)
            rows.append((inputs_T, torch.full_like(labels_T, IGNORED)))
        inputs_BT, labels_BT = (torch.stack(tensors) for tensors in zip(*rows, strict=True))
        return Batch(inputs_BT, labels_BT, places, self._records(mine, missing, inputs_BT.shape[1]))

    def _records(self, places: Sequence[Place], missing: bool, tokens: int) -> Record | None:
        """What is known of these rows, and nothing of one more where one is `missing`; None where no source knows."""
        if self._known_tokens is None:
            return None
        nothing = unknown(tokens, self._known_tokens)
        sources = [self._source(place) for place in places]
        found = [
            source.record(place.row) if isinstance(source, RecordedRows) else nothing
            for source, place in zip(sources, places, strict=True)
        ]
        return Record(*map(torch.stack, zip(*[*found, *[nothing] * missing], strict=True)))

    def _source(self, place: Place) -> Rows:
        return self._rows[self.names.index(place.source)]

    def _next_place(self) -> Place:
        # The source that lags furthest behind its share goes next: shares hold at every moment, without a generator.
        lag = self._weights * (sum(self.position) + 1) - np.array(self.position)
        source = int(lag.argmax())
        if not self._rows[source].rows:
            raise ShardError(
                f"the source `{self.names[source]}` holds no row to train on: a row is two tokens at least\n"
                f"  do: give it more documents, or leave it out of `mix`"
            )
        epoch, place = divmod(self.position[source], self._rows[source].rows)
        self.position[source] += 1
        return Place(self.names[source], int(self._order(source, epoch)[place]))

    def _order(self, source: int, epoch: int) -> Order:
        """The epoch's permutation of a source's rows; one epoch is kept at a time."""
        kept = self._orders.get(source)
        if kept is None or kept[0] != epoch:
            kept = epoch, permutation(self._rows[source].rows, [self._seed, source, epoch])
            self._orders[source] = kept
        return kept[1]
