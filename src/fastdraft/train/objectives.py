"""What a token's loss is: on the token itself, or against the live target's distribution at its place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastdraft.corpus.order import IGNORED, Batch
from fastdraft.maths import divergence
from fastdraft.maths.divergence import DISTRIBUTION_LOSSES, DistributionLoss
from fastdraft.maths.reduction import masked_sum
from fastdraft.train.head import ChunkLoss, finished

# The loss of one batch, ready to be asked chunk by chunk.
Objective = Callable[[Batch], ChunkLoss]


def objective(name: str, target: PreTrainedModel | None) -> Objective:
    """The objective of a phase; all but `cross_entropy` need the target."""
    if name == "cross_entropy":
        return cross_entropy
    assert target is not None, "the stage opens the target for objectives that need it"
    return partial(against_target, DISTRIBUTION_LOSSES[name], target)


def cross_entropy(batch: Batch) -> ChunkLoss:
    """-log q of the label; the paper's objective in every phase."""
    labels_N = batch.labels_BT.flatten()

    def loss_of(logits_NV: Tensor, place: slice) -> Tensor:
        labels = labels_N[place]
        mask = labels != IGNORED
        return masked_sum(divergence.cross_entropy(logits_NV, labels.where(mask, 0)), mask).total

    return loss_of


def against_target(loss: DistributionLoss, target: PreTrainedModel, batch: Batch) -> ChunkLoss:
    """A divergence between the target's law and the draft's, both at temperature 1, at every trained place."""
    mask_N = batch.labels_BT.flatten() != IGNORED
    with torch.no_grad():
        hidden_NE = target.base_model(input_ids=batch.inputs_BT, use_cache=False).last_hidden_state.flatten(0, 1)
    weight_VE = target.get_output_embeddings().weight.to(hidden_NE.dtype)

    def loss_of(logits_NV: Tensor, place: slice) -> Tensor:
        with torch.no_grad():
            logits = finished((hidden_NE[place] @ weight_VE.T).float(), target.config.get_text_config())
            logp_NV = logits.log_softmax(-1)
        loss_N = loss(logp_NV, logits_NV.log_softmax(-1))
        return masked_sum(loss_N, mask_N[place]).total

    return loss_of
