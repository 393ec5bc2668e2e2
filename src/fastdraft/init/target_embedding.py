"""`target_embedding`: a random draft whose embedding is the target's, projected to its principal directions."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fastdraft.config import TargetPart
from fastdraft.models import architecture, pretrained
from fastdraft.models.weight_files import FLOATS, headers, weight_files
from fastdraft.system.errors import ShapeError

# Root mean square of the draft's embedding. Nats on held-out text of a demo draft, 64 wide, after 300k tokens: 6.50 at
# 0.02, 6.24 at 0.04, 5.99 at 0.08, 5.80 at 0.16, 5.93 at 0.32. A random embedding has 6.79 at 0.02 and 6.75 at 0.16, so
# the size alone is not the reason. The large initial logits are not either: with a last norm of 0.3 it has 6.73.
EMBEDDING_RMS = 0.16


def read_target_embedding(part: TargetPart) -> Tensor:
    """(V,E) the target's input embedding in float32; from safetensors only this tensor is read."""
    wanted = [name.split(".")[-2:] for name in architecture.vocabulary_tensors(pretrained.open_config(part))[0]]
    for file in weight_files(pretrained.folder_of(part)):
        for name, header in headers(file).items():
            if name.split(".")[-2:] in wanted and header.dtype in FLOATS:
                with safe_open(file, framework="pt") as weights:  # type: ignore[no-untyped-call]
                    stored_VE: Tensor = weights.get_tensor(name)
                return stored_VE.float()
    # The weights are pickled or quantised, or the tensor has another name.
    model: Any = pretrained.open_model(part, torch.device("cpu"))
    rows_VE: Tensor = model.get_input_embeddings().weight.detach()
    return rows_VE.float()


def project_rows(rows_VE: Tensor, width: int) -> Tensor:
    """(V,W) the rows in their `width` principal directions, scaled to EMBEDDING_RMS.

    The directions are those of the centred rows, so that none is spent on the mean of all rows. The rows themselves are
    not centred: at full width the projection is a rotation and keeps all inner products up to the scale.
    ShapeError if the draft is wider than its target.
    """
    check_width(width, rows_VE.shape[1])
    centred_VE = rows_VE - rows_VE.mean(0)
    directions_EE = torch.linalg.eigh((centred_VE.T @ centred_VE).double()).eigenvectors
    projected_VW: Tensor = rows_VE @ directions_EE.flip(1)[:, :width].to(rows_VE.dtype)
    scale: Tensor = EMBEDDING_RMS / projected_VW.square().mean().sqrt()
    return projected_VW * scale


def check_width(draft: int, target: int) -> None:
    """ShapeError if the draft is wider than the target's embedding."""
    if draft > target:
        raise ShapeError(
            f"the draft is {draft} wide, its target {target}\n"
            f"  wanted: no more than that for draft.init=target_embedding\n"
            f"  do: lower draft.hidden_size, or set draft.init=random"
        )
