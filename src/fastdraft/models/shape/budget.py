"""Which drafts are worth a look for a target: the default budget, the smallest, and the shapes around a budget."""

from __future__ import annotations

import math

from transformers.configuration_utils import PretrainedConfig

from fastdraft.config import DraftPart
from fastdraft.models.shape.derive import ASPECT, derive, layers_to_whole, shape_of, widths
from fastdraft.models.shape.draft_shape import K_QUANT_STEP, KERNEL_STEP, DraftShape
from fastdraft.models.shape.target_sizes import sizes
from fastdraft.system.errors import ShapeError

# (share of the budget, share of the aspect): half as deep, twice as deep, half and one and a half of the budget; the
# rest only where these are too few.
NEIGHBOURS = ((1.0, 2.0), (1.0, 0.5), (0.5, 1.0), (1.5, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0))
FEWEST, USUAL = 3, 5
# The paper's drafts are 1/76 and 1/32 of Phi-3-mini and 1/54 of Llama-3.1-8B; it names 1/50 to 1/75.
TARGET_SHARE = 1 / 60
# A draft narrower than this share of its target predicts little more than pairs of words (paper's: 1/6 to 1/4).
NARROWEST_FRACTION = 1 / 8
# One of two layers did not learn to copy what its context repeats (docs/shapes.md).
FEWEST_LAYERS = 3


def around(target: PretrainedConfig, part: DraftPart) -> list[DraftShape]:
    """Three to six drafts about the budget, the recommended one (`derive`'s) among them; fewest parameters first.

    ShapeError where the recommended one cannot be.
    """
    best = derive(target, part)
    budget = part.params_millions or best.parameters / 1e6
    found = {_key(best): best}
    for number, (fraction, slimness) in enumerate(NEIGHBOURS):
        if number >= USUAL - 1 and len(found) >= FEWEST:
            break
        free = DraftPart(params_millions=budget * fraction, context_tokens=part.context_tokens)
        try:
            shape = derive(target, free, ASPECT * slimness)
        except ShapeError:
            continue
        found.setdefault(_key(shape), shape)
    return sorted(found.values(), key=lambda shape: (shape.parameters, shape.layers))


def _key(shape: DraftShape) -> tuple[int, ...]:
    return shape.hidden_size, shape.layers, shape.heads, shape.kv_heads, shape.intermediate_size


def smallest(target: PretrainedConfig) -> DraftShape:
    """The smallest draft that is worth its embedding: an eighth of the target's width (64 to 256), at least 3 layers.

    Its depth is that of the usual aspect, and enough for a layer that sees the whole context and to learn to copy
    (docs/shapes.md, "A draft that copies"). A smaller one can be made, but is hardly more than its vocabulary.
    """
    part = DraftPart(params_millions=1e6)
    wanted = min(max(sizes(target).hidden_size * NARROWEST_FRACTION, KERNEL_STEP), K_QUANT_STEP)
    width = next((width for width in widths(target, part) if width >= wanted), widths(target, part)[-1])
    return shape_of(target, part, width, max(FEWEST_LAYERS, round(width / ASPECT), layers_to_whole(target)))


def default_budget_millions(target_parameters: int, smallest: int) -> float:
    """The paper's share of the target, to two digits; no less than `smallest`, the parameters of the smallest draft."""
    fraction, floor = target_parameters * TARGET_SHARE / 1e6, smallest / 1e6
    digits = 1 - math.floor(math.log10(max(fraction, floor)))
    rounded = round(fraction, digits)
    return rounded if rounded >= floor else math.ceil(floor * 10**digits) / 10**digits
