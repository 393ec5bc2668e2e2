"""Read the next batch in a thread during the training step, so that no step waits for Python or the disk."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

from fastdraft.data.document import WHOLE, Portion
from fastdraft.data.order import Batch, Mixture


class PendingBatch(NamedTuple):
    """The arguments of a `next_batch` call, and its batch with the position of the mixture after it."""

    sequences: int
    portion: Portion
    batch: Future[tuple[Batch, list[int]]]


class PrefetchedMixture:
    """Yields the batches of a mixture, with the same `position` after each, and reads one batch ahead.

    An error while reading a batch is raised when that batch is requested.
    """

    def __init__(self, mixture: Mixture) -> None:
        self.names = mixture.names
        self._mixture, self._position = mixture, list(mixture.position)
        self._thread = ThreadPoolExecutor(1, "next batch")
        self._pending: PendingBatch | None = None

    @property
    def labels_per_sequence(self) -> float:
        """As in `Mixture`."""
        return self._mixture.labels_per_sequence

    @property
    def position(self) -> list[int]:
        """The sequences drawn from each source, without the batch that was read ahead."""
        return list(self._position)

    @position.setter
    def position(self, position: Sequence[int]) -> None:
        self._drop_pending()
        self._position = list(position)

    def next_batch(self, sequences: int, portion: Portion = WHOLE) -> Batch:
        """As in `Mixture`; if the arguments differ from those of the last call, the batch is read now."""
        if self._pending is None or (self._pending.sequences, self._pending.portion) != (sequences, portion):
            self._drop_pending()
            self._mixture.position = self.position
            self._pending = self._submit(sequences, portion)
        batch, self._position = self._pending.batch.result()
        self._pending = self._submit(sequences, portion)
        return batch

    def _submit(self, sequences: int, portion: Portion) -> PendingBatch:
        def read() -> tuple[Batch, list[int]]:
            batch = self._mixture.next_batch(sequences, portion)
            return batch, list(self._mixture.position)

        return PendingBatch(sequences, portion, self._thread.submit(read))

    def _drop_pending(self) -> None:
        """Wait for the batch that is being read, and discard it with any error."""
        if self._pending is not None:
            self._pending.batch.exception()
            self._pending = None


BatchStream: TypeAlias = Mixture | PrefetchedMixture
