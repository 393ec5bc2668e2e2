"""The optimizers of a phase: Muon for the hidden matrices and AdamW for the rest, or AdamW for all."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastdraft.config import TrainPart
from fastdraft.train.parallel import gather_matrices

OptimizerSet = dict[str, torch.optim.Optimizer]

# Quintic Newton-Schulz iteration of Jordan et al. 2024: singular values approach 1 in five iterations.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


class Muon(torch.optim.Muon):
    """torch's Muon with the iteration in fp32, for devices that are slow in bf16.

    torch 2.13 always iterates in bf16: on an AVX2 processor a step of the demo draft took 643 ms, in fp32 478 ms.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the loop takes no closures"
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = orthogonal(gradient.lerp(momentum, group["momentum"]), group["eps"])
        rows, columns = weight.shape
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def orthogonal(matrix: Tensor, eps: float) -> Tensor:
    """U V' of the singular value decomposition U S V', approximately: with singular values of .7 to 1.2."""
    a, b, c = COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


def build(model: nn.Module, part: TrainPart, dtype: torch.dtype) -> OptimizerSet:
    """The optimizers by name, at their peak learning rates. `dtype` is the precision of the phase.

    Muon orthogonalises the updates of matrices between hidden states (Jordan et al. 2024). AdamW updates embeddings,
    output layer, norms and biases.
    """
    hidden, embeddings, vectors = _groups(model)
    if part.optimizer == "adamw":
        hidden, embeddings = [], hidden + embeddings
    groups = [{"params": embeddings, "weight_decay": part.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    # Fused: one pass over weights, gradients and moments takes a quarter of the time on a CPU (0005-training-speed.md).
    adamw = torch.optim.AdamW(groups, lr=part.learning_rate, betas=(0.9, 0.95), eps=1e-10, fused=True)
    optimizers: OptimizerSet = {"adamw": adamw}
    if hidden:
        muon = Muon if dtype == torch.float32 else torch.optim.Muon
        optimizers["muon"] = muon(hidden, lr=part.muon_learning_rate, weight_decay=part.weight_decay)
        optimizers["muon"].register_step_pre_hook(gather_matrices)
    return optimizers


def peaks(part: TrainPart) -> dict[str, float]:
    """The peak learning rate of each optimizer."""
    return {"adamw": part.learning_rate, "muon": part.muon_learning_rate}


def _groups(model: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """(matrices between hidden states, embedding and output matrices, vectors)"""
    outer = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    outer.append(model.get_output_embeddings())  # type: ignore[operator]
    outer_ids = {id(p) for module in outer for p in module.parameters()}
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    hidden = [p for p in parameters if p.ndim == 2 and id(p) not in outer_ids]
    embeddings = [p for p in parameters if p.ndim >= 2 and id(p) in outer_ids]
    matrices = {id(p) for p in hidden + embeddings}
    return hidden, embeddings, [p for p in parameters if id(p) not in matrices]
