"""From a target and a budget to the draft's shape: same family, same padded vocabulary, tied embeddings.

Width comes before depth: at a fixed number of parameters depth costs latency and width hardly does (paper, section 3),
because a small model's step is bound by its layers' fixed overhead.
"""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic import BaseModel, ConfigDict
from transformers import AutoConfig
from transformers.configuration_utils import PretrainedConfig

from fastdraft.errors import ShapeError
from fastdraft.recipe import DraftPart
from fastdraft.target import parameters

WIDTH_STEP = 64
# Width over depth that a budget aims at: the paper's 50M draft for Phi-3-mini is 512 wide and 10 deep.
ASPECT = 51
# Keys that hold one entry a layer, or place layers, in the families' configurations.
PER_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")
# Keys that say how the target's own files are stored or opened: a draft is stored in full and opens without its code.
OF_TARGET_ONLY = ("quantization_config", "compression_config", "auto_map", "_name_or_path")
# The families whose layers are all alike but for PER_LAYER, and whose configurations use Llama's names.
FAMILIES = frozenset(
    {"llama", "mistral", "ministral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text"}
    | {"olmo", "olmo2", "olmo3", "granite", "smollm3", "starcoder2", "helium"}
)


class DraftShape(BaseModel):
    """A draft's configuration and exact size."""

    model_config = ConfigDict(frozen=True)
    config: dict[str, Any]
    parameters: int
    embedding_parameters: int

    @property
    def other_parameters(self) -> int:
        return self.parameters - self.embedding_parameters

    def open_config(self) -> PretrainedConfig:
        """The configuration as transformers knows it."""
        values = dict(self.config)
        config: PretrainedConfig = AutoConfig.for_model(values.pop("model_type"), **values)
        return config


def derive(target: PretrainedConfig, part: DraftPart) -> DraftShape:
    """The draft for a target: what the recipe does not say follows from the target and the budget.

    ShapeError where the target's family is not known, the budget does not hold one layer of the narrowest draft, or
    sizes do not divide.
    """
    family = target.get_text_config().model_type
    if family not in FAMILIES:
        raise ShapeError(
            f"no rule says how a draft of family `{family}` follows from its target\n"
            f"  wanted: one of {', '.join(sorted(FAMILIES))}\n  do: choose a target of one of these families"
        )
    budget = math.inf if part.params_millions is None else part.params_millions * 1e6
    if part.hidden_size is not None and part.layers is not None:
        shape = _shape(target, part, part.hidden_size, part.layers)
    else:
        shape = _shape(target, part, *_width_depth(target, part, budget))
    if shape.parameters > budget:
        raise ShapeError(
            f"the draft of draft.hidden_size and draft.layers has {shape.parameters / 1e6:.2f}M parameters\n"
            f"  wanted: {part.params_millions:g}M at most\n  do: leave out draft.params_millions, or one of the two"
        )
    return shape


def _width_depth(target: PretrainedConfig, part: DraftPart, budget: float) -> tuple[int, int]:
    """The width and depth within the budget whose ratio is nearest to ASPECT."""
    found: list[tuple[int, int]] = []
    unfit: list[ShapeError] = []
    for width in _widths(target, part):
        try:
            depth = _layers_within(target, part, width, budget)
        except ShapeError as error:
            unfit.append(error)
        else:
            found += [(width, depth)] if depth >= 1 else []
    if found:
        return min(found, key=lambda pair: abs(math.log(pair[0] / pair[1] / ASPECT)))
    if unfit:
        raise unfit[0]
    smallest = _shape(target, part, _widths(target, part)[0], part.layers or 1)
    raise ShapeError(
        f"a draft of {part.params_millions:g}M parameters cannot be: the smallest for this target has "
        f"{smallest.parameters / 1e6:.2f}M, of which {smallest.embedding_parameters / 1e6:.2f}M embed "
        f"its {target.get_text_config().vocab_size} tokens\n  do: raise draft.params_millions"
    )


