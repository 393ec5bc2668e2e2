"""Completions as training rows: the draft learns what the target wrote, never the prompt.

Dimensions: T tokens of a row, K tokens of a offline distribution.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fastdraft.data.order import IGNORED, Record, unknown
from fastdraft.synthesize.completion_file import Index, OnDisk
from fastdraft.synthesize.completions import Completion
from fastdraft.system.errors import CorpusError


class CompletionRows:
    """One row per completion, all of T tokens; `cut` counts the completions of which the end did not fit.

    They come a shard at a time, and are read from a file in `folder` when asked for. A completion whose prompt fills a
    row is left out, with a warning: one of many recorded ones is no reason to stop. CorpusError where that leaves none.
    """

    SAID: ClassVar[bool] = False

    def __init__(self, shards: Iterable[Sequence[Completion]], sequence_tokens: int, folder: Path) -> None:
        self._completions = OnDisk(shards, folder, self.SAID)
        self._fitting, self._length = _fitting(self._completions.index, sequence_tokens), sequence_tokens
        index = self._completions.index[self._fitting]
        self.rows = len(index)
        self.labels = int(np.minimum(index["tokens"], sequence_tokens - index["prompt"] + 1).sum())
        self.cut = int((index["prompt"] + index["tokens"] > sequence_tokens + 1).sum())

    def row(self, index: int) -> tuple[Tensor, Tensor]:
        """inputs_T, labels_T; the labels of prompt and padding are IGNORED."""
        row = self._fitting[index]
        text = torch.from_numpy(self._completions.text(row).astype(np.int64))
        inputs, labels = text[:-1][: self._length], text[1:][: self._length]
        inputs_T, labels_T = torch.zeros(self._length, dtype=torch.long), torch.full((self._length,), IGNORED)
        inputs_T[: len(inputs)], labels_T[: len(labels)] = inputs, labels
        labels_T[: self._completions.place(row).prompt - 1] = IGNORED
        return inputs_T, labels_T


class RecordedCompletions(CompletionRows):
    """The same rows with what the target said of them when it wrote them; `known` rows have any of it."""

    SAID: ClassVar[bool] = True

    def __init__(self, shards: Iterable[Sequence[Completion]], sequence_tokens: int, folder: Path) -> None:
        super().__init__(shards, sequence_tokens, folder)
        index = self._completions.index[self._fitting]
        self.known_tokens = int(index["known"].max(initial=0))
        self.known = int((index["logp"] > 0).sum())

    def record(self, index: int) -> Record:
        """What is known of a row's labels, NaN where a label is IGNORED."""
        row, found = self._fitting[index], unknown(self._length, self.known_tokens)
        place, (logp, top) = self._completions.place(row), self._completions.said(row)
        labels = slice(place.prompt - 1, min(place.prompt - 1 + place.tokens, self._length))
        count = labels.stop - labels.start
        if place.logp:
            found.logp_BT[labels] = torch.from_numpy(logp[:count].copy())
        found.temperature_BT[labels] = place.temperature
        if self.known_tokens and place.known == self.known_tokens:
            found.top_ids_BTK[labels] = torch.from_numpy(top.ids[:count].astype(np.int64))
            found.top_logp_BTK[labels] = torch.from_numpy(top.logp[:count].astype(np.float32))
        return found


def _fitting(index: Index, sequence_tokens: int) -> Index:
    """The places of the completions that a row has room for; CorpusError where there are others alone."""
    fitting = np.flatnonzero(index["prompt"] <= sequence_tokens)
    if left_out := len(index) - len(fitting):
        longest = int(index["prompt"].max())
        found = f"a prompt of {longest} tokens leaves no place for its completion in a sequence of {sequence_tokens}"
        if not len(fitting):
            raise CorpusError(f"{found}\n  do: raise `align.sequence_tokens` or lower `synthesize.max_prompt_tokens`")
        warnings.warn(f"{found}: {left_out} of {len(index)} completions are left out", stacklevel=4)
    return fitting
