"""The draft, its output layer and its loss as one module: what a training step differentiates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastdraft.config import TrainPart
from fastdraft.data.order import IGNORED, Batch
from fastdraft.train.attention import blockwise_attention
from fastdraft.train.block_loss import BlockLengthLoss
from fastdraft.train.head import ClosedFormLoss, on_scaled_logits, summed_loss
from fastdraft.train.objectives import Objective
from fastdraft.train.on_policy import continue_on_policy
from fastdraft.train.sampled_softmax import SampledSoftmax, renumbered, sample_rows


class Learner(nn.Module):
    """A draft whose forward returns its loss. `dtype` is fp32, or bf16 by autocast.

    It is one module so that DDP and FSDP2 see every use of a weight: the fused loss uses the output layer, which may be
    tied to the embedding, outside the draft's own forward.
    """

    def __init__(self, model: PreTrainedModel, part: TrainPart, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self._part, self._dtype = model, part, dtype
        if part.activation_checkpointing:
            # transformers 5.5 has only the second name; newer ones deprecate it and 6.0 removes it.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        compiled = torch.compile(model.base_model, dynamic=False) if part.compile else model.base_model
        # By `training`. In a dict, because a module as an attribute would register its weights under a second name.
        self._bodies: dict[bool, Callable[..., Any]] = {True: compiled, False: model.base_model}

    def forward(self, batch: Batch, objective: Objective) -> Tensor:
        """() the sum of the losses of a batch's trained tokens."""
        device, part = batch.inputs_BT.device, self._part
        with nullcontext() if self._dtype == torch.float32 else torch.autocast(device.type, self._dtype):
            if self.training and part.on_policy:
                batch = continue_on_policy(self.model, batch, part.on_policy)
            sample, vocab_rows = None, self.model.config.get_text_config().vocab_size
            if self.training and part.sampled_softmax:
                sample = sample_rows(batch, vocab_rows, part.sampled_softmax)
            loss = objective(batch if sample is None else renumbered(batch, sample, vocab_rows))
            with self._attention(device):
                output = self._bodies[self.training](input_ids=batch.inputs_BT, use_cache=False)
        hidden_NE = output.last_hidden_state.flatten(0, 1).to(self._dtype)
        weight_VE = self.model.get_output_embeddings().weight
        if isinstance(loss, BlockLengthLoss):
            loss = loss.first_pass(hidden_NE, weight_VE, self.model.config, part.head_chunk_tokens)
        if sample is not None:
            assert isinstance(loss, ClosedFormLoss), "the schema allows sampled_softmax for these alone"
            loss, weight_VE = SampledSoftmax(loss, sample), weight_VE[sample.rows_R]
        loss = on_scaled_logits(loss, self.model.config)
        labelled_M = (batch.labels_BT.flatten() != IGNORED).nonzero()[:, 0]
        return summed_loss(hidden_NE, weight_VE, loss, part.head_chunk_tokens, part.compile, labelled_M)

    def _attention(self, device: torch.device) -> AbstractContextManager[None]:
        """Blockwise attention for bf16 on a CPU.

        Not with torch.compile or activation checkpointing: they run the model's code again outside this context.
        """
        part = self._part
        if device.type != "cpu" or self._dtype != torch.bfloat16 or part.compile or part.activation_checkpointing:
            return nullcontext()
        return blockwise_attention(self.model.config)
