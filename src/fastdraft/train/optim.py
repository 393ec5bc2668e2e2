"""Optimizers of a phase: Muon for the hidden matrices and AdamW for the rest, or AdamW for all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdraft.recipe import TrainPart
from fastdraft.train.parallel import gather_matrices

OptimizerSet = dict[str, torch.optim.Optimizer]


def build(model: nn.Module, part: TrainPart) -> OptimizerSet:
    """The optimizers by name, each at its peak learning rate.

    Muon orthogonalises the update of a matrix (Jordan et al. 2024); embeddings, output layer, norms and biases are not
    such maps between hidden states and stay with AdamW.
    """
    hidden, outer, small = _groups(model)
    if part.optimizer == "adamw":
        hidden, outer = [], hidden + outer
    groups = [{"params": outer, "weight_decay": part.weight_decay}, {"params": small, "weight_decay": 0.0}]
    # Fused, one pass over weights, gradients and both moments: a quarter of the time on a CPU (0005-training-speed.md).
    adamw = torch.optim.AdamW(groups, lr=part.learning_rate, betas=(0.9, 0.95), eps=1e-10, fused=True)
    found: OptimizerSet = {"adamw": adamw}
    if hidden:
        found["muon"] = torch.optim.Muon(hidden, lr=part.muon_learning_rate, weight_decay=part.weight_decay)
        found["muon"].register_step_pre_hook(gather_matrices)
    return found


def peaks(part: TrainPart) -> dict[str, float]:
    """The peak learning rate of each optimizer."""
    return {"adamw": part.learning_rate, "muon": part.muon_learning_rate}


def _groups(model: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """(matrices between hidden states, embedding and output matrices, vectors)"""
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    output = model.get_output_embeddings()  # type: ignore[operator]
    embeddings |= {id(p) for p in output.parameters()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    hidden: list[Tensor] = [p for p in parameters if p.ndim == 2 and id(p) not in embeddings]
    outer: list[Tensor] = [p for p in parameters if p.ndim >= 2 and id(p) in embeddings]
    matrices = {id(p) for p in hidden + outer}
    small: list[Tensor] = [p for p in parameters if id(p) not in matrices]
    return hidden, outer, small
