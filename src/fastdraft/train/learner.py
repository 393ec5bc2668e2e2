"""What a step of training differentiates: a draft, its output layer and its loss as one module."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastdraft.corpus.order import Batch
from fastdraft.recipe import TrainPart
from fastdraft.train.head import on_finished_logits, summed_loss
from fastdraft.train.objectives import Objective


class Learner(nn.Module):
    """A draft whose forward is its loss.

    One module, so that DDP and FSDP2 see every use of a weight: a tied output layer is used outside the draft's own
    forward, by the fused loss.
    """

    def __init__(self, model: PreTrainedModel, part: TrainPart) -> None:
        super().__init__()
        self.model, self._part = model, part
        if part.activation_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        compiled = torch.compile(model.base_model, dynamic=False) if part.compile else model.base_model
        # By whether it trains, in a dict: as an attribute, the compiled body's weights would have a second name.
        self._bodies: dict[bool, Callable[..., Any]] = {True: compiled, False: model.base_model}

    def forward(self, inputs_BT: Tensor, labels_BT: Tensor, objective: Objective) -> Tensor:
        """() the sum of the losses of a batch's trained tokens."""
        with self._precision(inputs_BT.device):
            loss_of = objective(Batch(inputs_BT, labels_BT))
            hidden_NE = self._bodies[self.training](input_ids=inputs_BT, use_cache=False).last_hidden_state.flatten(
                0, 1
            )
        if self._part.precision == "bf16":
            hidden_NE = hidden_NE.to(torch.bfloat16)
        weight_VE = self.model.get_output_embeddings().weight
        loss_of = on_finished_logits(loss_of, self.model.config)
        return summed_loss(hidden_NE, weight_VE, loss_of, self._part.head_chunk_tokens)

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        if self._part.precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)
