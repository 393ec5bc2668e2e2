"""The default budget for a target, its smallest useful draft, and alternative shapes near a budget."""

from __future__ import annotations

import math

from transformers.configuration_utils import PretrainedConfig

from fastdraft.config import DraftPart
from fastdraft.models.shape.derive import ASPECT, derive, layers_to_full_attention, shape_of, widths
from fastdraft.models.shape.draft_shape import K_QUANT_STEP, KERNEL_STEP, DraftShape
from fastdraft.models.shape.target_sizes import sizes
from fastdraft.system.errors import ShapeError

# (fraction of the budget, factor on the aspect): half as deep, twice as deep, 0.5 and 1.5 times the budget; the others
# are tried only if fewer than FEWEST shapes remain.
NEIGHBOURS = ((1.0, 2.0), (1.0, 0.5), (0.5, 1.0), (1.5, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0))
FEWEST, USUAL = 3, 5
# The paper's drafts have 1/76 and 1/32 of the parameters of Phi-3-mini and 1/54 of Llama-3.1-8B's; its
# text says 1/50 to 1/75.
TARGET_FRACTION = 1 / 60
# A draft narrower than this fraction of its target learns little more than bigrams (the paper's have 1/6 to 1/4).
NARROWEST_FRACTION = 1 / 8
# A draft with two layers did not learn to copy repetitions from its context (docs/shapes.md).
FEWEST_LAYERS = 3


def nearby_shapes(target: PretrainedConfig, part: DraftPart) -> list[DraftShape]:
    """Three to six shapes near the budget, the recommended one (`derive`'s) included; smallest first.

    ShapeError if the recommended one is impossible.
    """
    best = derive(target, part)
    budget = part.params_millions or best.parameters / 1e6
    shapes = {_key(best): best}
    for number, (fraction, aspect_factor) in enumerate(NEIGHBOURS):
        if number >= USUAL - 1 and len(shapes) >= FEWEST:
            break
        neighbour = DraftPart(params_millions=budget * fraction, context_tokens=part.context_tokens)
        try:
            shape = derive(target, neighbour, ASPECT * aspect_factor)
        except ShapeError:
            continue
        shapes.setdefault(_key(shape), shape)
    return sorted(shapes.values(), key=lambda shape: (shape.parameters, shape.layers))


def _key(shape: DraftShape) -> tuple[int, ...]:
    return shape.hidden_size, shape.layers, shape.heads, shape.kv_heads, shape.intermediate_size


def smallest(target: PretrainedConfig) -> DraftShape:
    """The smallest useful draft: an eighth of the target's width (64 to 256), at least 3 layers.

    Its depth follows the usual aspect, and suffices to have a layer that sees the whole context and to learn to copy
    (docs/shapes.md, "A draft that copies"). A smaller draft is possible, but is little more than its embedding.
    """
    part = DraftPart(params_millions=1e6)
    least_width = min(max(sizes(target).hidden_size * NARROWEST_FRACTION, KERNEL_STEP), K_QUANT_STEP)
    width = next((width for width in widths(target, part) if width >= least_width), widths(target, part)[-1])
    return shape_of(target, part, width, max(FEWEST_LAYERS, round(width / ASPECT), layers_to_full_attention(target)))


def default_budget_millions(target_parameters: int, smallest: int) -> float:
    """The paper's fraction of the target, to two digits, but at least `smallest`, the size of the smallest draft."""
    fraction, floor = target_parameters * TARGET_FRACTION / 1e6, smallest / 1e6
    digits = 1 - math.floor(math.log10(max(fraction, floor)))
    rounded = round(fraction, digits)
    return rounded if rounded >= floor else math.ceil(floor * 10**digits) / 10**digits
