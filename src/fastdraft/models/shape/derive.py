"""From a target and a budget to one draft: width before depth, the padded vocabulary, tied embeddings.

At a fixed number of parameters depth costs latency and width hardly does (paper, section 3), because a small model's
step is bound by its layers' fixed overhead.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any, NamedTuple

from transformers.configuration_utils import PretrainedConfig

from fastdraft.config import DraftPart
from fastdraft.models.shape.draft_shape import K_QUANT_STEP, KERNEL_STEP, DraftShape
from fastdraft.models.shape.families import FAMILIES, Family
from fastdraft.models.shape.target_sizes import Sizes, base_config, sizes
from fastdraft.models.target import parameters
from fastdraft.system.errors import ShapeError

# Width over depth that a budget aims at: the paper's 50M draft for Phi-3-mini is 512 wide and 10 deep.
ASPECT = 51.0
# A width in steps of k-quants is taken if it is this near to that aspect, and leaves at most this share of a budget.
NEAR_ASPECT, UNUSED_FRACTION = 4 / 3, 0.05
# An MLP's width is rounded to a step of k-quants where that changes it by no more than this.
MLP_ROUNDING = 0.05
# A draft with a layer that sees the whole context is taken if it is this near to that aspect.
SEEING_ASPECT = 2.0
HEAD_SIZES = (64, 128)
# A draft this many times slimmer than ASPECT is remarked upon.
SLIM = 8
# Keys that hold one entry a layer, or place layers, in the families' configurations.
PER_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")


def derive(target: PretrainedConfig, part: DraftPart, aspect: float = ASPECT) -> DraftShape:
    """The draft for a target: what the recipe does not say follows from the target and the budget.

    ShapeError where the budget does not hold one layer of the narrowest draft, or sizes do not divide.
    """
    budget = math.inf if part.params_millions is None else part.params_millions * 1e6
    if part.hidden_size is not None and part.layers is not None:
        shape = shape_of(target, part, part.hidden_size, part.layers)
    else:
        chosen = _chosen(target, part, budget, aspect)
        shape = shape_of(target, part, chosen.width, chosen.layers)
    if shape.parameters > budget:
        raise ShapeError(
            f"the draft of draft.hidden_size and draft.layers has {shape.parameters / 1e6:.2f}M parameters\n"
            f"  wanted: {part.params_millions:g}M at most\n  do: leave out draft.params_millions, or one of the two"
        )
    return shape


class Candidate(NamedTuple):
    """A width, the depth that fits the budget, and the parameters of both together."""

    width: int
    layers: int
    parameters: int


def _chosen(target: PretrainedConfig, part: DraftPart, budget: float, aspect: float) -> Candidate:
    """Within the budget the widest of a given depth, else the one whose width over depth is nearest to `aspect`.

    One in steps of k-quants instead, where it is nearly as good.
    """
    found = _candidates(target, part, budget)

    def off(one: Candidate) -> float:
        return -math.log(one.width) if part.layers else abs(math.log(one.width / one.layers / aspect))

    seeing = [one for one in found if one.layers >= layers_to_whole(target) and off(one) <= math.log(SEEING_ASPECT)]
    found = seeing or found
    best = min(found, key=off)
    near = off(best) - math.log(1 - UNUSED_FRACTION) if part.layers else math.log(NEAR_ASPECT)
    full = best.parameters * (1 - UNUSED_FRACTION)
    liked = [one for one in found if one.width % K_QUANT_STEP == 0 and off(one) <= near and one.parameters >= full]
    return min(liked, key=off, default=best)


def _candidates(target: PretrainedConfig, part: DraftPart, budget: float) -> list[Candidate]:
    """One for each width that holds a layer within the budget; ShapeError where none does."""
    found: list[Candidate] = []
    unfit: list[ShapeError] = []
    for width in widths(target, part):
        try:
            deepest = _deepest(target, part, width, budget)
        except ShapeError as error:
            unfit.append(error)
            continue
        if deepest is None:
            break  # nor has a wider one room
        found.append(deepest)
    if not found:
        raise unfit[0] if unfit else _too_small(target, part)
    return found


def layers_to_whole(target: PretrainedConfig) -> int:
    """How many layers a draft needs to have one that sees the whole context, where some of the target's do not.

    The kinds of layers stay in the target's order: llama.cpp has the order of Gemma's written into its code.
    """
    kinds = base_config(target)[0].get("layer_types") or []
    return kinds.index("full_attention") + 1 if "full_attention" in kinds else 1


def _deepest(target: PretrainedConfig, part: DraftPart, width: int, budget: float) -> Candidate | None:
    """The draft of this width with the recipe's layers, or with as many as fit; None where the budget has no room."""
    few = layers_to_whole(target)
    base, more = (shape_of(target, part, width, layers).parameters for layers in (few, few + 1))
    fitting = few + math.floor((budget - base) / (more - base))
    layers = part.layers or fitting
    return Candidate(width, layers, base + (layers - few) * (more - base)) if 1 <= layers <= fitting else None