def _widths(target: PretrainedConfig, part: DraftPart) -> list[int]:
    if part.hidden_size is not None:
        return [part.hidden_size]
    return list(range(WIDTH_STEP, target.get_text_config().hidden_size + 1, WIDTH_STEP)) or [WIDTH_STEP]


def _layers_within(target: PretrainedConfig, part: DraftPart, width: int, budget: float) -> int:
    """The layers of a draft of this width: the recipe's, or as many as fit; 0 where the budget does not hold them."""
    one, two = (_shape(target, part, width, layers).parameters for layers in (1, 2))
    fitting = 1 + math.floor((budget - one) / (two - one))
    if part.layers is None:
        return max(fitting, 0)
    return part.layers if part.layers <= fitting else 0


def _shape(target: PretrainedConfig, part: DraftPart, width: int, layers: int) -> DraftShape:
    """The shape with this width and depth, counted exactly."""
    # By way of JSON, so that a shape is the same when its card has been read: keys such as those of id2label are text.
    config = json.loads(target.get_text_config().to_json_string(use_diff=False))
    heads, kv_heads, head_size = _heads(config, part, width)
    config |= {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_size,
        "intermediate_size": part.intermediate_size or _intermediate(config, width),
        "max_position_embeddings": part.context_tokens or config["max_position_embeddings"],
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    for key in PER_LAYER:
        if pattern := config.get(key):
            config[key] = [pattern[layer % len(pattern)] for layer in range(layers)]
    config = {key: value for key, value in config.items() if key not in OF_TARGET_ONLY}
    shape = DraftShape(config=config, parameters=0, embedding_parameters=config["vocab_size"] * width)
    try:
        return shape.model_copy(update={"parameters": parameters(shape.open_config())})
    except (ValueError, TypeError, RuntimeError) as error:
        raise ShapeError(
            f"no {config['model_type']} can be {width} wide with {heads} heads of {head_size} and {layers} layers: "
            f"{error}\n  do: set draft.hidden_size, draft.heads and draft.head_size so that they fit"
        ) from error


def _heads(config: dict[str, Any], part: DraftPart, width: int) -> tuple[int, int, int]:
    """(heads, key-value heads, head size): the target's head size where it divides the width, its share of kv heads."""
    target_heads = config["num_attention_heads"]
    target_size = config.get("head_dim") or config["hidden_size"] // target_heads
    size = part.head_size or (width // part.heads if part.heads else _head_size(config, width, target_size))
    heads = part.heads or width // size
    wanted = max(1, round(heads * (config.get("num_key_value_heads") or target_heads) / target_heads))
    kv_heads = part.kv_heads or max(n for n in range(1, wanted + 1) if heads % n == 0)
    if heads < 1 or heads % kv_heads or size < 2 or size % 2:
        raise ShapeError(
            f"{heads} attention heads of {size} cannot share {kv_heads} key-value heads in a draft {width} wide\n"
            f"  wanted: heads of an even size (rotary positions turn pairs), as many for each key-value head\n"
            f"  do: set draft.hidden_size, draft.heads and draft.kv_heads so that they divide"
        )
    return heads, kv_heads, size


def _head_size(config: dict[str, Any], width: int, target_size: int) -> int:
    """The target's where it divides the width, or where its positions have a factor for each dimension of a head."""
    rope = config.get("rope_parameters") or {}
    tuned = any(isinstance(value, list | tuple) for value in rope.values())
    return int(target_size) if tuned or width % target_size == 0 else math.gcd(width, WIDTH_STEP)


def _intermediate(config: dict[str, Any], width: int) -> int:
    """The target's ratio of MLP width to width, rounded to whole steps."""
    exact = width * int(config["intermediate_size"]) / int(config["hidden_size"])
    step = WIDTH_STEP if exact >= WIDTH_STEP else 4
    return max(step, round(exact / step) * step)
