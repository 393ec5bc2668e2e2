"""The output layer and the loss in one: logits exist for a chunk of tokens at a time, never whole.

The loss and its gradient are taken chunk by chunk in the forward pass, so that nothing is computed twice (a
checkpointed chunk computes its logits again) and the memory of the head does not grow with the batch. For 8 192 tokens
and a vocabulary of 128 256 the logits alone would be 4.2 GB in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.configuration_utils import PretrainedConfig

# (chunk's logits_NV, positions of the chunk in the batch) -> (sum of its tokens' losses)
ChunkLoss = Callable[[Tensor, slice], Tensor]


def on_finished_logits(loss_of: ChunkLoss, config: PretrainedConfig) -> ChunkLoss:
    """The same loss, of what the family makes of its logits."""
    return lambda logits_NV, place: loss_of(finished(logits_NV, config), place)


def finished(logits_NV: Tensor, config: PretrainedConfig) -> Tensor:
    """What the family makes of hidden @ weight.T: Granite divides it, Gemma 2 caps it (arXiv:2408.00118)."""
    if divisor := getattr(config, "logits_scaling", None):
        logits_NV = logits_NV / divisor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits_NV = (logits_NV / cap).tanh() * cap
    return logits_NV


def summed_loss(hidden_NE: Tensor, weight_VE: Tensor, loss_of: ChunkLoss, chunk_tokens: int) -> Tensor:
    """() the sum over all tokens of loss_of(hidden @ weight.T), with gradients to hidden and weight.

    The matrix products run in the dtype of `hidden`; the logits reach `loss_of` in float32.
    """
    if not torch.is_grad_enabled():
        weight = weight_VE.to(hidden_NE.dtype)
        chunks = _chunks(len(hidden_NE), chunk_tokens)
        return torch.stack([loss_of((hidden_NE[place] @ weight.T).float(), place) for place in chunks]).sum()
    total: Tensor = _SummedLoss.apply(hidden_NE, weight_VE, loss_of, chunk_tokens)  # type: ignore[no-untyped-call]
    return total


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NE: Tensor, weight_VE: Tensor, loss_of: ChunkLoss, chunk_tokens: int) -> Tensor:
        weight = weight_VE.to(hidden_NE.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden_NE.device)
        grad_hidden_NE = torch.empty_like(hidden_NE)
        grad_weight_VE = torch.zeros_like(weight_VE, dtype=torch.float32)
        for place in _chunks(len(hidden_NE), chunk_tokens):
            hidden = hidden_NE[place]
            loss, grad_logits_NV = _loss_and_gradient(hidden @ weight.T, loss_of, place)
            total += loss
            torch.mm(grad_logits_NV, weight, out=grad_hidden_NE[place])
            grad_weight_VE += grad_logits_NV.T @ hidden
        ctx.save_for_backward(grad_hidden_NE, grad_weight_VE)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_NE, grad_weight_VE = ctx.saved_tensors
        return grad_hidden_NE * grad_outputs[0], grad_weight_VE * grad_outputs[0], None, None


def _chunks(tokens: int, chunk_tokens: int) -> list[slice]:
    return [slice(start, min(start + chunk_tokens, tokens)) for start in range(0, tokens, chunk_tokens)]


def _loss_and_gradient(logits_NV: Tensor, loss_of: ChunkLoss, place: slice) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = logits_NV.detach().requires_grad_()
        loss = loss_of(leaf.float(), place)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient
