"""What a step of training differentiates: a draft, its output layer and its loss as one module."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastdraft.config import TrainPart
from fastdraft.data.order import IGNORED, Batch
from fastdraft.train.attention import by_blocks
from fastdraft.train.block_loss import TwoPass
from fastdraft.train.head import on_finished_logits, summed_loss
from fastdraft.train.objectives import Objective
from fastdraft.train.on_policy import continued


class Learner(nn.Module):
    """A draft whose forward is its loss, computed in a dtype: bf16 by autocast.

    One module, so that DDP and FSDP2 see every use of a weight: a tied output layer is used outside the draft's own
    forward, by the fused loss.
    """

    def __init__(self, model: PreTrainedModel, part: TrainPart, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self._part, self._dtype = model, part, dtype
        if part.activation_checkpointing:
            # Newer transformers warns about the second name, 6.0 removes it; 5.5 has no other.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        compiled = torch.compile(model.base_model, dynamic=False) if part.compile else model.base_model
        # By whether it trains, in a dict: as an attribute, the compiled body's weights would have a second name.
        self._bodies: dict[bool, Callable[..., Any]] = {True: compiled, False: model.base_model}

    def forward(self, batch: Batch, objective: Objective) -> Tensor:
        """() the sum of the losses of a batch's trained tokens."""
        with self._precision(batch.inputs_BT.device):
            if self.training and self._part.on_policy:
                batch = continued(self.model, batch, self._part.on_policy)
            loss_of = objective(batch)
            body = self._bodies[self.training]
            with self._attention(batch.inputs_BT.device):
                hidden_NE = body(input_ids=batch.inputs_BT, use_cache=False).last_hidden_state.flatten(0, 1)
        hidden_NE = hidden_NE.to(self._dtype)
        weight_VE = self.model.get_output_embeddings().weight
        if isinstance(loss_of, TwoPass):
            loss_of = loss_of.settled(hidden_NE, weight_VE, self.model.config, self._part.head_chunk_tokens)
        loss_of = on_finished_logits(loss_of, self.model.config)
        asked_M = (batch.labels_BT.flatten() != IGNORED).nonzero()[:, 0]
        return summed_loss(hidden_NE, weight_VE, loss_of, self._part.head_chunk_tokens, self._part.compile, asked_M)

    def _attention(self, device: torch.device) -> AbstractContextManager[None]:
        """By blocks on a CPU; not where a compiler, or a layer that is computed again, would meet two kinds."""
        part = self._part
        if device.type != "cpu" or self._dtype != torch.bfloat16 or part.compile or part.activation_checkpointing:
            return nullcontext()
        return by_blocks(self.model.config)

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(device.type, self._dtype)
