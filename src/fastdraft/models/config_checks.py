"""The values of a config.json that FastDraft computes with, checked before and after transformers reads them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.activations import ACT2FN
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fastdraft.system import limits
from fastdraft.system.errors import TargetError

# Keys under which families keep the configuration of their text part.
TEXT_PARTS = ("text_config", "llm_config", "language_config")
# The names of the same size in different families; transformers uses the first for most families that it knows.
ALIASES = {
    "vocab_rows": ("padded_vocab_size", "vocab_size", "n_vocab"),
    "hidden_size": ("hidden_size", "n_embd", "n_embed", "d_model", "model_dim", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_query_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", "multi_query"),
    "head_size": ("head_dim", "attention_head_dim", "kv_channels"),
    "intermediate": ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim", "d_ff"),
    "context_tokens": ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "n_ctx"),
}
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
ROPE_THETA = ("rope_theta", "rotary_emb_base", "rope_base")
# The largest value of each size: at least three times that of any published decoder. (Llama-3.1-405B has 126 layers,
# 16,384 wide, with 128 heads and an MLP of 53,248; Gemma 3 has 262,208 rows; Llama 4 Scout a context of 10,485,760.)
MOST = {
    "vocab_rows": 1 << 23,
    "hidden_size": 1 << 16,
    "layers": limits.LAYERS,
    "heads": limits.HEADS,
    "kv_heads": limits.HEADS,
    "head_size": 1 << 13,
    "intermediate": 1 << 20,
    "context_tokens": (1 << 31) - 1,
}
# A vocabulary of one token leaves nothing to predict. glm5_next, with latent attention, states a head_dim of 0.
LEAST = dict.fromkeys(MOST, 1) | {"vocab_rows": 2, "head_size": 0}
# The sizes that a configuration must state, by the name that transformers uses.
NEEDED = {
    "vocab_rows": "vocab_size",
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
}
SIZE_OF = {name: size for size, names in ALIASES.items() for name in names}
FAMILY_NAME = re.compile(r"[\w.-]{1,100}", re.ASCII)


def read(text: PretrainedConfig, size: str) -> int | None:
    """A size under any of its ALIASES; the first layer's if each layer has its own. None if it is not stated."""
    # transformers from 5.2x refuses to read from the whole configuration what differs between layers.
    first = text.per_layer_config[0] if getattr(text, "is_heterogeneous", False) else text
    for name in ALIASES[size]:
        value = getattr(first, name, None)
        value = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(value, int) and value > 0:
            return int(value)
    return None


def check_values(values: dict[str, Any], file: Path) -> None:
    """TargetError unless the sizes in a config.json are whole numbers from LEAST to MOST, and its texts are texts.

    A part for images or audio may have a 0, but not a size above MOST: transformers loops over numbers of layers.
    """
    family = values.get("model_type")
    own_code = family is None and isinstance(values.get("auto_map"), dict)
    if not own_code and not (isinstance(family, str) and FAMILY_NAME.fullmatch(family)):
        raise _error(file, "model_type", family, "the name of a family, like llama")
    text_parts = ("", *(f"{key}." for key in TEXT_PARTS))
    for where, part in _parts(values, ""):
        for key, value in part.items():
            name = f"{where}{key}"
            if key in SIZE_OF:
                least = LEAST[SIZE_OF[key]] if where in text_parts else 0
                _check_size(file, name, value, least, MOST[SIZE_OF[key]])
            elif key in (*ROPE_THETA, "rms_norm_eps") and value is not None:
                if type(value) not in (int, float) or not 0 < value < math.inf:
                    raise _error(file, name, value, "a positive number")
            elif key in ("rope_parameters", "rope_scaling") and not isinstance(value, dict | None):
                raise _error(file, name, value, "an object with rope_type and rope_theta")
            elif key in TEXT_PARTS and not isinstance(value, dict | None):
                raise _error(file, name, value, "an object")
            elif key == "architectures" and not all(isinstance(text, str) for text in _listed(value)):
                raise _error(file, name, value, "a list of class names")


def check_config(config: PretrainedConfig, values: dict[str, Any], file: Path) -> None:
    """TargetError if a size of the text part is missing, heads do not divide, or transformers lacks what it names.

    `values`: of config.json. A nested text part may leave out sizes that are its family's defaults, because
    transformers writes only those that differ; a flat configuration has to state them.
    """
    text, is_plain = config.get_text_config(), type(config) is PretrainedConfig
    for size, name in NEEDED.items():
        names = {*ALIASES[size], *(text.attribute_map.get(name, name) for name in ALIASES[size])}
        # Nemotron-H computes its number of layers from their kinds.
        computed = any(isinstance(getattr(type(text), name, None), property) for name in names)
        stated = computed or text is not config or any(values.get(name) is not None for name in names)
        found = read(text, size)
        # Families without attention have no heads; remote code and a text part may have sizes under any names.
        if (not stated and found is not None) or (found is None and (size != "heads" or is_plain)):
            raise TargetError(
                f"{file} does not state {name}\n  wanted: a whole number from {LEAST[size]} to {MOST[size]:,}\n"
                f"  do: add it, or copy the model's own file again"
            )
    heads, kv_heads = read(text, "heads"), read(text, "kv_heads")
    if heads and kv_heads and heads % kv_heads:
        raise _error(file, "num_key_value_heads", kv_heads, f"a divisor of num_attention_heads, which is {heads}")
    if type(text).__module__.startswith("transformers.models."):
        for key in ACTIVATIONS:
            if isinstance(activation := getattr(text, key, None), str) and activation not in ACT2FN:
                raise _error(file, key, activation, f"one of {', '.join(ACT2FN)}")
        known = ("default", *ROPE_INIT_FUNCTIONS)
        for rope in _parts(getattr(text, "rope_parameters", None) or {}, ""):
            if (kind := rope[1].get("rope_type", "default")) not in known:
                raise _error(file, "rope_type", kind, f"one of {', '.join(known)}")


def _parts(part: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(the path to it, "" or ending in a dot; its values) of every object in a configuration."""
    yield where, part
    for key, value in part.items():
        if isinstance(value, dict):
            yield from _parts(value, f"{where}{key}.")


def _listed(value: Any) -> list[Any]:
    """The values of a list; a single value as a list; none for None."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _check_size(file: Path, name: str, stated: Any, least: int, most: int) -> None:
    """TargetError unless the value, or each layer's if it is a list, is None or a whole number in these limits."""
    for value in _listed(stated) or [stated]:
        is_flag = isinstance(value, bool) and name.endswith("multi_query")
        if value is not None and not is_flag and not (type(value) is int and least <= value <= most):
            raise _error(file, name, value, f"a whole number from {least} to {most:,}")


def _error(file: Path, name: str, found: Any, wanted: str) -> TargetError:
    shown = ascii(found)
    shown = shown if len(shown) <= 100 else f"{shown[:100]} ..."
    return TargetError(
        f"{file}: {ascii(name)[1:-1]} is {shown}\n"
        f"  wanted: {wanted}\n  do: correct it, or copy the model's own file again"
    )