def _too_small(target: PretrainedConfig, part: DraftPart) -> ShapeError:
    smallest = shape_of(target, part, widths(target, part)[0], part.layers or 1)
    rounded = math.ceil(smallest.parameters / 1e4) / 100
    return ShapeError(
        f"a draft of {part.params_millions:g}M parameters cannot be: the smallest for this target has "
        f"{rounded:.2f}M, of which {smallest.embedding_parameters / 1e6:.2f}M embed "
        f"its {smallest.vocab_rows} tokens\n  do: raise draft.params_millions to {rounded:.2f} at least "
        f"(of a plan: --params {rounded:.2f}M)"
    )


def widths(target: PretrainedConfig, part: DraftPart) -> list[int]:
    """The widths that a draft may have: the recipe's, or all steps up to the target's own."""
    if part.hidden_size is not None:
        return [part.hidden_size]
    known, budget = sizes(target), part.params_millions
    tuned = part.head_size is None and part.heads is None and _tuned(base_config(target)[0])
    step = math.lcm(KERNEL_STEP, known.head_size) if tuned else KERNEL_STEP
    # Wider than this, the embedding alone is beyond the budget.
    widest = min(known.hidden_size, math.inf if budget is None else budget * 1e6 / known.vocab_rows)
    return list(range(step, int(widest) + 1, step)) or [step]


def shape_of(target: PretrainedConfig, part: DraftPart, width: int, layers: int) -> DraftShape:
    """The shape with this width and depth, counted exactly."""
    config, notes = base_config(target)
    family, known = FAMILIES[config["model_type"]], sizes(target)
    heads, kv_heads, head_size = _heads(config, known, part, width)
    config |= family.names.filled(
        hidden_size=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        intermediate=part.intermediate_size or _intermediate(known, width),
        context_tokens=part.context_tokens or known.context_tokens,
    )
    config |= {"vocab_size": known.vocab_rows, "tie_word_embeddings": True, "dtype": "float32"}
    config |= _untuned(family, head_size) | _kinds_of_layers(config, layers)
    notes += _remarks(config, known, part, head_size, layers_to_whole(target))
    shape = DraftShape(
        config=config, parameters=0, embedding_parameters=known.vocab_rows * width, notes=tuple(dict.fromkeys(notes))
    )
    return shape.model_copy(update={"parameters": _counted(json.dumps(config), f"{heads} heads of {head_size}")})


@lru_cache(maxsize=4096)
def _counted(config: str, heads: str) -> int:
    """The parameters of a draft with this configuration, as JSON: a model is built once for all that ask."""
    shape = DraftShape(config=json.loads(config), parameters=0, embedding_parameters=0)
    try:
        return parameters(shape.open_config())
    except (ValueError, TypeError, RuntimeError) as error:
        raise ShapeError(
            f"no {shape.family} can be {shape.hidden_size} wide with {heads} and {shape.layers} layers: "
            f"{error}\n  do: set draft.hidden_size, draft.heads and draft.head_size so that they fit"
        ) from error


def _untuned(family: Family, head_size: int) -> dict[str, float]:
    """The keys that are tuned to a target's width, as they are for a draft with heads of this size."""
    neutral = {key: head_size**-0.5 if value is None else value for key, value in family.neutral}
    return neutral | ({family.of_head: head_size} if family.of_head else {})


