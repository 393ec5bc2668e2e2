"""The order of training rows: mixed by weight, every token once per epoch of its source, resumable to the row.

The order is a function of (seed, source, epoch) alone and not of the number of processes: a process takes its portion
of the sequences out of each batch.

Dimensions: B sequences, T tokens of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fastdraft.corpus.document import WHOLE, Portion
from fastdraft.corpus.permutation import Order, permutation
from fastdraft.corpus.shards import Shards
from fastdraft.errors import ShardError

IGNORED = -100


class Place(NamedTuple):
    """Where a sequence comes from: the row of a source; in shards, row i begins at token i x sequence_tokens."""

    source: str
    row: int


@dataclass(frozen=True)
class Batch:
    """inputs_BT, labels_BT: token ids; a label of -100 is not trained on. `places` are those of all processes."""

    inputs_BT: Tensor
    labels_BT: Tensor
    places: tuple[Place, ...] = ()


class Rows(Protocol):
    """Training rows of one source, all of one length; `labels` tokens of them are trained on in an epoch."""

    rows: int
    labels: int

    def row(self, index: int) -> tuple[Tensor, Tensor]:
        """inputs_T, labels_T"""


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

    @property
    def labels_per_row(self) -> float:
        """How many tokens of a row are trained on, in the mean over the mixture."""
        share = [source.labels / source.rows for source in self._rows]
        return float(self._weights @ np.array(share))

    def next_batch(self, sequences: int, portion: Portion = WHOLE) -> Batch:
        """A portion of the next sequences of the stream, which moves on by all of them.

        All portions are of one length: the short ones end in a row without labels.
        """
        places = tuple(self._next_place() for _ in range(sequences))
        rows = [self._row(place) for place in places[portion.rank :: portion.of]]
        if len(rows) * portion.of < sequences:
            inputs_T, labels_T = self._row(places[0])
            rows.append((inputs_T, torch.full_like(labels_T, IGNORED)))
        return Batch(torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows]), places)

    def _row(self, place: Place) -> tuple[Tensor, Tensor]:
        return self._rows[self.names.index(place.source)].row(place.row)

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
