"""A model in any engine as the one-pass evaluation calls one: rows in, logits out.

Dimensions: B rows, T tokens of a text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastdraft.data.shards import Tokens

# (T) tokens -> (T,V) float32 logits after each of them
Logits = Callable[[Tokens], Tensor]


class Reader:
    """Row by row, without padding's cost."""

    device = torch.device("cpu")

    def __init__(self, logits: Logits) -> None:
        self._logits = logits

    def __call__(self, input_ids: Tensor, logits_to_keep: int, **_: Any) -> SimpleNamespace:
        rows = [self._logits(row_T.numpy())[-logits_to_keep:] for row_T in input_ids]
        return SimpleNamespace(logits=torch.stack(rows))
