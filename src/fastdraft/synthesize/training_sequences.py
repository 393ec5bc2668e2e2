"""Completions as training sequences: labels are the completion's tokens, never the prompt's.

Dimensions: T tokens of a sequence, K top tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fastdraft.data.order import IGNORED, TeacherLogprobs, unknown_logprobs
from fastdraft.synthesize.completion_file import CompletionFile, Index
from fastdraft.synthesize.completions import Completion
from fastdraft.system.errors import CorpusError


class CompletionSequences:
    """One sequence of T tokens per completion; `truncated` counts the completions whose end did not fit.

    Sequences are read one at a time from a temporary file in `folder`. Completions whose prompt fills a sequence are
    left out with a warning; CorpusError if none is left.
    """

    WITH_LOGPROBS: ClassVar[bool] = False

    def __init__(self, shards: Iterable[Sequence[Completion]], sequence_tokens: int, folder: Path) -> None:
        self._completions = CompletionFile(shards, folder, self.WITH_LOGPROBS)
        self._fitting, self._length = _fitting(self._completions.index, sequence_tokens), sequence_tokens
        index = self._completions.index[self._fitting]
        self.labels = int(np.minimum(index["tokens"], sequence_tokens - index["prompt_tokens"] + 1).sum())
        self.truncated = int((index["prompt_tokens"] + index["tokens"] > sequence_tokens + 1).sum())

    def __len__(self) -> int:
        return len(self._fitting)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """inputs_T, labels_T; the labels of prompt and padding are IGNORED."""
        row = self._fitting[index]
        text = torch.from_numpy(self._completions.text(row).astype(np.int64))
        inputs, labels = text[:-1][: self._length], text[1:][: self._length]
        inputs_T, labels_T = torch.zeros(self._length, dtype=torch.long), torch.full((self._length,), IGNORED)
        inputs_T[: len(inputs)], labels_T[: len(labels)] = inputs, labels
        labels_T[: self._completions.entry(row).prompt_tokens - 1] = IGNORED
        return inputs_T, labels_T


class TeacherCompletionSequences(CompletionSequences):
    """The same sequences with the target's log-probabilities; `with_logp` counts those that have log p per token."""

    WITH_LOGPROBS: ClassVar[bool] = True

    def __init__(self, shards: Iterable[Sequence[Completion]], sequence_tokens: int, folder: Path) -> None:
        super().__init__(shards, sequence_tokens, folder)
        index = self._completions.index[self._fitting]
        self.known_tokens = int(index["top_logprobs"].max(initial=0))
        self.with_logp = int((index["logprobs"] > 0).sum())

    def teacher_logprobs(self, index: int) -> TeacherLogprobs:
        """The log-probabilities of a sequence, NaN where a label is IGNORED."""
        row, teacher = self._fitting[index], unknown_logprobs(self._length, self.known_tokens)
        entry, (logp, top) = self._completions.entry(row), self._completions.logprobs(row)
        first = entry.prompt_tokens - 1
        labels = slice(first, min(first + entry.tokens, self._length))
        count = labels.stop - labels.start
        if entry.logprobs:
            teacher.logp_BT[labels] = torch.from_numpy(logp[:count].copy())
        teacher.temperature_BT[labels] = entry.temperature
        if self.known_tokens and entry.top_logprobs == self.known_tokens:
            teacher.top_ids_BTK[labels] = torch.from_numpy(top.ids[:count].astype(np.int64))
            teacher.top_logp_BTK[labels] = torch.from_numpy(top.logp[:count].astype(np.float32))
        return teacher


def _fitting(index: Index, sequence_tokens: int) -> Index:
    """The rows whose prompt leaves room for a label; CorpusError if there are rows, but none of these."""
    fitting = np.flatnonzero(index["prompt_tokens"] <= sequence_tokens)
    if left_out := len(index) - len(fitting):
        longest = int(index["prompt_tokens"].max())
        fault = f"a prompt of {longest} tokens leaves no room for its completion in a sequence of {sequence_tokens}"
        if not len(fitting):
            raise CorpusError(f"{fault}\n  do: raise `align.sequence_tokens` or lower `synthesize.max_prompt_tokens`")
        warnings.warn(f"{fault}: {left_out} of {len(index)} completions are left out", stacklevel=4)
    return fitting
