"""Sampled softmax: the loss of a step over some rows of the output layer (Jean et al., arXiv:1412.2007).

The rows are those of the batch's own tokens (labels, and stored tokens of the teacher) and a uniform sample of all
others. Each sampled row counts for its share of the others: its exponential is multiplied by others / samples, so that
the expected normaliser is that of the whole vocabulary. A draft is mostly output layer: of 7.1M parameters at a
vocabulary of 49,152, 6.3M are.

Dimensions: N tokens of a chunk, V vocabulary, R rows in the loss.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
import xxhash
from torch import Tensor

from fastdraft.data.order import IGNORED, Batch
from fastdraft.train.head import ClosedFormLoss


class RowSample(NamedTuple):
    """Rows of the output layer. `log_weight_R` is added to their logits: 0 for the batch's own tokens."""

    rows_R: Tensor
    log_weight_R: Tensor


def sample_rows(batch: Batch, vocab_rows: int, samples: int) -> RowSample:
    """The rows of the batch's own tokens and `samples` others, in the order of the vocabulary.

    The draw is seeded with the places and labels of the batch. All rows if there are not more than that.
    """
    labels, device = batch.labels_BT, batch.labels_BT.device
    own_V = torch.zeros(vocab_rows, dtype=torch.bool, device=device)
    own_V[labels[labels != IGNORED]] = True
    if batch.teacher is not None:
        own_V[batch.teacher.top_ids_BTK[~batch.teacher.top_logp_BTK.isnan()]] = True
    others = (~own_V).nonzero()[:, 0].cpu()
    seed = xxhash.xxh32_intdigest(repr(batch.places).encode() + labels.cpu().numpy().tobytes())
    drawn = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[:samples]].to(device)
    log_weight_V = torch.zeros(vocab_rows, device=device)
    log_weight_V[drawn] = math.log(len(others) / max(len(drawn), 1))
    own_V[drawn] = True
    rows_R = own_V.nonzero()[:, 0]
    return RowSample(rows_R, log_weight_V[rows_R])


def renumbered(batch: Batch, sample: RowSample, vocab_rows: int) -> Batch:
    """The batch with the ids of labels and stored tokens replaced by their index among the sample's rows."""
    index_V = torch.zeros(vocab_rows, dtype=torch.long, device=sample.rows_R.device)
    index_V[sample.rows_R] = torch.arange(len(sample.rows_R), device=sample.rows_R.device)
    labels, teacher = batch.labels_BT, batch.teacher
    return replace(
        batch,
        labels_BT=torch.where(labels == IGNORED, IGNORED, index_V[labels.clamp(min=0)]),
        teacher=None if teacher is None else teacher._replace(top_ids_BTK=index_V[teacher.top_ids_BTK]),
    )


class SampledSoftmax(ClosedFormLoss):
    """A loss in closed form, of a renumbered batch, on logits of the sample's rows."""

    def __init__(self, loss: ClosedFormLoss, sample: RowSample) -> None:
        self._loss, self._log_weight_R = loss, sample.log_weight_R

    def __call__(self, logits_NV: Tensor, positions: Tensor) -> Tensor:
        return self._loss(logits_NV + self._log_weight_R, positions)

    def gradient_in_place(self, logits_NV: Tensor, positions: Tensor, compiled: bool) -> Tensor:
        logits_NV += self._log_weight_R
        return self._loss.gradient_in_place(logits_NV, positions, compiled)
