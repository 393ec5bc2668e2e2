"""Rows that the draft itself continues: it learns from the target what to say where its own words have led it.

What is drawn follows from a step's rows (train/sampling_rng.py) and the weights alone.

Dimensions: B rows, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastdraft.data.order import IGNORED, Batch
from fastdraft.models.target import cache_name
from fastdraft.train.sampling_rng import coins


def continued(model: PreTrainedModel, batch: Batch, fraction: float) -> Batch:
    """About this share of the rows go on with the draft's own words, at temperature 1, behind the prompt.

    The prompt reaches up to the first trained place; a text of a corpus has its first quarter for one. The same places
    are trained on as before.
    """
    chosen_B, coin_BT = coins(batch)
    rows = chosen_B < fraction
    if not rows.any():
        return batch
    trained_BT, tokens = batch.labels_BT != IGNORED, batch.inputs_BT.shape[1]
    given_B = (trained_BT.int().argmax(1) + 1).clamp(min=tokens // 4)
    text_BT = torch.cat([batch.inputs_BT, batch.labels_BT[:, -1:]], 1)
    text_BT[rows] = _written(model, text_BT[rows], given_B[rows], coin_BT[rows])
    behind_BT = rows[:, None] & (torch.arange(tokens, device=rows.device) >= given_B[:, None] - 1)
    labels_BT = text_BT[:, 1:].where(behind_BT & trained_BT, batch.labels_BT)
    return replace(batch, inputs_BT=text_BT[:, :-1], labels_BT=labels_BT)


@torch.no_grad()
def _written(model: PreTrainedModel, text_BT: Tensor, given_B: Tensor, coin_BT: Tensor) -> Tensor:
    """(B,T) the first tokens of each text, so many as are given, and what the draft says behind them."""
    training = model.training
    model.eval()  # a model that computes its layers again in training keeps no cache
    text_BT, first, cache, name = text_BT.clone(), int(given_B.min()), None, cache_name(model)
    fresh_BT = text_BT[:, :first]
    for place in range(first, text_BT.shape[1]):
        output = model(input_ids=fresh_BT, use_cache=True, logits_to_keep=1, **{name: cache})
        drawn_B, cache = _drawn(output.logits[:, -1].float().softmax(-1), coin_BT[:, place]), output[name]
        text_BT[:, place] = text_BT[:, place].where(given_B > place, drawn_B)
        fresh_BT = text_BT[:, place : place + 1]
    model.train(training)
    return text_BT


def _drawn(probs_BV: Tensor, coin_B: Tensor) -> Tensor:
    """(B) the token at which the summed distribution first exceeds the coin."""
    cdf_BV = probs_BV.double().cumsum(-1)
    return (cdf_BV <= coin_B[:, None] * cdf_BV[:, -1:]).sum(-1)
