"""The next batch is drawn while this one is trained on, so that no step waits for Python or for a disk."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

from fastdraft.data.document import WHOLE, Portion
from fastdraft.data.order import Batch, Mixture


class Drawn(NamedTuple):
    """A batch on its way: what was asked for, and the batch with the mixture's position behind it."""

    sequences: int
    portion: Portion
    batch: Future[tuple[Batch, list[int]]]


class Ahead:
    """A mixture one batch ahead of those it has handed out: the same batches, and the same `position` after each.

    An error of the next batch is raised where that batch is asked for.
    """

    def __init__(self, mixture: Mixture) -> None:
        self.names = mixture.names
        self._mixture, self._position = mixture, list(mixture.position)
        self._thread = ThreadPoolExecutor(1, "next batch")
        self._next: Drawn | None = None

    @property
    def labels_per_row(self) -> float:
        """The mixture's."""
        return self._mixture.labels_per_row

    @property
    def position(self) -> list[int]:
        """The rows of each source among the batches handed out."""
        return list(self._position)

    @position.setter
    def position(self, position: Sequence[int]) -> None:
        self._forget()
        self._position = list(position)

    def next_batch(self, sequences: int, portion: Portion = WHOLE) -> Batch:
        """As the mixture's; where another size is asked for than the time before, this batch is drawn now."""
        if self._next is None or (self._next.sequences, self._next.portion) != (sequences, portion):
            self._forget()
            self._mixture.position = self.position
            self._next = self._draw(sequences, portion)
        batch, self._position = self._next.batch.result()
        self._next = self._draw(sequences, portion)
        return batch

    def _draw(self, sequences: int, portion: Portion) -> Drawn:
        def draw() -> tuple[Batch, list[int]]:
            batch = self._mixture.next_batch(sequences, portion)
            return batch, list(self._mixture.position)

        return Drawn(sequences, portion, self._thread.submit(draw))

    def _forget(self) -> None:
        """Nothing is on its way afterwards."""
        if self._next is not None:
            self._next.batch.exception()
            self._next = None


Stream: TypeAlias = Mixture | Ahead
