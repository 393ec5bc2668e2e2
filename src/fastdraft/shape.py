"""From a target and a budget to the draft's shape: same family, same padded vocabulary, tied embeddings.

Width comes before depth: at a fixed number of parameters depth costs latency and width hardly does (paper, section 3),
because a small model's step is bound by its layers' fixed overhead.
"""

from __future__ import annotations

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

    ShapeError where the budget does not hold one layer of the narrowest draft, or sizes do not divide.
    """
    if part.hidden_size is not None and part.layers is not None:
        return _shape(target, part, part.hidden_size, part.layers)
    assert part.params_millions is not None, "the recipe's schema asks for a budget or a shape"
    budget = part.params_millions * 1e6
    width_depth = [
        (width, part.layers or _layers_within(target, part, width, budget)) for width in _widths(target, part)
    ]
    fitting = [(w, d) for w, d in width_depth if d >= 1 and _shape(target, part, w, d).parameters <= budget]
    if not fitting:
        smallest = _shape(target, part, part.hidden_size or WIDTH_STEP, part.layers or 1)
        raise ShapeError(
            f"a draft of {part.params_millions:g}M parameters cannot be: the smallest for this target has "
            f"{smallest.parameters / 1e6:.2f}M, of which {smallest.embedding_parameters / 1e6:.2f}M embed "
            f"its {target.get_text_config().vocab_size} tokens\n  do: raise draft.params_millions"
        )
    width, depth = min(fitting, key=lambda pair: abs(math.log(pair[0] / pair[1] / ASPECT)))
    return _shape(target, part, width, depth)


def _widths(target: PretrainedConfig, part: DraftPart) -> list[int]:
    if part.hidden_size is not None:
        return [part.hidden_size]
    return list(range(WIDTH_STEP, target.get_text_config().hidden_size + 1, WIDTH_STEP)) or [WIDTH_STEP]


def _layers_within(target: PretrainedConfig, part: DraftPart, width: int, budget: float) -> int:
    one, two = (_shape(target, part, width, layers).parameters for layers in (1, 2))
    return 1 + math.floor((budget - one) / (two - one))


def _shape(target: PretrainedConfig, part: DraftPart, width: int, layers: int) -> DraftShape:
    """The shape with this width and depth, counted exactly."""
    config = target.get_text_config().to_dict()
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
    config |= {key: config[key][:layers] for key in PER_LAYER if config.get(key) is not None}
    shape = DraftShape(config=config, parameters=0, embedding_parameters=config["vocab_size"] * width)
    return shape.model_copy(update={"parameters": parameters(shape.open_config())})


def _heads(config: dict[str, Any], part: DraftPart, width: int) -> tuple[int, int, int]:
    """(heads, key-value heads, head size): the target's head size where it divides the width, its share of kv heads."""
    target_heads = config["num_attention_heads"]
    target_size = config.get("head_dim") or config["hidden_size"] // target_heads
    size = part.head_size or (width // part.heads if part.heads else _head_size(width, target_size))
    heads = part.heads or width // size
    wanted = max(1, round(heads * (config.get("num_key_value_heads") or target_heads) / target_heads))
    kv_heads = part.kv_heads or max(n for n in range(1, wanted + 1) if heads % n == 0)
    if heads < 1 or heads % kv_heads:
        raise ShapeError(
            f"{heads} attention heads of {size} cannot share {kv_heads} key-value heads in a draft {width} wide\n"
            f"  do: set draft.hidden_size, draft.heads and draft.kv_heads so that they divide"
        )
    return heads, kv_heads, size


def _head_size(width: int, target_size: int) -> int:
    return int(target_size) if width % target_size == 0 else math.gcd(width, WIDTH_STEP)


def _intermediate(config: dict[str, Any], width: int) -> int:
    """The target's ratio of MLP width to width, rounded to whole steps."""
    exact = width * config["intermediate_size"] / config["hidden_size"]
    step = WIDTH_STEP if exact >= WIDTH_STEP else 4
    return max(step, int(round(exact / step)) * step)
