"""Choose the layers of a donor to keep: remove the layer without which the loss is lowest, measure again, and repeat.

The loss is measured, because the cost of a layer depends on which others are left. Example: five layers of a demo
target (17M tokens). Without the first layer the loss rises by 6.9 nats, without the second by 0.9, without the fourth
by 0.5. When the third and fourth are gone, removing the second costs 1.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from fastdraft.data.order import IGNORED, Batch
from fastdraft.system.progress import Bar, log_line
from fastdraft.train.head import on_scaled_logits, summed_loss
from fastdraft.train.objectives import cross_entropy

HEAD_CHUNK_TOKENS = 1024
FORWARD_SEQUENCES = 8


def choose_layers(model: PreTrainedModel, count: int, batch: Batch) -> tuple[int, ...]:
    """The indices of `count` layers to keep, chosen greedily by the loss on the batch.

    From n layers to m this takes (n (n + 1) - m (m + 1)) / 2 forward passes of the batch.
    """
    kept = tuple(range(len(layer_stack(model))))
    if len(kept) <= count:
        return kept
    with Bar("init", sum(range(count + 1, len(kept) + 1)), "measurements") as bar:
        while len(kept) > count:
            loss_without = {}
            for layer in kept:
                loss_without[layer] = loss_with_layers(model, [i for i in kept if i != layer], batch)
                bar.advance(1)
            removed = min(loss_without, key=lambda layer: loss_without[layer])
            kept = tuple(layer for layer in kept if layer != removed)
            log_line(
                f"init: without layer {removed} {loss_without[removed]:.3f} nats, "
                f"without any other up to {max(loss_without.values()):.3f}"
            )
    return kept


def loss_with_layers(model: PreTrainedModel, layers: Sequence[int], batch: Batch) -> float:
    """Cross entropy in nats per label of the batch with only these layers."""
    total = torch.zeros((), device=model.device)
    with torch.no_grad(), only_layers(model, layers):
        for part in batch.split(FORWARD_SEQUENCES):
            part = part.map_tensors(lambda tensor: tensor.to(model.device))
            hidden_NE = model.base_model(input_ids=part.inputs_BT, use_cache=False).last_hidden_state.flatten(0, 1)
            chunk_loss = on_scaled_logits(cross_entropy(part), model.config)
            total += summed_loss(hidden_NE, model.get_output_embeddings().weight, chunk_loss, HEAD_CHUNK_TOKENS)
    return float(total) / int((batch.labels_BT != IGNORED).sum())


@contextmanager
def only_layers(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[None]:
    """Within the context the model has only these layers, in this order."""
    stack = layer_stack(model)
    all_layers = list(stack)
    _set_layers(stack, [all_layers[layer] for layer in layers])
    try:
        yield
    finally:
        _set_layers(stack, all_layers)


def keep_layers(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Remove all other layers from the model and its configuration."""
    stack = layer_stack(model)
    _set_layers(stack, [stack[layer] for layer in layers])
    model.config.num_hidden_layers = len(layers)


def layer_stack(model: PreTrainedModel) -> nn.ModuleList:
    """The list of the model's layers, whose name depends on the family."""
    count = model.config.num_hidden_layers
    stacks = [m for m in model.base_model.children() if isinstance(m, nn.ModuleList) and len(m) == count]
    assert len(stacks) == 1, f"a `{model.config.model_type}` keeps its layers in one list"
    return stacks[0]


def _set_layers(stack: nn.ModuleList, layers: list[nn.Module]) -> None:
    stack._modules = {str(index): layer for index, layer in enumerate(layers)}
