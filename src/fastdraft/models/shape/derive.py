"""Derive a draft's shape from a target and a budget: width before depth, padded vocabulary, tied embeddings.

At a fixed number of parameters depth costs latency and width hardly any (paper, section 3), because the step of a small
model is bound by the fixed overhead of its layers.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any, NamedTuple

from transformers.configuration_utils import PretrainedConfig

from fastdraft.config import DraftPart
from fastdraft.models.architecture import counts, parameters
from fastdraft.models.shape.draft_shape import K_QUANT_STEP, KERNEL_STEP, DraftShape
from fastdraft.models.shape.families import FAMILIES, Family
from fastdraft.models.shape.target_sizes import Sizes, base_config, countable, expert_fraction, sizes
from fastdraft.system import limits
from fastdraft.system.errors import ShapeError, TargetError

# The width over depth to aim for: the paper's 50M draft for Phi-3-mini is 512 wide and 10 deep.
ASPECT = 51.0
# A width in steps of k-quants is preferred if it is this near to ASPECT and leaves at most this fraction of the budget.
NEAR_ASPECT, UNUSED_FRACTION = 4 / 3, 0.05
# An MLP's width is rounded to a step of k-quants if that changes it by at most this fraction.
MLP_ROUNDING = 0.05
# A draft with a layer that sees the whole context is preferred if it is this near to ASPECT.
NEAR_ASPECT_FULL_CONTEXT = 2.0
HEAD_SIZES = (64, 128)
# A draft this many times slimmer than ASPECT gets a note.
SLIM = 8
# The paper's drafts have 1/76 and 1/32 of the parameters of Phi-3-mini and 1/54 of Llama-3.1-8B's; its
# text says 1/50 to 1/75.
TARGET_FRACTION = 1 / 60
# A draft narrower than this fraction of its target learns little more than bigrams (the paper's have 1/6 to 1/4).
NARROWEST_FRACTION = 1 / 8
# A draft with two layers did not learn to copy repetitions from its context (docs/shapes.md).
FEWEST_LAYERS = 3
# Configuration keys with one entry per layer.
PER_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")


def derive(target: PretrainedConfig, part: DraftPart, aspect: float = ASPECT) -> DraftShape:
    """The draft for a target: sizes that the recipe leaves out follow from the target and the budget.

    Without a budget it is `default_budget`. ShapeError if the budget is too small for one layer of the narrowest draft,
    or if sizes do not divide.
    """
    if part.needs_budget:
        part = part.model_copy(update={"params_millions": default_budget(target)})
    budget = math.inf if part.params_millions is None else part.params_millions * 1e6
    if part.hidden_size is not None and part.layers is not None:
        shape = shape_of(target, part, part.hidden_size, part.layers)
    else:
        chosen = _choose(target, part, budget, aspect)
        shape = shape_of(target, part, chosen.width, chosen.layers)
    if shape.parameters > budget:
        raise ShapeError(
            f"the draft with draft.hidden_size and draft.layers has {shape.parameters / 1e6:.2f}M parameters\n"
            f"  wanted: {part.params_millions:g}M at most\n  do: leave out draft.params_millions, or one of the two"
        )
    return shape


def default_budget(target: PretrainedConfig) -> float:
    """The millions of parameters of a draft for this target, if nobody sets them.

    Only the experts that a token uses count: 1/60 of all 671B of DeepSeek-V3 would be too large for a draft.
    """
    counted = counts(countable(target))
    unused = counted.experts * (1 - expert_fraction(target.get_text_config())) if counted.experts else 0.0
    budget = default_budget_millions(round(counted.parameters - unused), smallest(target).parameters)
    return min(budget, float(limits.PARAMETERS_MILLIONS))


def default_budget_millions(target_parameters: int, smallest: int) -> float:
    """The paper's fraction of the target, to two digits, but at least `smallest`, the size of the smallest draft."""
    fraction, floor = target_parameters * TARGET_FRACTION / 1e6, smallest / 1e6
    digits = 1 - math.floor(math.log10(max(fraction, floor)))
    rounded = round(fraction, digits)
    return rounded if rounded >= floor else math.ceil(floor * 10**digits) / 10**digits


def smallest(target: PretrainedConfig) -> DraftShape:
    """The smallest useful draft: an eighth of the target's width (64 to 256), at least 3 layers.

    Its depth follows the usual aspect, and suffices to have a layer that sees the whole context and to learn to copy
    (docs/shapes.md, "A draft that copies"). A smaller draft is possible, but is little more than its embedding.
    """
    part = DraftPart(params_millions=1e6)
    least_width = min(max(sizes(target).hidden_size * NARROWEST_FRACTION, KERNEL_STEP), K_QUANT_STEP)
    width = next((width for width in widths(target, part) if width >= least_width), widths(target, part)[-1])
    return shape_of(target, part, width, max(FEWEST_LAYERS, round(width / ASPECT), layers_to_full_attention(target)))


class Candidate(NamedTuple):
    """A width, the depth that fits the budget, and the parameters of both together."""

    width: int
    layers: int
    parameters: int


def _choose(target: PretrainedConfig, part: DraftPart, budget: float, aspect: float) -> Candidate:
    """The widest candidate if the recipe fixes the depth, otherwise the one with width over depth nearest to `aspect`.

    A candidate in steps of k-quants is preferred if it is nearly as good.
    """
    candidates = _candidates(target, part, budget)

    def distance(candidate: Candidate) -> float:
        if part.layers:
            return -math.log(candidate.width)
        return abs(math.log(candidate.width / candidate.layers / aspect))

    enough_layers = layers_to_full_attention(target)
    with_full_attention = [
        candidate
        for candidate in candidates
        if candidate.layers >= enough_layers and distance(candidate) <= math.log(NEAR_ASPECT_FULL_CONTEXT)
    ]
    candidates = with_full_attention or candidates
    best = min(candidates, key=distance)
    near = distance(best) - math.log(1 - UNUSED_FRACTION) if part.layers else math.log(NEAR_ASPECT)
    least_parameters = best.parameters * (1 - UNUSED_FRACTION)
    k_quants = [
        candidate
        for candidate in candidates
        if candidate.width % K_QUANT_STEP == 0
        and distance(candidate) <= near
        and candidate.parameters >= least_parameters
    ]
    return min(k_quants, key=distance, default=best)


def _candidates(target: PretrainedConfig, part: DraftPart, budget: float) -> list[Candidate]:
    """One for each width that fits a layer into the budget; ShapeError if none does."""
    candidates: list[Candidate] = []
    errors: list[ShapeError] = []
    for width in widths(target, part):
        try:
            deepest = _deepest(target, part, width, budget)
        except ShapeError as error:
            errors.append(error)
            continue
        if deepest is None:
            break  # wider ones do not fit either
        candidates.append(deepest)
    if not candidates:
        raise errors[0] if errors else _too_small(target, part)
    return candidates


def layers_to_full_attention(target: PretrainedConfig) -> int:
    """The number of layers that a draft needs to include one that sees the whole context; 1 if all of the target's do.

    Kinds of layers keep the target's order: llama.cpp has the order of Gemma's in its code.
    """
    kinds = base_config(target)[0].get("layer_types") or []
    return kinds.index("full_attention") + 1 if "full_attention" in kinds else 1


def _deepest(target: PretrainedConfig, part: DraftPart, width: int, budget: float) -> Candidate | None:
    """The draft of this width with the recipe's layers, or with as many as fit; None if the budget is too small."""
    one, two = (shape_of(target, part, width, layers).parameters for layers in (1, 2))
    fitting = 1 + math.floor((budget - one) / (two - one))
    layers = part.layers or min(fitting, limits.LAYERS)
    return Candidate(width, layers, one + (layers - 1) * (two - one)) if 1 <= layers <= fitting else None


def _too_small(target: PretrainedConfig, part: DraftPart) -> ShapeError:
    smallest = shape_of(target, part, widths(target, part)[0], part.layers or 1)
    rounded = math.ceil(smallest.parameters / 1e4) / 100
    return ShapeError(
        f"a draft of {part.params_millions:g}M parameters is too small: the smallest for this target has "
        f"{rounded:.2f}M, and the embedding of its {smallest.vocab_rows} tokens alone "
        f"{smallest.embedding_parameters / 1e6:.2f}M\n  do: raise draft.params_millions to at least {rounded:.2f} "
        f"(with `plan`: --params {rounded:.2f}M)"
    )


def widths(target: PretrainedConfig, part: DraftPart) -> list[int]:
    """The widths that a draft may have: the recipe's, or all steps up to the target's width."""
    if part.hidden_size is not None:
        return [part.hidden_size]
    known, budget = sizes(target), part.params_millions
    tuned = part.head_size is None and part.heads is None and _tuned(base_config(target)[0])
    step = math.lcm(KERNEL_STEP, known.head_size) if tuned else KERNEL_STEP
    # At any larger width the embedding alone exceeds the budget.
    widest = min(known.hidden_size, math.inf if budget is None else budget * 1e6 / known.vocab_rows)
    return list(range(step, int(widest) + 1, step)) or [step]


def shape_of(target: PretrainedConfig, part: DraftPart, width: int, layers: int) -> DraftShape:
    """The shape with this width and depth, and its exact number of parameters."""
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
    config |= _untuned(family, head_size) | _layer_kinds(config, layers)
    notes += _notes(config, known, part, head_size, layers_to_full_attention(target))
    shape = DraftShape(
        config=config, parameters=0, embedding_parameters=known.vocab_rows * width, notes=tuple(dict.fromkeys(notes))
    )
    return shape.model_copy(update={"parameters": _count(json.dumps(config), f"{heads} heads of {head_size}")})


@lru_cache(maxsize=4096)
def _count(config: str, heads: str) -> int:
    """The parameters of a draft with this configuration (as JSON, so that results can be cached)."""
    shape = DraftShape(config=json.loads(config), parameters=0, embedding_parameters=0)
    try:
        return parameters(shape.open_config())
    except TargetError as error:
        raise ShapeError(
            f"a {shape.family} cannot be {shape.hidden_size} wide with {heads} and {shape.layers} layers: "
            f"{str(error).splitlines()[0]}\n"
            f"  do: set draft.hidden_size, draft.heads and draft.head_size so that they fit"
        ) from error


def _untuned(family: Family, head_size: int) -> dict[str, float]:
    """The keys that are tuned to the target's width, reset for a draft with heads of this size."""
    neutral = {key: head_size**-0.5 if value is None else value for key, value in family.neutral}
    return neutral | ({family.of_head: head_size} if family.of_head else {})


def _layer_kinds(config: dict[str, Any], layers: int) -> dict[str, list[Any]]:
    """The target's kinds of layers from its first layer on, repeated if the draft is deeper."""
    patterns = {key: pattern for key in PER_LAYER if (pattern := config.get(key))}
    return {key: [pattern[i % len(pattern)] for i in range(layers)] for key, pattern in patterns.items()}


def _heads(config: dict[str, Any], known: Sizes, part: DraftPart, width: int) -> tuple[int, int, int]:
    """(heads, key-value heads, head size) with the target's GQA ratio, or the nearest that divides."""
    names = FAMILIES[config["model_type"]].names
    size = part.head_size or (width // part.heads if part.heads else _head_size(config, known, width))
    heads = part.heads or width // size
    ideal = heads * known.kv_heads / known.heads if names.kv_heads else heads
    dividing = (n for n in range(1, heads + 1) if heads % n == 0)
    kv_heads = part.kv_heads or min(dividing, key=lambda n: abs(math.log(n / ideal)), default=1)
    unsupported = (names.kv_heads is None and kv_heads != heads) or (names.head_size is None and heads * size != width)
    rotated = int(size * ((config.get("rope_parameters") or {}).get("partial_rotary_factor") or 1))
    if heads < 1 or heads % kv_heads or rotated < 2 or rotated % 2 or unsupported:
        raise ShapeError(
            f"{heads} attention heads of {size} cannot share {kv_heads} key-value heads in a draft {width} wide\n"
            f"  wanted: heads of an even size (rotary positions rotate pairs), equally many for each key-value head\n"
            f"  do: set draft.hidden_size, draft.heads and draft.kv_heads so that they divide"
        )
    return heads, kv_heads, size


def _head_size(config: dict[str, Any], known: Sizes, width: int) -> int:
    """The target's head size if it divides the width and is one of HEAD_SIZES or smaller; otherwise the nearest.

    A head as wide as the model is split in two: a draft with two heads learns sooner to copy (docs/shapes.md). If the
    rotary positions are tuned to the target's head size, it is kept.
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
    """Do the rotary positions have a factor for each dimension of a head? That fixes the head size."""
    rope = config.get("rope_parameters") or {}
    return any(isinstance(value, list | tuple) for value in rope.values())


def _intermediate(known: Sizes, width: int) -> int:
    """The MLP width by the target's ratio, rounded to whole steps."""
    exact = width * known.mlp_ratio
    coarse = round(exact / K_QUANT_STEP) * K_QUANT_STEP
    if coarse and abs(coarse / exact - 1) <= MLP_ROUNDING:
        return coarse
    step = KERNEL_STEP if exact >= KERNEL_STEP else 4
    return max(step, round(exact / step) * step)


def _notes(config: dict[str, Any], known: Sizes, part: DraftPart, head_size: int, enough_layers: int) -> list[str]:
    """What is unusual about a shape, unless the recipe sets it. `enough_layers`: of `layers_to_full_attention`."""
    names, notes = FAMILIES[config["model_type"]].names, []
    width, layers = config[names.hidden_size], config[names.layers]
    if part.layers is None and width < layers * ASPECT / SLIM:
        notes.append(
            f"{layers} layers of width {width} are slow for what they predict: with {known.vocab_rows} tokens the "
            f"budget allows no wider ones"
        )
    narrow = head_size < HEAD_SIZES[0] < width
    if narrow and head_size != known.head_size and not (part.heads or part.head_size):
        notes.append(f"attention heads have size {head_size}: kernels are made for {HEAD_SIZES[0]} and {HEAD_SIZES[1]}")
    if layers < enough_layers:
        notes.append(
            f"every layer sees only the last {config.get('sliding_window')} tokens, like the target's first ones"
        )
    return notes
