"""On-policy training: the draft continues some sequences itself, and learns the target's distribution on its own text.

The sampled tokens depend only on the sequences of a step (train/sampling_rng.py) and the weights.

Dimensions: B sequences, T tokens of a sequence, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastdraft.data.order import IGNORED, Batch
from fastdraft.maths.sampling import draw_tokens
from fastdraft.models.pretrained import cache_name
from fastdraft.train.sampling_rng import uniform_draws


def continue_on_policy(model: PreTrainedModel, batch: Batch, fraction: float) -> Batch:
    """The batch in which about this fraction of the sequences continue their prompt with samples of the draft.

    The temperature is 1. The prompt reaches up to the first trained token, but is at least a quarter of the sequence,
    so that a text without a prompt has one. Which positions are trained on does not change.
    """
    choice_B, coin_BT = uniform_draws(batch)
    chosen_B = choice_B < fraction
    if not chosen_B.any():
        return batch
    trained_BT, tokens = batch.labels_BT != IGNORED, batch.inputs_BT.shape[1]
    prompt_B = (trained_BT.int().argmax(1) + 1).clamp(min=tokens // 4)
    text_BT = torch.cat([batch.inputs_BT, batch.labels_BT[:, -1:]], 1)
    text_BT[chosen_B] = _generate(model, text_BT[chosen_B], prompt_B[chosen_B], coin_BT[chosen_B])
    generated_BT = chosen_B[:, None] & (torch.arange(tokens, device=chosen_B.device) >= prompt_B[:, None] - 1)
    labels_BT = text_BT[:, 1:].where(generated_BT & trained_BT, batch.labels_BT)
    return replace(batch, inputs_BT=text_BT[:, :-1], labels_BT=labels_BT)


@torch.no_grad()
def _generate(model: PreTrainedModel, text_BT: Tensor, prompt_B: Tensor, coin_BT: Tensor) -> Tensor:
    """(B,T) the first prompt_B tokens of each text, followed by samples of the draft."""
    training = model.training
    model.eval()  # with activation checkpointing, a model in training mode keeps no cache
    text_BT, start, cache, name = text_BT.clone(), int(prompt_B.min()), None, cache_name(model)
    inputs_BT = text_BT[:, :start]
    for position in range(start, text_BT.shape[1]):
        output = model(input_ids=inputs_BT, use_cache=True, logits_to_keep=1, **{name: cache})
        sampled_B = draw_tokens(output.logits[:, -1].float().softmax(-1), coin_BT[:, position])
        text_BT[:, position] = text_BT[:, position].where(prompt_B > position, sampled_B)
        inputs_BT, cache = text_BT[:, position : position + 1], output[name]
    model.train(training)
    return text_BT
