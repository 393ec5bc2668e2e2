"""Lets the one-pass evaluation read a model in any engine: it calls a module with ids and takes its logits.

Dimensions: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastdraft.data.shards import Tokens

# (T) token ids -> (T,V) float32 logits after each of them
Logits = Callable[[Tokens], Tensor]


class Reader:
    """A stand-in for a PreTrainedModel; reads one sequence at a time, so that padding costs nothing."""

    device = torch.device("cpu")

    def __init__(self, logits: Logits) -> None:
        self._logits = logits

    def __call__(self, input_ids: Tensor, logits_to_keep: int, **_: Any) -> SimpleNamespace:
        kept_TV = [self._logits(ids_T.numpy())[-logits_to_keep:] for ids_T in input_ids]
        return SimpleNamespace(logits=torch.stack(kept_TV))
