"""Chances that hang on a step's rows alone.

They are the same in other micro-batches, with another number of processes, and behind a checkpoint.

Dimensions: B rows, T tokens of a row.
"""

from __future__ import annotations

import torch
import xxhash
from torch import Tensor

from fastdraft.data.order import Batch


def coins(batch: Batch) -> tuple[Tensor, Tensor]:
    """(B) and (B,T+1) uniform on [0, 1), from each row's own tokens and the step that it is in."""
    step, rows = repr(batch.places).encode(), batch.inputs_BT.cpu().numpy()
    dice = [torch.Generator().manual_seed(xxhash.xxh32_intdigest(step + row.tobytes())) for row in rows]
    found = [torch.rand(rows.shape[1] + 2, generator=die, dtype=torch.float64) for die in dice]
    coin_BT = torch.stack(found).to(batch.inputs_BT.device)
    return coin_BT[:, 0], coin_BT[:, 1:]