def _kinds_of_layers(config: dict[str, Any], layers: int) -> dict[str, list[Any]]:
    """The target's kinds of layers from its first on, over again where the draft is deeper."""
    patterns = {key: pattern for key in PER_LAYER if (pattern := config.get(key))}
    return {key: [pattern[i % len(pattern)] for i in range(layers)] for key, pattern in patterns.items()}


def _heads(config: dict[str, Any], known: Sizes, part: DraftPart, width: int) -> tuple[int, int, int]:
    """(heads, key-value heads, head size): GQA in the target's share, as near as it divides."""
    names = FAMILIES[config["model_type"]].names
    size = part.head_size or (width // part.heads if part.heads else _head_size(config, known, width))
    heads = part.heads or width // size
    wanted = heads * known.kv_heads / known.heads if names.kv_heads else heads
    dividing = (n for n in range(1, heads + 1) if heads % n == 0)
    kv_heads = part.kv_heads or min(dividing, key=lambda n: abs(math.log(n / wanted)), default=1)
    fixed = (names.kv_heads is None and kv_heads != heads) or (names.head_size is None and heads * size != width)
    turned = int(size * ((config.get("rope_parameters") or {}).get("partial_rotary_factor") or 1))
    if heads < 1 or heads % kv_heads or turned < 2 or turned % 2 or fixed:
        raise ShapeError(
            f"{heads} attention heads of {size} cannot share {kv_heads} key-value heads in a draft {width} wide\n"
            f"  wanted: heads of an even size (rotary positions turn pairs), as many for each key-value head\n"
            f"  do: set draft.hidden_size, draft.heads and draft.kv_heads so that they divide"
        )
    return heads, kv_heads, size


def _head_size(config: dict[str, Any], known: Sizes, width: int) -> int:
    """The target's where it is one of HEAD_SIZES, or smaller, and divides the width; else the nearest that does.

    Of one that fills the width two halves: a draft with two heads learns sooner to copy (docs/shapes.md). Positions
    tuned to the target's size keep it.
    """
    small, large = HEAD_SIZES
    if _tuned(config):
        return known.head_size
    if width % known.head_size == 0 and (known.head_size < small or known.head_size in HEAD_SIZES):
        size = known.head_size
    else:
        size = large if known.head_size > large and width % large == 0 else math.gcd(width, small)
    return size // 2 if size == width and size in HEAD_SIZES else size


def _tuned(config: dict[str, Any]) -> bool:
    """Have the positions a factor for each dimension of a head, which fixes its size?"""
    rope = config.get("rope_parameters") or {}
    return any(isinstance(value, list | tuple) for value in rope.values())


def _intermediate(known: Sizes, width: int) -> int:
    """The target's ratio of MLP width to width, rounded to whole steps."""
    exact = width * known.mlp_ratio
    coarse = round(exact / K_QUANT_STEP) * K_QUANT_STEP
    if coarse and abs(coarse / exact - 1) <= MLP_ROUNDING:
        return coarse
    step = KERNEL_STEP if exact >= KERNEL_STEP else 4
    return max(step, round(exact / step) * step)


def _remarks(config: dict[str, Any], known: Sizes, part: DraftPart, head_size: int, whole: int) -> list[str]:
    """What of a shape is out of the ordinary, unless the recipe asked for it; `whole` is that of layers_to_whole."""
    names, found = FAMILIES[config["model_type"]].names, []
    width, layers = config[names.hidden_size], config[names.layers]
    if part.layers is None and width < layers * ASPECT / SLIM:
        found.append(
            f"{layers} layers of width {width} are slow for what they predict: {known.vocab_rows} tokens leave the "
            f"budget no wider ones"
        )
    narrow = head_size < HEAD_SIZES[0] < width
    if narrow and head_size != known.head_size and not (part.heads or part.head_size):
        found.append(f"attention heads are of {head_size}: kernels are made for {HEAD_SIZES[0]} and {HEAD_SIZES[1]}")
    if layers < whole:
        found.append(f"every layer sees the last {config.get('sliding_window')} tokens alone, as the target's first do")
    return found
