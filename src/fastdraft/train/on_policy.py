"""Rows that the draft itself continues: it learns from the target what to say where its own words have led it.

What is drawn follows from the rows and the weights alone, so that a phase which goes on from a checkpoint, with any
number of processes, draws the same.

Dimensions: B rows, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import xxhash
from torch import Tensor
from transformers import PreTrainedModel

from fastdraft.corpus.order import IGNORED, Batch


def continued(model: PreTrainedModel, batch: Batch, share: float) -> Batch:
    """About this share of the rows go on with the draft's own words, at temperature 1, behind the prompt.

    The prompt reaches up to the first trained place of the row whose prompt is longest, so that none is padded; a text
    of a corpus has its first quarter for one. The same places are trained on as before.
    """
    draws = torch.Generator(batch.inputs_BT.device).manual_seed(_seed(batch))
    rows = torch.rand(len(batch.inputs_BT), generator=draws, device=draws.device) < share
    if not rows.any():
        return batch
    trained_BT = batch.labels_BT != IGNORED
    given = max(int(trained_BT[rows].int().argmax(1).max()) + 1, batch.inputs_BT.shape[1] // 4)
    text_BT = _written(model, batch.inputs_BT[rows, :given], batch.inputs_BT.shape[1] + 1, draws)
    inputs_BT, labels_BT = batch.inputs_BT.clone(), batch.labels_BT.clone()
    inputs_BT[rows] = text_BT[:, :-1]
    labels_BT[rows, given - 1 :] = text_BT[:, given:]
    return replace(batch, inputs_BT=inputs_BT, labels_BT=labels_BT.where(trained_BT, IGNORED))


@torch.no_grad()
def _written(model: PreTrainedModel, prompt_BT: Tensor, tokens: int, draws: torch.Generator) -> Tensor:
    """(B,T) the prompts and what the draft says behind them, `tokens` in all."""
    training = model.training
    model.eval()  # a model that computes its layers again in training keeps no cache
    text_BT, fresh_BT, cache = prompt_BT, prompt_BT, None
    while text_BT.shape[1] < tokens:
        output = model(input_ids=fresh_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
        law_BV, cache = output.logits[:, -1].float().softmax(-1), output.past_key_values
        fresh_BT = torch.multinomial(law_BV, 1, generator=draws)
        text_BT = torch.cat([text_BT, fresh_BT], 1)
    model.train(training)
    return text_BT


def _seed(batch: Batch) -> int:
    return xxhash.xxh32_intdigest(batch.inputs_BT.cpu().numpy().tobytes())
