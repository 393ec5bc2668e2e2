"""The expected number of target forwards as a loss: of whole texts, where the head gives logits a chunk at a time.

The chain of docs/maths.md couples all tokens of a text, so its gradient is taken in two passes. The first finds log q
of every label, N numbers, without a gradient. The chain is differentiated on them once; the second pass takes the sum
of slope x log q, the slopes being constants, whose gradient is that of the chain exactly (chain rule). It costs a third
of the head's arithmetic once more, and no memory: kept logits would be the batch's size times the vocabulary.

Dimensions: B texts of a batch, T tokens of a row, N = B x T, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.configuration_utils import PretrainedConfig

from fastdraft.data.order import Batch
from fastdraft.maths import divergence
from fastdraft.train.head import ChunkLoss, finished


class Blocks:
    """Expected target forwards over the recorded continuation of each row, with a weight."""

    def __init__(self, batch: Batch, gamma: int, weight: float, decay: float = 1.0) -> None:
        assert batch.record is not None, "the recipe has rows with records where an objective wants them"
        self._logp_BT, temperature_BT = batch.record.logp_BT, batch.record.temperature_BT
        self._temperature_N1 = temperature_BT.where(temperature_BT > 0, 1.0).flatten()[:, None]
        self._known_BT = ~self._logp_BT.isnan()
        self._labels_N = batch.labels_BT.flatten().clamp(min=0)
        self._gamma, self._weight, self._decay = gamma, weight, decay

    def beside(self, other: ChunkLoss) -> TwoPass:
        """These forwards and another loss."""
        return TwoPass(self.logq, lambda logq_N: self._settled(logq_N, other))

    def logq(self, logits_NV: Tensor, place: Tensor) -> Tensor:
        """(N) log q of each label at the temperature of its row."""
        return -divergence.cross_entropy(logits_NV / self._temperature_N1[place], self._labels_N[place])

    def forwards(self, logq_BT: Tensor) -> Tensor:
        """(B) expected target forwards of each row's continuation."""
        lengths_B = self._known_BT.sum(1)
        first_B1 = self._known_BT.int().argmax(1, keepdim=True)  # a continuation stands in one piece
        places_BT = (first_B1 + torch.arange(logq_BT.shape[1], device=logq_BT.device)).clamp(max=logq_BT.shape[1] - 1)
        logp_BN, logq_BN = self._logp_BT.nan_to_num().gather(1, places_BT), logq_BT.gather(1, places_BT)
        return divergence.block_length(logp_BN, logq_BN, lengths_B, self._gamma, self._decay)

    def _settled(self, logq_N: Tensor, other: ChunkLoss) -> ChunkLoss:
        """The chunks' loss, once log q of all labels is known."""
        with torch.enable_grad():
            leaf_BT = logq_N.view(self._known_BT.shape).requires_grad_()
            forwards_B = self.forwards(leaf_BT)
            (slope_BT,) = torch.autograd.grad(forwards_B.sum(), leaf_BT)
        share_B1 = (forwards_B.detach() / self._known_BT.sum(1).clamp(min=1))[:, None]
        slope_N, value_N = slope_BT.flatten(), (share_B1 * self._known_BT).flatten()

        def loss_of(logits_NV: Tensor, place: Tensor) -> Tensor:
            logq = self.logq(logits_NV, place)
            # The second term is 0: it has the gradient alone. What is multiplied by a slope of 0 is finite.
            moved_N = slope_N[place] * (logq - logq.detach())
            return self._weight * (value_N[place] + moved_N).sum() + other(logits_NV, place)

        return loss_of


class TwoPass:
    """A loss that must see a number of every token of a batch, `first`, before it can be asked chunk by chunk."""

    def __init__(self, first: Callable[[Tensor, Tensor], Tensor], settle: Callable[[Tensor], ChunkLoss]) -> None:
        self._first, self._settle = first, settle

    @torch.no_grad()
    def settled(self, hidden_NE: Tensor, weight_VE: Tensor, config: PretrainedConfig, chunk_tokens: int) -> ChunkLoss:
        """The loss of chunks, after a pass over all of them."""
        found, weight = [], weight_VE.to(hidden_NE.dtype)
        for place in torch.arange(len(hidden_NE), device=hidden_NE.device).split(chunk_tokens):
            found.append(self._first(finished((hidden_NE[place] @ weight.T).float(), config), place))
        return self._settle(torch.cat(found))
