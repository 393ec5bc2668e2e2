"""Alternative shapes near a budget."""

from __future__ import annotations

from transformers.configuration_utils import PretrainedConfig

from fastdraft.config import DraftPart
from fastdraft.models.shape.derive import ASPECT, derive
from fastdraft.models.shape.draft_shape import DraftShape
from fastdraft.system.errors import ShapeError

# (fraction of the budget, factor on the aspect): half as deep, twice as deep, 0.5 and 1.5 times the budget; the others
# are tried only if fewer than FEWEST shapes remain.
NEIGHBOURS = ((1.0, 2.0), (1.0, 0.5), (0.5, 1.0), (1.5, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0))
FEWEST, USUAL = 3, 5


def nearby_shapes(target: PretrainedConfig, part: DraftPart, best: DraftShape | None = None) -> list[DraftShape]:
    """Three to six shapes near the budget, smallest first, with `best`: by default the one that `derive` recommends.

    ShapeError if that is impossible.
    """
    best = best or derive(target, part)
    budget = part.params_millions or best.parameters / 1e6
    shapes = {_key(best): best}
    for number, (fraction, aspect_factor) in enumerate(NEIGHBOURS):
        if number >= USUAL - 1 and len(shapes) >= FEWEST:
            break
        # A copy is not validated: four times the largest budget is more than a recipe may give.
        neighbour = DraftPart(context_tokens=part.context_tokens).model_copy(
            update={"params_millions": budget * fraction}
        )
        try:
            shape = derive(target, neighbour, ASPECT * aspect_factor)
        except ShapeError:
            continue
        shapes.setdefault(_key(shape), shape)
    return sorted(shapes.values(), key=lambda shape: (shape.parameters, shape.layers))


def _key(shape: DraftShape) -> tuple[int, ...]:
    return shape.hidden_size, shape.layers, shape.heads, shape.kv_heads, shape.intermediate_size
