"""Which layers of a donor stay: the one whose absence hurts least goes, and all that are left are measured again.

Measured, not guessed from the similarity of a layer's input and output: of the five layers of a demo target (17M
tokens) the first costs 6.9 nats, the second .9, the fourth .5; once that one and the third are gone, the second 1.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from fastdraft.data.order import IGNORED, Batch
from fastdraft.system.progress import Bar, log_line
from fastdraft.train.head import on_finished_logits, summed_loss
from fastdraft.train.objectives import cross_entropy

HEAD_CHUNK_TOKENS = 1024
# Sequences in one forward of the measurement.
FORWARD_SEQUENCES = 8


def layers_that_stay(model: PreTrainedModel, count: int, batch: Batch) -> tuple[int, ...]:
    """`count` of the model's layers, in order: greedily, the loss on the batch without each is measured at every turn.

    n layers down to m cost (n (n + 1) - m (m + 1)) / 2 forwards of the batch.
    """
    kept = tuple(range(len(layer_stack(model))))
    if len(kept) <= count:
        return kept
    with Bar("init", sum(range(count + 1, len(kept) + 1)), "measurements") as bar:
        while len(kept) > count:
            nats = {}
            for layer in kept:
                nats[layer] = loss_with(model, [other for other in kept if other != layer], batch)
                bar.advance(1)
            gone = min(nats, key=lambda layer: nats[layer])
            kept = tuple(layer for layer in kept if layer != gone)
            log_line(
                f"init: without layer {gone} {nats[gone]:.3f} nats, without any other up to {max(nats.values()):.3f}"
            )
    return kept


def loss_with(model: PreTrainedModel, kept: Sequence[int], batch: Batch) -> float:
    """Nats per token of the batch with these layers alone."""
    total = torch.zeros((), device=model.device)
    with torch.no_grad(), only(model, kept):
        for start in range(0, len(batch.inputs_BT), FORWARD_SEQUENCES):
            place = slice(start, start + FORWARD_SEQUENCES)
            part = Batch(batch.inputs_BT[place].to(model.device), batch.labels_BT[place].to(model.device))
            hidden_NE = model.base_model(input_ids=part.inputs_BT, use_cache=False).last_hidden_state.flatten(0, 1)
            loss_of = on_finished_logits(cross_entropy(part), model.config)
            total += summed_loss(hidden_NE, model.get_output_embeddings().weight, loss_of, HEAD_CHUNK_TOKENS)
    return float(total) / int((batch.labels_BT != IGNORED).sum())


@contextmanager
def only(model: PreTrainedModel, kept: Sequence[int]) -> Iterator[None]:
    """The model with these of its layers, in this order; afterwards with all of them again."""
    stack = layer_stack(model)
    layers = list(stack)
    _fill(stack, [layers[layer] for layer in kept])
    try:
        yield
    finally:
        _fill(stack, layers)


def keep(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Leave out all other layers for good."""
    stack = layer_stack(model)
    _fill(stack, [stack[layer] for layer in kept])
    model.config.num_hidden_layers = len(kept)


def layer_stack(model: PreTrainedModel) -> nn.ModuleList:
    """The list of the model's layers: the families name it differently."""
    count = model.config.num_hidden_layers
    found = [m for m in model.base_model.children() if isinstance(m, nn.ModuleList) and len(m) == count]
    assert len(found) == 1, f"a `{model.config.model_type}` keeps its layers in one list"
    return found[0]


def _fill(stack: nn.ModuleList, layers: list[nn.Module]) -> None:
    stack._modules = {str(place): layer for place, layer in enumerate(layers)}
