"""The expected number of target forwards as a loss, over whole texts, though the head gives logits chunk by chunk.

The chain of docs/maths.md couples all tokens of a text, so the gradient needs two passes over the head. The first pass
computes log q of every label (N numbers) without a gradient, and the chain is differentiated with respect to them. The
second pass takes the loss sum(slope x log q) with constant slopes, whose gradient is that of the chain (chain rule).
This costs a third more arithmetic in the head. Keeping the logits instead would cost N x vocabulary numbers of memory.

Dimensions: B texts of a batch, T tokens of a sequence, N = B x T, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.configuration_utils import PretrainedConfig

from fastdraft.data.order import Batch, TeacherLogprobs
from fastdraft.maths import divergence
from fastdraft.train.head import ChunkLoss, scale_logits


def teacher_logprobs(batch: Batch) -> TeacherLogprobs:
    """The target's log-probabilities of a batch; recipes with an objective that needs them guarantee them."""
    assert batch.teacher is not None, "the objective needs recorded log-probabilities"
    return batch.teacher


def sampling_temperature(teacher: TeacherLogprobs) -> Tensor:
    """(N) the temperature that each label was sampled at; 1 if greedy, because greedy decoding has no gradient."""
    temperature_N = teacher.temperature_BT.flatten()
    return temperature_N.where(temperature_N > 0, 1.0)


class BlockLengthLoss:
    """`weight` x the expected target forwards over the recorded continuation of each sequence, plus `token_loss`."""

    def __init__(self, batch: Batch, token_loss: ChunkLoss, *, gamma: int, weight: float, decay: float) -> None:
        teacher = teacher_logprobs(batch)
        self._logp_BT, self._known_BT = teacher.logp_BT, ~teacher.logp_BT.isnan()
        self._temperature_N1 = sampling_temperature(teacher)[:, None]
        self._labels_N = batch.labels_BT.flatten().clamp(min=0)
        self._token_loss, self._gamma, self._weight, self._decay = token_loss, gamma, weight, decay

    @torch.no_grad()
    def first_pass(
        self, hidden_NE: Tensor, weight_VE: Tensor, config: PretrainedConfig, chunk_tokens: int
    ) -> ChunkLoss:
        """The loss of a chunk in the second pass, after a first pass over all chunks."""
        logq, weight = [], weight_VE.to(hidden_NE.dtype)
        for positions in torch.arange(len(hidden_NE), device=hidden_NE.device).split(chunk_tokens):
            logits_NV = scale_logits((hidden_NE[positions] @ weight.T).float(), config)
            logq.append(self._logq(logits_NV, positions))
        lengths_B = self._known_BT.sum(1)
        with torch.enable_grad():
            logq_BT = torch.cat(logq).view(self._known_BT.shape).requires_grad_()
            forwards_B = self._forwards(logq_BT, lengths_B)
            (slope_BT,) = torch.autograd.grad(forwards_B.sum(), logq_BT)
        per_token_B1 = (forwards_B.detach() / lengths_B.clamp(min=1))[:, None]
        slope_N, value_N = slope_BT.flatten(), (per_token_B1 * self._known_BT).flatten()

        def chunk_loss(logits_NV: Tensor, positions: Tensor) -> Tensor:
            logq_N = self._logq(logits_NV, positions)
            # The value is constant; the second term is 0 and carries the gradient.
            gradient_term_N = slope_N[positions] * (logq_N - logq_N.detach())
            return self._weight * (value_N[positions] + gradient_term_N).sum() + self._token_loss(logits_NV, positions)

        return chunk_loss

    def _logq(self, logits_NV: Tensor, positions: Tensor) -> Tensor:
        """(N) log q of each label at the temperature of its sequence."""
        return -divergence.cross_entropy(logits_NV / self._temperature_N1[positions], self._labels_N[positions])

    def _forwards(self, logq_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """(B) expected target forwards of each sequence's continuation, which is contiguous."""
        first_B1, tokens = self._known_BT.int().argmax(1, keepdim=True), logq_BT.shape[1]
        positions_BT = (first_B1 + torch.arange(tokens, device=logq_BT.device)).clamp(max=tokens - 1)
        logp_BN, logq_BN = self._logp_BT.nan_to_num().gather(1, positions_BT), logq_BT.gather(1, positions_BT)
        return divergence.block_length(logp_BN, logq_BN, lengths_B, self._gamma, self._decay)
