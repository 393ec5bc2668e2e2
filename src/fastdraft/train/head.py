"""The output layer fused with the loss: logits exist for one chunk of tokens at a time.

The forward pass computes the loss and its gradient chunk by chunk. So nothing is computed twice, as it would be under
activation checkpointing, and the memory of the head does not grow with the batch: for 8 192 tokens and a vocabulary of
128 256 all logits would take 4.2 GB in fp32.

Buffers are allocated once and used by all chunks. The system clears fresh memory page by page: a cast that takes 2 ms
into existing memory took 33 ms into fresh memory (docs/decisions/0005-training-speed.md).

Dimensions: N tokens of a chunk or of a batch, M of them with a label, V vocabulary, E hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.configuration_utils import PretrainedConfig

from fastdraft.data.order import IGNORED
from fastdraft.maths import divergence

# (logits_NV of a chunk, (N) positions of its tokens in the batch) -> () sum of the losses
ChunkLoss = Callable[[Tensor, Tensor], Tensor]
# fp32 logits per CPU thread that stay in the cache. 2 to 4 MB are 17 to 30 % faster than a whole chunk at vocabularies
# of 8 192 to 128 256 (L2 of 1 MB, L3 of 32 MB).
CACHED_BYTES = 1 << 21


class ClosedFormLoss(ABC):
    """The loss of a chunk with a gradient that is known in closed form."""

    @abstractmethod
    def __call__(self, logits_NV: Tensor, positions: Tensor) -> Tensor:
        """() the sum of the losses of a chunk's tokens."""

    @abstractmethod
    def gradient_in_place(self, logits_NV: Tensor, positions: Tensor, compiled: bool) -> Tensor:
        """() the same sum. Overwrites the logits with its gradient."""


