"""Training sequences in order: sources mixed by weight, every token once per epoch, resumable at any sequence.

The order depends only on seed, source and epoch, not on the number of processes: each process takes its portion of
the sequences of a batch.

Dimensions: B sequences, T tokens of a sequence, K most likely tokens of the teacher at a position.
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
from fastdraft.data.permutation import Permutation, permutation
from fastdraft.data.shards import Shards
from fastdraft.system.errors import ShardError

IGNORED = -100


class Place(NamedTuple):
    """Where a sequence comes from: its source and its index there.

    The names are fixed: `train.sampling_rng` seeds its generators with the repr of a batch's places.
    """

    source: str
    row: int


class TeacherLogprobs(NamedTuple):
    """Log-probabilities that the target gave when it wrote the labels, NaN where unknown; without B for one sequence.

    logp_BT: of each label under the distribution that it was sampled from.
    temperature_BT: of that distribution; 0 is greedy, 1 if unknown.
    top_ids_BTK, top_logp_BTK: the most likely tokens and their log-probabilities at temperature 1; K may be 0.
    """

    logp_BT: Tensor
    temperature_BT: Tensor
    top_ids_BTK: Tensor
    top_logp_BTK: Tensor

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> TeacherLogprobs:
        """`change` applied to every tensor."""
        return TeacherLogprobs(*map(change, self))


def unknown_logprobs(tokens: int, known_tokens: int) -> TeacherLogprobs:
    """For one sequence that the target did not write."""
    top_TK = torch.full((tokens, known_tokens), torch.nan)
    ids_TK = torch.zeros((tokens, known_tokens), dtype=torch.long)
    return TeacherLogprobs(torch.full((tokens,), torch.nan), torch.ones(tokens), ids_TK, top_TK)


@dataclass(frozen=True)
class Batch:
    """inputs_BT, labels_BT: token ids; a label of -100 is not trained on. `places` are those of all processes.

    `teacher` is None unless a source of the mixture has log-probabilities of the target.
    """

    inputs_BT: Tensor
    labels_BT: Tensor
    places: tuple[Place, ...] = ()
    teacher: TeacherLogprobs | None = None

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """`change` applied to every tensor."""
        teacher = None if self.teacher is None else self.teacher.map_tensors(change)
        return Batch(change(self.inputs_BT), change(self.labels_BT), self.places, teacher)

    def split(self, sequences: int) -> list[Batch]:
        """Micro-batches of `sequences` sequences; the last may be smaller."""
        slices = [slice(start, start + sequences) for start in range(0, len(self.inputs_BT), sequences)]
        return [self.map_tensors(itemgetter(piece)) for piece in slices]


class Sequences(Protocol):
    """Training sequences of one source, all of one length; `labels` tokens of them are trained on per epoch."""

    labels: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        """inputs_T, labels_T"""


@runtime_checkable
class TeacherSequences(Sequences, Protocol):
    """Sequences that the target wrote, with its `known_tokens` most likely tokens at each position."""

    known_tokens: int

    def teacher_logprobs(self, index: int) -> TeacherLogprobs:
        """The log-probabilities of a sequence, NaN where a label is IGNORED."""


class ShardSequences:
    """Shards cut into sequences: the i-th has the inputs [iT, iT + T) and as labels the tokens shifted by one.

    Every token but the very first is a label exactly once. The last sequence may be shorter and is padded.
    """

    def __init__(self, shards: Shards, sequence_tokens: int) -> None:
        self._shards, self._length = shards, sequence_tokens
        self.labels = max(shards.tokens - 1, 0)

    def __len__(self) -> int:
        return -(-self.labels // self._length)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """inputs_T, labels_T"""
        start = index * self._length
        window = torch.from_numpy(self._shards[start : start + self._length + 1])
        if len(window) == self._length + 1:
            return window[:-1], window[1:]
        inputs_T, labels_T = torch.zeros(self._length, dtype=torch.long), torch.full((self._length,), IGNORED)
        inputs_T[: len(window) - 1], labels_T[: len(window) - 1] = window[:-1], window[1:]
        return inputs_T, labels_T


class Mixture:
    """An endless stream of batches. Its whole state is `position`, the sequences drawn so far from each source."""

    def __init__(self, sources: dict[str, Sequences], weights: dict[str, float], seed: int) -> None:
        self.names = sorted(weights)
        self.position = [0] * len(self.names)
        self._sources = [sources[name] for name in self.names]
        self._weights = np.array([weights[name] for name in self.names]) / sum(weights.values())
        self._seed = seed
        self._orders: dict[int, tuple[int, Permutation]] = {}
        known_tokens = [source.known_tokens for source in self._sources if isinstance(source, TeacherSequences)]
        self._known_tokens = max(known_tokens, default=None)

    @property
    def labels_per_sequence(self) -> float:
        """The mean number of tokens of a sequence that are trained on."""
        per_sequence = [source.labels / len(source) for source in self._sources]
        return float(self._weights @ np.array(per_sequence))

    def next_batch(self, sequences: int, portion: Portion = WHOLE) -> Batch:
        """A portion of the next `sequences` sequences; the stream advances by all of them.

        All portions have the same length: shorter ones are filled up with one sequence without labels.
        """
        places = tuple(self._next_place() for _ in range(sequences))
        own = places[portion.rank :: portion.world_size]
        pairs = [self._source(place)[place.row] for place in own]
        if needs_filler := len(own) * portion.world_size < sequences:
            inputs_T, labels_T = self._source(places[0])[places[0].row]
            pairs.append((inputs_T, torch.full_like(labels_T, IGNORED)))
        inputs_BT, labels_BT = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
        return Batch(inputs_BT, labels_BT, places, self._teacher(own, needs_filler, inputs_BT.shape[1]))

    def _teacher(self, places: Sequence[Place], needs_filler: bool, tokens: int) -> TeacherLogprobs | None:
        if self._known_tokens is None:
            return None
        unknown = unknown_logprobs(tokens, self._known_tokens)
        sources = [self._source(place) for place in places]
        logprobs = [
            source.teacher_logprobs(place.row) if isinstance(source, TeacherSequences) else unknown
            for source, place in zip(sources, places, strict=True)
        ]
        return TeacherLogprobs(*map(torch.stack, zip(*[*logprobs, *[unknown] * needs_filler], strict=True)))

    def _source(self, place: Place) -> Sequences:
        return self._sources[self.names.index(place.source)]

    def _next_place(self) -> Place:
        # The source that is furthest below its weight comes next, so the weights hold at every moment without chance.
        deficit = self._weights * (sum(self.position) + 1) - np.array(self.position)
        source = int(deficit.argmax())
        count = len(self._sources[source])
        if not count:
            raise ShardError(
                f"the source `{self.names[source]}` has no training sequence: a sequence needs at least two tokens\n"
                f"  do: give it more documents, or leave it out of `mix`"
            )
        epoch, index = divmod(self.position[source], count)
        self.position[source] += 1
        cached = self._orders.get(source)
        if cached is None or cached[0] != epoch:
            cached = epoch, permutation(count, [self._seed, source, epoch])
            self._orders[source] = cached
        return Place(self.names[source], int(cached[1][index]))
