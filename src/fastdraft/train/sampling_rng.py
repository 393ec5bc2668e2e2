"""Random numbers that depend only on a sequence's tokens and its step.

So they do not depend on micro-batches, on the number of processes, or on resuming from a checkpoint.

Dimensions: B sequences, T tokens of a sequence.
"""

from __future__ import annotations

import torch
import xxhash
from torch import Tensor

from fastdraft.data.order import Batch


def uniform_draws(batch: Batch) -> tuple[Tensor, Tensor]:
    """(B) and (B,T+1) uniform on [0, 1), seeded with the tokens of each sequence and the places of its step."""
    step, inputs = repr(batch.places).encode(), batch.inputs_BT.cpu().numpy()
    generators = [torch.Generator().manual_seed(xxhash.xxh32_intdigest(step + row.tobytes())) for row in inputs]
    draws = [torch.rand(inputs.shape[1] + 2, generator=generator, dtype=torch.float64) for generator in generators]
    draw_BT = torch.stack(draws).to(batch.inputs_BT.device)
    return draw_BT[:, 0], draw_BT[:, 1:]
