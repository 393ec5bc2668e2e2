"""Completions as training rows: the draft learns what the target wrote, never the prompt.

Dimensions: T tokens of a row, K tokens of a stored law.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastdraft.corpus.order import IGNORED, Record, unknown
from fastdraft.errors import CorpusError
from fastdraft.synthesize.completions import Completion


class CompletionRows:
    """One row per completion, all of T tokens; `cut` counts the completions of which the end did not fit.

    A completion whose prompt fills a row is left out, with a warning: one of many recorded ones is no reason to stop.
    CorpusError where that leaves none.
    """

    def __init__(self, completions: Sequence[Completion], sequence_tokens: int) -> None:
        fitting = [row for row in completions if len(row.prompt) <= sequence_tokens]
        if len(fitting) < len(completions):
            longest = max(len(row.prompt) for row in completions)
            found = (
                f"a prompt of {longest} tokens leaves no place for its completion in a sequence of {sequence_tokens}"
            )
            if not fitting:
                raise CorpusError(f"{found}\n  do: raise `align.sequence_tokens` or lower `synthesize.prompt_tokens`")
            left_out = len(completions) - len(fitting)
            warnings.warn(f"{found}: {left_out} of {len(completions)} completions are left out", stacklevel=2)
        completions = self._completions = fitting
        self._length, self.rows = sequence_tokens, len(fitting)
        self.labels = sum(min(len(row.tokens), sequence_tokens - len(row.prompt) + 1) for row in completions)
        self.cut = sum(len(row.prompt) + len(row.tokens) > sequence_tokens + 1 for row in completions)

    def row(self, index: int) -> tuple[Tensor, Tensor]:
        """inputs_T, labels_T; the labels of prompt and padding are IGNORED."""
        completion = self._completions[index]
        text = torch.cat([torch.from_numpy(completion.prompt), torch.from_numpy(completion.tokens)])
        inputs, labels = text[:-1][: self._length], text[1:][: self._length]
        inputs_T, labels_T = torch.zeros(self._length, dtype=torch.long), torch.full((self._length,), IGNORED)
        inputs_T[: len(inputs)], labels_T[: len(labels)] = inputs, labels
        labels_T[: len(completion.prompt) - 1] = IGNORED
        return inputs_T, labels_T


class RecordedCompletions(CompletionRows):
    """The same rows with what the target said of them when it wrote them; `known` rows have any of it."""

    def __init__(self, completions: Sequence[Completion], sequence_tokens: int) -> None:
        super().__init__(completions, sequence_tokens)
        self.known_tokens = max((row.top.known_tokens for row in self._completions if row.top), default=0)
        self.known = sum(len(row.logp) > 0 for row in self._completions)

    def record(self, index: int) -> Record:
        """What is known of a row's labels, NaN where a label is IGNORED."""
        completion, found = self._completions[index], unknown(self._length, self.known_tokens)
        start = len(completion.prompt) - 1
        place = slice(start, min(start + len(completion.tokens), self._length))
        count = place.stop - start
        if len(completion.logp):
            found.logp_BT[place] = torch.from_numpy(completion.logp[:count])
        found.temperature_BT[place] = completion.law.temperature
        if completion.top is not None and completion.top.known_tokens == self.known_tokens:
            found.top_ids_BTK[place] = torch.from_numpy(completion.top.ids[:count].astype(np.int64))
            found.top_logp_BTK[place] = torch.from_numpy(completion.top.logp[:count].astype(np.float32))
        return found
