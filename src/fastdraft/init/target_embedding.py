"""`target_embedding`: the target's embedding along its principal directions, in a draft that is otherwise random."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastdraft.config import TargetPart
from fastdraft.models import target
from fastdraft.models.model_files import weight_files
from fastdraft.system.errors import ShapeError

# Root mean square of the draft's embedding. Demo draft, 64 wide, after 300k tokens of text, nats on held-out text:
# random at .02 6.79; the target's directions at .02 6.50, .04 6.24, .08 5.99, .16 5.80, .32 5.93. The size alone is not
# it: random at .16 has 6.75. Nor are the large logits that it begins with: a last norm of .3 makes it 6.73.
EMBEDDING_SPREAD = 0.16
FLOATS = ("F16", "BF16", "F32", "F64")


def target_rows(part: TargetPart) -> Tensor:
    """(V,E) the target's input embedding, float32: of weights in safetensors no other tensor is read."""
    wanted = [name.split(".")[-2:] for name in target.vocabulary_tensors(target.open_config(part))[0]]
    with suppress(SafetensorError):  # of a damaged file the whole model says more
        for file in weight_files(target.folder_of(part)):
            with safe_open(file, framework="pt") as weights:  # type: ignore[no-untyped-call]
                for name in weights.keys():  # noqa: SIM118
                    if name.split(".")[-2:] in wanted and weights.get_slice(name).get_dtype() in FLOATS:
                        rows_VE: Tensor = weights.get_tensor(name)
                        return rows_VE.float()
    model: Any = target.open_model(part, torch.device("cpu"))  # pickled, quantised, or under another name
    rows_VE = model.get_input_embeddings().weight.detach()
    return rows_VE.float()


def projected(rows_VE: Tensor, width: int) -> Tensor:
    """(V,W) the rows along the directions in which they differ most, at EMBEDDING_SPREAD.

    The directions are those of the centred rows, so that none is spent on what all rows have in common; the rows
    themselves are not centred: at full width this is a rotation, and every inner product keeps its share.
    ShapeError where the draft is wider than its target.
    """
    check_width(width, rows_VE.shape[1])
    centred_VE = rows_VE - rows_VE.mean(0)
    directions_EE = torch.linalg.eigh((centred_VE.T @ centred_VE).double()).eigenvectors
    projected_VW: Tensor = rows_VE @ directions_EE.flip(1)[:, :width].to(rows_VE.dtype)
    spread: Tensor = EMBEDDING_SPREAD / projected_VW.square().mean().sqrt()
    return projected_VW * spread


def check_width(draft: int, target: int) -> None:
    """ShapeError where an embedding of the target's width has no directions for the draft's."""
    if draft > target:
        raise ShapeError(
            f"the draft is {draft} wide, its target {target}\n"
            f"  wanted: no more than that for draft.init=target_embedding\n"
            f"  do: lower draft.hidden_size, or set draft.init=random"
        )
