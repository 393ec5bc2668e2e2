"""The output layer and the loss in one: logits exist for a chunk of tokens at a time, never whole.

The loss and its gradient are taken chunk by chunk in the forward pass, so that nothing is computed twice (a
checkpointed chunk computes its logits again) and the memory of the head does not grow with the batch. For 8 192 tokens
and a vocabulary of 128 256 the logits alone would be 4.2 GB in fp32.

What is written once a chunk has one place for all of them: fresh memory of such a size comes from the system page by
page, and a cast that takes 2 ms in memory that is there took 33 ms (docs/decisions/0005-training-speed.md).
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

# (chunk's logits_NV, (N) positions of its tokens in the batch) -> (sum of their losses)
ChunkLoss = Callable[[Tensor, Tensor], Tensor]
# Logits in fp32 that each thread of a CPU has at one time: what stays in its cache. 2 to 4 MB are 17 to 30 % faster
# than a whole chunk at vocabularies of 8 192 to 128 256 (L2 of 1 MB, L3 of 32 MB).
CACHED_BYTES = 1 << 21


class KnownGradient(ABC):
    """A chunk's loss whose gradient is known in closed form."""

    @abstractmethod
    def __call__(self, logits_NV: Tensor, place: Tensor) -> Tensor:
        """() the sum of the losses of a chunk's tokens."""

    @abstractmethod
    def graded(self, logits_NV: Tensor, place: Tensor, compiled: bool) -> Tensor:
        """() the loss; the logits are replaced by its gradient."""