class CrossEntropy(ClosedFormLoss):
    """-log q of the label, summed over a chunk. The gradient is softmax(logits) minus 1 at the label."""

    def __init__(self, labels_N: Tensor) -> None:
        self._labels_N = labels_N

    def __call__(self, logits_NV: Tensor, positions: Tensor) -> Tensor:
        labels_N = self._labels_N[positions]
        mask_N = labels_N != IGNORED
        return divergence.masked_sum(divergence.cross_entropy(logits_NV, labels_N.where(mask_N, 0)), mask_N)

    def gradient_in_place(self, logits_NV: Tensor, positions: Tensor, compiled: bool) -> Tensor:
        labels_N = self._labels_N[positions]
        if logits_NV.device.type != "cpu":
            return (_compiled_cross_entropy() if compiled else cross_entropy_in_place)(logits_NV, labels_N)
        rows = max(1, torch.get_num_threads() * CACHED_BYTES // (4 * logits_NV.shape[1]))
        pieces = zip(logits_NV.split(rows), labels_N.split(rows), strict=True)
        return torch.stack([_cross_entropy_in_cache(logits, labels) for logits, labels in pieces]).sum()


def cross_entropy_in_place(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """() the summed cross entropy of a chunk. Overwrites the logits with its gradient. torch.compile fuses it.

    The fused kernel reads and writes bf16 alone. Unfused it moves about 50 bytes per logit: by calculation 0.4 us per
    token on an H200 at a vocabulary of 32 064, as long as all matrix products of the Phi-3 50M draft.
    """
    mask_N1 = (labels_N != IGNORED)[:, None]
    label_N1 = labels_N[:, None].where(mask_N1, 0)
    logq_NV = logits_NV.float().log_softmax(1)
    loss = -logq_NV.gather(1, label_N1).where(mask_N1, 0).sum()
    one_hot_NV = torch.arange(logits_NV.shape[1], device=logits_NV.device) == label_N1
    logits_NV.copy_((logq_NV.exp() - one_hot_NV.float()) * mask_N1)
    return loss


@cache
def _compiled_cross_entropy() -> Callable[[Tensor, Tensor], Tensor]:
    return torch.compile(cross_entropy_in_place)  # dynamic shapes: chunks of completions differ in length


def _cross_entropy_in_cache(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """() `cross_entropy_in_place` for a few tokens on a CPU: half as many passes, intermediate results in the cache."""
    mask_N1 = (labels_N != IGNORED)[:, None]
    label_N1 = labels_N[:, None].where(mask_N1, 0)
    scores_NV = logits_NV.float()
    # log q(label) from the probability of the most likely token, at least 1/V: that of the label may underflow.
    logq_N1 = scores_NV.gather(1, label_N1) - scores_NV.amax(1, keepdim=True)
    torch.softmax(scores_NV, 1, out=scores_NV)
    logq_N1 += scores_NV.amax(1, keepdim=True).log_()
    scores_NV.scatter_add_(1, label_N1, scores_NV.new_full(label_N1.shape, -1.0))
    if not mask_N1.all():
        scores_NV.mul_(mask_N1)
    if scores_NV is not logits_NV:  # .float() of fp32 logits is no copy
        logits_NV.copy_(scores_NV)
    return -logq_N1.where(mask_N1, 0).sum()


def on_scaled_logits(loss: ChunkLoss, config: PretrainedConfig) -> ChunkLoss:
    """The loss on the logits of `scale_logits`."""
    if not _divisor(config) and not _softcap(config):
        return loss  # keeps a ClosedFormLoss one
    return lambda logits_NV, positions: loss(scale_logits(logits_NV, config), positions)


def scale_logits(logits_NV: Tensor, config: PretrainedConfig) -> Tensor:
    """The model's logits from hidden @ weight.T: Granite divides them, Gemma 2 caps them (arXiv:2408.00118)."""
    if divisor := _divisor(config):
        logits_NV = logits_NV / divisor
    if cap := _softcap(config):
        logits_NV = (logits_NV / cap).tanh() * cap
    return logits_NV


def _divisor(config: PretrainedConfig) -> float | None:
    return getattr(config, "logits_scaling", None)


def _softcap(config: PretrainedConfig) -> float | None:
    return getattr(config, "final_logit_softcapping", None)


def summed_loss(
    hidden_NE: Tensor,
    weight_VE: Tensor,
    loss: ChunkLoss,
    chunk_tokens: int,
    compiled: bool = False,
    positions_M: Tensor | None = None,
) -> Tensor:
    """() the sum of loss(hidden @ weight.T) over the tokens at these positions (all if None), with gradients.

    Prompts and padding are left out: at a vocabulary of 128 256 and completions of half a sequence, a step that
    included them took 2.6 times as long. The matrix products run in the dtype of `hidden`. Without gradients, and in
    losses without a closed form, the loss gets fp32 logits. `compiled` applies to cross entropy on accelerators.
    """
    if positions_M is None:
        positions_M = torch.arange(len(hidden_NE), device=hidden_NE.device)
    if not torch.is_grad_enabled():
        weight = weight_VE.to(hidden_NE.dtype)
        chunks = positions_M.split(chunk_tokens)
        return torch.stack([loss((hidden_NE[chunk] @ weight.T).float(), chunk) for chunk in chunks]).sum()
    total: Tensor = _SummedLoss.apply(  # type: ignore[no-untyped-call]
        hidden_NE, weight_VE, loss, chunk_tokens, compiled, positions_M
    )
    return total


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: Tensor,
        weight_VE: Tensor,
        loss: ChunkLoss,
        chunk_tokens: int,
        compiled: bool,
        positions_M: Tensor,
    ) -> Tensor:
        weight = weight_VE.to(hidden_NE.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden_NE.device)
        grad_hidden_NE, grad_weight_VE = torch.zeros_like(hidden_NE), torch.zeros_like(weight_VE, dtype=torch.float32)
        logits_buffer_NV = hidden_NE.new_empty(min(chunk_tokens, len(positions_M)), len(weight))
        # Chunks are added in fp32; on a CPU torch has no product of bf16 matrices that accumulates in fp32.
        chunk_buffer_VE = None if weight.dtype == torch.float32 else torch.empty_like(weight)
        for positions in positions_M.split(chunk_tokens):
            hidden = hidden_NE[positions]
            logits_NV = torch.mm(hidden, weight.T, out=logits_buffer_NV[: len(hidden)])
            if isinstance(loss, ClosedFormLoss):
                total += loss.gradient_in_place(logits_NV, positions, compiled)
                grad_logits_NV = logits_NV
            else:
                chunk_loss, grad_logits_NV = loss_and_gradient(loss, logits_NV, positions)
                total += chunk_loss
            grad_hidden_NE[positions] = grad_logits_NV @ weight
            if chunk_buffer_VE is None:
                grad_weight_VE.addmm_(grad_logits_NV.T, hidden)
            else:
                grad_weight_VE += torch.mm(grad_logits_NV.T, hidden, out=chunk_buffer_VE)
        ctx.save_for_backward(grad_hidden_NE, grad_weight_VE)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        # In place: the graph is backpropagated once, and autograd raises an error on a second time.
        grad_hidden_NE, grad_weight_VE = ctx.saved_tensors
        return grad_hidden_NE.mul_(grad_outputs[0]), grad_weight_VE.mul_(grad_outputs[0]), *(None,) * 4


def loss_and_gradient(loss: ChunkLoss, logits_NV: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """() the loss of a chunk, and (N,V) its gradient by autograd."""
    with torch.enable_grad():
        leaf = logits_NV.detach().requires_grad_()
        value = loss(leaf.float(), positions)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient
