"""The donor, which is the MODEL of `draft.init`, and the shape of a draft that is cut from it.

Sizes that the recipe does not set are those of the donor. Vocabulary size and special token ids are the target's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from transformers.configuration_utils import PretrainedConfig

from fastdraft.config import DraftPart
from fastdraft.models import architecture
from fastdraft.models.config_checks import SPECIAL_IDS
from fastdraft.models.model_files import ModelFiles
from fastdraft.models.shape import FAMILIES, DraftShape
from fastdraft.models.shape.derive import PER_LAYER
from fastdraft.models.shape.target_sizes import OF_TARGET_ONLY, sizes
from fastdraft.system.errors import ShapeError, TargetError

# The recipe key that names a donor.
KEY = "draft.init"
# The sizes that can be cut: recipe key -> field of shape.families.Names.
CUTS = {key: key for key in ("hidden_size", "layers", "heads", "kv_heads")} | {"intermediate_size": "intermediate"}


def donor_shape(donor: ModelFiles) -> DraftShape:
    """The shape of the whole donor; ShapeError if its family is not in FAMILIES."""
    family = donor.config.model_type
    if family not in FAMILIES:
        raise ShapeError(
            f"draft.init: {donor.name} is a `{family}`, and drafts cannot be cut from this family\n"
            f"  wanted: one of {', '.join(sorted(FAMILIES))}\n  do: start from a model of one of these families"
        )
    config = json.loads(donor.config.to_json_string(use_diff=False))
    config = {key: value for key, value in config.items() if key not in OF_TARGET_ONLY} | {"dtype": "float32"}
    names = FAMILIES[family].names
    hidden, heads = config[names.hidden_size], config[names.heads]
    defaults = {names.kv_heads: heads, names.head_size: hidden // heads, names.intermediate: 4 * hidden}
    return _counted(config | {key: value for key, value in defaults.items() if key and config.get(key) is None})


def cut_shape(donor: ModelFiles, part: DraftPart, target_config: PretrainedConfig) -> DraftShape:
    """The shape of a draft that is cut from the donor for this target.

    ShapeError if a size of the recipe exceeds the donor's, or if the budget is too small for one layer.
    """
    whole, text_config = donor_shape(donor), target_config.get_text_config()
    names = FAMILIES[whole.family].names
    cuts = _cut_widths(donor, whole, part)
    config = whole.config | {key: value for size, value in cuts.items() if (key := getattr(names, CUTS[size]))}
    config["vocab_size"] = sizes(target_config).vocab_rows
    config |= {key: getattr(text_config, key, None) for key in SPECIAL_IDS}
    if part.context_tokens:
        config[names.context_tokens] = part.context_tokens
    shape = with_layers(config, range(_layer_count(donor, whole, config, part)))
    if part.params_millions is not None and shape.parameters > part.params_millions * 1e6:
        raise ShapeError(
            f"draft.layers of {donor.name} make a draft of {shape.parameters / 1e6:.2f}M parameters\n"
            f"  wanted: {part.params_millions:g}M at most\n  do: leave out draft.params_millions or draft.layers"
        )
    return shape


def with_layers(config: dict[str, Any], layers: Sequence[int]) -> DraftShape:
    """The shape with only these layers of a configuration."""
    names = FAMILIES[config["model_type"]].names
    per_layer = {key: [values[layer] for layer in layers] for key in PER_LAYER if (values := config.get(key))}
    return _counted(config | {names.layers: len(layers)} | per_layer)


def _cut_widths(donor: ModelFiles, whole: DraftShape, part: DraftPart) -> dict[str, int]:
    """The widths of the draft; ShapeError if one exceeds the donor's, or if its heads cannot be grouped."""
    requested = {name: getattr(part, name) for name in CUTS} | {"head_size": part.head_size}
    for name, value in requested.items():
        available = getattr(whole, name)
        if value is not None and (value > available or (name == "head_size" and value != available)):
            raise ShapeError(
                f"draft.{name} is {value}, and {donor.name} has {available}: a donor can only be cut\n"
                f"  wanted: {available}{'' if name == 'head_size' else ' at most'}\n  do: lower it, or leave it out"
            )
    cuts = {name: requested[name] or getattr(whole, name) for name in ("hidden_size", "heads", "intermediate_size")}
    group = whole.heads // whole.kv_heads
    fitting = [n for n in range(1, whole.kv_heads + 1) if cuts["heads"] % n == 0 and cuts["heads"] // n <= group]
    cuts["kv_heads"] = part.kv_heads or min(fitting, default=0)
    if cuts["kv_heads"] not in fitting:
        raise ShapeError(
            f"{cuts['heads']} attention heads with {cuts['kv_heads'] or 'any number of'} key-value heads cannot be "
            f"taken from {donor.name}, where {whole.heads} share {whole.kv_heads}\n"
            f"  wanted: at most {group} for each key-value head, the same number for all\n"
            f"  do: set draft.heads and draft.kv_heads so that they divide"
        )
    return cuts


def _layer_count(donor: ModelFiles, whole: DraftShape, config: dict[str, Any], part: DraftPart) -> int:
    """The layers that the recipe sets, or else as many of the donor's as fit the budget."""
    if part.layers or part.params_millions is None:
        return part.layers or whole.layers
    one, two = (with_layers(config, (0,) * count).parameters for count in (1, 2))
    fitting = 1 + math.floor((part.params_millions * 1e6 - one) / (two - one))
    if fitting < 1:
        raise ShapeError(
            f"one layer of {donor.name} already makes a draft of {one / 1e6:.2f}M parameters\n"
            f"  wanted: {part.params_millions:g}M at most\n"
            f"  do: raise draft.params_millions, or set draft.hidden_size, draft.heads and draft.intermediate_size "
            f"below its {whole.hidden_size}, {whole.heads} and {whole.intermediate_size}"
        )
    return min(fitting, whole.layers)


def _counted(config: dict[str, Any]) -> DraftShape:
    """The shape of a configuration with its exact number of parameters; an untied output layer is embedding too."""
    shape = DraftShape(config=config, parameters=0, embedding_parameters=0)
    try:
        count = architecture.counts(shape.open_config())
    except TargetError as error:
        raise ShapeError(
            f"no {shape.family} can be {shape.hidden_size} wide with {shape.heads} heads: "
            f"{str(error).splitlines()[0]}\n"
            f"  do: set draft.hidden_size and draft.heads so that they fit"
        ) from error
    embedding = count.embedding + (0 if count.tied else count.output)
    return shape.model_copy(update={"parameters": count.parameters, "embedding_parameters": embedding})