class CrossEntropy(KnownGradient):
    """-log q of the label, the sum over a chunk: a loss whose gradient is known, the distribution less one at the
    label.
    """

    def __init__(self, labels_N: Tensor) -> None:
        self._labels_N = labels_N

    def __call__(self, logits_NV: Tensor, place: Tensor) -> Tensor:
        labels_N = self._labels_N[place]
        mask_N = labels_N != IGNORED
        return divergence.masked_sum(divergence.cross_entropy(logits_NV, labels_N.where(mask_N, 0)), mask_N)

    def graded(self, logits_NV: Tensor, place: Tensor, compiled: bool) -> Tensor:
        """() the same, and the logits are replaced by its gradient; in one compiled kernel, on an accelerator."""
        labels_N = self._labels_N[place]
        if logits_NV.device.type != "cpu":
            return (_fused() if compiled else loss_with_gradient)(logits_NV, labels_N)
        rows = max(1, torch.get_num_threads() * CACHED_BYTES // (4 * logits_NV.shape[1]))
        pieces = zip(logits_NV.split(rows), labels_N.split(rows), strict=True)
        return torch.stack([_graded_in_cache(logits, labels) for logits, labels in pieces]).sum()


def loss_with_gradient(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """() the summed cross entropy of a chunk, whose logits become its gradient; written so that a compiler fuses it.

    It then reads and writes bf16 alone. Step by step it moves some 50 bytes for each logit: by calculation 0.4 us a
    token on an H200 at a vocabulary of 32 064, as long as all matrix products of the Phi-3 50M draft take.
    """
    mask_N1 = (labels_N != IGNORED)[:, None]
    label_N1 = labels_N[:, None].where(mask_N1, 0)
    logq_NV = logits_NV.float().log_softmax(1)
    nats = -logq_NV.gather(1, label_N1).where(mask_N1, 0).sum()
    at_label_NV = torch.arange(logits_NV.shape[1], device=logits_NV.device) == label_N1
    logits_NV.copy_((logq_NV.exp() - at_label_NV.float()) * mask_N1)
    return nats


@cache
def _fused() -> Callable[[Tensor, Tensor], Tensor]:
    return torch.compile(loss_with_gradient)  # chunks of answers differ in length


def _graded_in_cache(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """() the same for a few tokens on a CPU, whose intermediate results stay in its cache, in half as many passes."""
    mask_N1 = (labels_N != IGNORED)[:, None]
    label_N1 = labels_N[:, None].where(mask_N1, 0)
    scores_NV = logits_NV.float()
    # log q(label) by way of the most likely token, whose probability is at least 1/V: the label's own may be 0 in fp32.
    logq_N1 = scores_NV.gather(1, label_N1) - scores_NV.amax(1, keepdim=True)
    torch.softmax(scores_NV, 1, out=scores_NV)
    logq_N1 += scores_NV.amax(1, keepdim=True).log_()
    scores_NV.scatter_add_(1, label_N1, scores_NV.new_full(label_N1.shape, -1.0))
    if not mask_N1.all():
        scores_NV.mul_(mask_N1)
    if scores_NV is not logits_NV:  # fp32 logits are their own copy
        logits_NV.copy_(scores_NV)
    return -logq_N1.where(mask_N1, 0).sum()


def on_finished_logits(loss_of: ChunkLoss, config: PretrainedConfig) -> ChunkLoss:
    """The same loss, of what the family makes of its logits."""
    if not _divisor(config) and not _cap(config):
        return loss_of
    return lambda logits_NV, place: loss_of(finished(logits_NV, config), place)


def finished(logits_NV: Tensor, config: PretrainedConfig) -> Tensor:
    """What the family makes of hidden @ weight.T: Granite divides it, Gemma 2 caps it (arXiv:2408.00118)."""
    if divisor := _divisor(config):
        logits_NV = logits_NV / divisor
    if cap := _cap(config):
        logits_NV = (logits_NV / cap).tanh() * cap
    return logits_NV


def _divisor(config: PretrainedConfig) -> float | None:
    return getattr(config, "logits_scaling", None)


def _cap(config: PretrainedConfig) -> float | None:
    return getattr(config, "final_logit_softcapping", None)


def summed_loss(
    hidden_NE: Tensor,
    weight_VE: Tensor,
    loss_of: ChunkLoss,
    chunk_tokens: int,
    compiled: bool = False,
    asked_M: Tensor | None = None,
) -> Tensor:
    """() the sum of loss_of(hidden @ weight.T) over the tokens at these positions, otherwise over all.

    With gradients to hidden and weight. Prompts and padding are not asked: with answers of half a row's length, at a
    vocabulary of 128 256, a step took 2.6 times as long with them. The matrix products run in the dtype of `hidden`;
    the logits reach `loss_of` in float32. `compiled` is for cross entropy on accelerators.
    """
    if asked_M is None:
        asked_M = torch.arange(len(hidden_NE), device=hidden_NE.device)
    if not torch.is_grad_enabled():
        weight = weight_VE.to(hidden_NE.dtype)
        places = asked_M.split(chunk_tokens)
        return torch.stack([loss_of((hidden_NE[place] @ weight.T).float(), place) for place in places]).sum()
    given = hidden_NE, weight_VE, loss_of, chunk_tokens, compiled, asked_M
    total: Tensor = _SummedLoss.apply(*given)  # type: ignore[no-untyped-call]
    return total


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: Tensor,
        weight_VE: Tensor,
        loss_of: ChunkLoss,
        chunk_tokens: int,
        compiled: bool,
        asked_M: Tensor,
    ) -> Tensor:
        weight = weight_VE.to(hidden_NE.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden_NE.device)
        grad_hidden_NE, grad_weight_VE = torch.zeros_like(hidden_NE), torch.zeros_like(weight_VE, dtype=torch.float32)
        logits_NV = hidden_NE.new_empty(min(chunk_tokens, len(asked_M)), len(weight))
        # Chunks are added in fp32; torch has no product of bf16 matrices that adds to fp32 on a CPU.
        of_chunk_VE = None if weight.dtype == torch.float32 else torch.empty_like(weight)
        for place in asked_M.split(chunk_tokens):
            hidden = hidden_NE[place]
            logits = torch.mm(hidden, weight.T, out=logits_NV[: len(hidden)])
            loss, grad_logits_NV = _loss_and_gradient(logits, loss_of, place, compiled)
            total += loss
            grad_hidden_NE[place] = grad_logits_NV @ weight
            if of_chunk_VE is None:
                grad_weight_VE.addmm_(grad_logits_NV.T, hidden)
            else:
                grad_weight_VE += torch.mm(grad_logits_NV.T, hidden, out=of_chunk_VE)
        ctx.save_for_backward(grad_hidden_NE, grad_weight_VE)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        # In place: the graph is walked once, and autograd notices where it is not.
        grad_hidden_NE, grad_weight_VE = ctx.saved_tensors
        return grad_hidden_NE.mul_(grad_outputs[0]), grad_weight_VE.mul_(grad_outputs[0]), *(None,) * 4


def _loss_and_gradient(logits_NV: Tensor, loss_of: ChunkLoss, place: Tensor, compiled: bool) -> tuple[Tensor, Tensor]:
    """() a chunk's loss, and its gradient; the logits may be gone."""
    if isinstance(loss_of, KnownGradient):
        return loss_of.graded(logits_NV, place, compiled), logits_NV
    return by_autograd(loss_of, logits_NV, place)


def by_autograd(loss_of: ChunkLoss, logits_NV: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """() a chunk's loss, and its gradient."""
    with torch.enable_grad():
        leaf = logits_NV.detach().requires_grad_()
        loss = loss_of(leaf.float(), place)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient
