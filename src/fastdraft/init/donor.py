"""The donor: the MODEL of `draft.init`, and the shape of a draft that is cut from it.

What the recipe does not say is the donor's own; only the vocabulary, and the ids that begin, end and pad a text, are
the target's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from transformers.configuration_utils import PretrainedConfig

from fastdraft.config import DraftPart
from fastdraft.models import named_model, target
from fastdraft.models.model_files import Side
from fastdraft.models.shape import FAMILIES, DraftShape
from fastdraft.models.shape.derive import PER_LAYER
from fastdraft.models.shape.target_sizes import OF_TARGET_ONLY, SPECIAL_IDS, sizes
from fastdraft.system.errors import ShapeError

# The recipe's key that names a donor.
KEY = "draft.init"
# What a draft may have less of than its donor: the recipe's key, and the field of shape.families.Names.
CUTS = {key: key for key in ("hidden_size", "layers", "heads", "kv_heads")} | {"intermediate_size": "intermediate"}


def digest(part: DraftPart) -> str | None:
    """Changes when a file of the donor does; None for a start without one."""
    return named_model.digest(part.init_model, KEY) if part.init_model else None


def whole(donor: Side) -> DraftShape:
    """The donor's own shape; ShapeError where it is of a family whose layers we do not know."""
    family = donor.config.model_type
    if family not in FAMILIES:
        raise ShapeError(
            f"draft.init: {donor.name} is a `{family}`, of which no rule says how a draft is cut from it\n"
            f"  wanted: one of {', '.join(sorted(FAMILIES))}\n  do: start from a model of one of these families"
        )
    config = json.loads(donor.config.to_json_string(use_diff=False))
    config = {key: value for key, value in config.items() if key not in OF_TARGET_ONLY} | {"dtype": "float32"}
    names = FAMILIES[family].names
    hidden, heads = config[names.hidden_size], config[names.heads]
    usual = {names.kv_heads: heads, names.head_size: hidden // heads, names.intermediate: 4 * hidden}
    return _counted(config | {key: value for key, value in usual.items() if key and config.get(key) is None})


def cut(donor: Side, part: DraftPart, wanted: PretrainedConfig) -> DraftShape:
    """The draft that is cut from a donor for a target with the configuration `wanted`.

    ShapeError where the recipe asks for more than the donor has, or the budget does not hold one of its layers.
    """
    own, text = whole(donor), wanted.get_text_config()
    cuts = _sizes(donor, own, part)
    names = FAMILIES[own.family].names
    config = own.config | {key: value for size, value in cuts.items() if (key := getattr(names, CUTS[size]))}
    config |= {"vocab_size": sizes(wanted).vocab_rows} | {key: getattr(text, key, None) for key in SPECIAL_IDS}
    config |= {names.context_tokens: part.context_tokens} if part.context_tokens else {}
    shape = with_layers(config, range(_layers(donor, own, config, part)))
    if part.params_millions is not None and shape.parameters > part.params_millions * 1e6:
        raise ShapeError(
            f"draft.layers of {donor.name} make a draft of {shape.parameters / 1e6:.2f}M parameters\n"
            f"  wanted: {part.params_millions:g}M at most\n  do: leave out draft.params_millions or draft.layers"
        )
    return shape


def with_layers(config: dict[str, Any], kept: Sequence[int]) -> DraftShape:
    """The shape that has these layers of a configuration alone."""
    names = FAMILIES[config["model_type"]].names
    patterns = {key: [pattern[layer] for layer in kept] for key in PER_LAYER if (pattern := config.get(key))}
    return _counted(config | {names.layers: len(kept)} | patterns)


def _sizes(donor: Side, own: DraftShape, part: DraftPart) -> dict[str, int]:
    """The widths of the draft; ShapeError where one is beyond the donor's, or heads cannot be shared so."""
    asked = {name: getattr(part, name) for name in CUTS} | {"head_size": part.head_size}
    for name, value in asked.items():
        most = getattr(own, name)
        if value is not None and (value > most or (name == "head_size" and value != most)):
            raise ShapeError(
                f"draft.{name} is {value}, and {donor.name} has {most}: a donor loses parts, and gains none\n"
                f"  wanted: {most}{'' if name == 'head_size' else ' at most'}\n  do: lower it, or leave it out"
            )
    cuts = {name: asked[name] or getattr(own, name) for name in ("hidden_size", "heads", "intermediate_size")}
    group = own.heads // own.kv_heads
    fitting = [n for n in range(1, own.kv_heads + 1) if cuts["heads"] % n == 0 and cuts["heads"] // n <= group]
    cuts["kv_heads"] = part.kv_heads or min(fitting, default=0)
    if cuts["kv_heads"] not in fitting:
        raise ShapeError(
            f"{cuts['heads']} attention heads with {cuts['kv_heads'] or 'any number of'} key-value heads cannot be "
            f"taken from {donor.name}, where {own.heads} share {own.kv_heads}\n"
            f"  wanted: at most {group} for each key-value head, all equally many\n"
            f"  do: set draft.heads and draft.kv_heads so that they divide"
        )
    return cuts


def _layers(donor: Side, own: DraftShape, config: dict[str, Any], part: DraftPart) -> int:
    """The layers of the draft: the recipe's, or as many of the donor's as the budget holds."""
    if part.layers or part.params_millions is None:
        return part.layers or own.layers
    one, two = (with_layers(config, (0,) * count).parameters for count in (1, 2))
    fitting = 1 + math.floor((part.params_millions * 1e6 - one) / (two - one))
    if fitting < 1:
        raise ShapeError(
            f"one layer of {donor.name} makes a draft of {one / 1e6:.2f}M parameters already\n"
            f"  wanted: {part.params_millions:g}M at most\n"
            f"  do: raise draft.params_millions, or set draft.hidden_size, draft.heads and draft.intermediate_size "
            f"below its {own.hidden_size}, {own.heads} and {own.intermediate_size}"
        )
    return min(fitting, own.layers)


def _counted(config: dict[str, Any]) -> DraftShape:
    """The shape of a configuration, counted exactly; an output layer of its own counts as embedding too."""
    shape = DraftShape(config=config, parameters=0, embedding_parameters=0)
    try:
        count = target.counts(shape.open_config())
    except (ValueError, TypeError, RuntimeError) as error:
        raise ShapeError(
            f"no {shape.family} can be {shape.hidden_size} wide with {shape.heads} heads: {error}\n"
            f"  do: set draft.hidden_size and draft.heads so that they fit"
        ) from error
    embedding = count.embedding + (0 if count.tied else count.output)
    return shape.model_copy(update={"parameters": count.parameters, "embedding_parameters": embedding})
