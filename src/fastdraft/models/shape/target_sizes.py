"""What a draft takes from its target's configuration, of whatever family, and the configuration that it begins from."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from transformers import AutoConfig
from transformers.configuration_utils import PretrainedConfig

from fastdraft.models.architecture import is_countable
from fastdraft.models.shape.families import FAMILIES, stand_in
from fastdraft.system.errors import ShapeError

# What families call the same size; transformers has the first name for most of those that it knows.
ALIASES = {
    "vocab_rows": ("padded_vocab_size", "vocab_size", "n_vocab"),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "model_dim", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", "multi_query"),
    "head_size": ("head_dim", "attention_head_dim", "kv_channels"),
    "intermediate": ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim", "d_ff"),
    "context_tokens": ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "n_ctx"),
    "rope_theta": ("rope_theta", "rotary_emb_base", "rope_base"),
}
# Where the target does not say. An MLP is dense between 2 and 6 widths: an expert's is not, nor one that has none.
HIDDEN_SIZE, LAYERS, CONTEXT_TOKENS, MLP_RATIO, DENSE_MLP = 4096, 32, 2048, 3.0, (2.0, 6.0)
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Keys that say how the target's own files are stored or opened: a draft is stored in full and opens without its code.
OF_TARGET_ONLY = ("quantization_config", "compression_config", "auto_map", "_name_or_path")
# Stretched positions that every engine computes alike, and their keys.
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")
ROPE_KEYS = (
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "low_freq_factor",
    "high_freq_factor",
)


class Sizes(NamedTuple):
    """A target's sizes, as far as its configuration says them; `mlp_ratio` is over hidden_size."""

    vocab_rows: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_ratio: float
    context_tokens: int


def sizes(target: PretrainedConfig) -> Sizes:
    """The sizes of a target's text part; ShapeError where it names no vocabulary."""
    text = target.get_text_config()
    if not (rows := read(text, "vocab_rows")):
        raise ShapeError(
            f"the configuration of the `{text.model_type}` says nowhere how large its vocabulary is\n"
            f"  wanted: vocab_size\n  do: add it to config.json, padded as the model's own output layer is"
        )
    hidden = read(text, "hidden_size") or HIDDEN_SIZE
    heads = read(text, "heads") or max(1, hidden // 128)
    exact = (read(text, "intermediate") or 0) / hidden
    dense = (text.model_type in FAMILIES and exact) or DENSE_MLP[0] <= exact <= DENSE_MLP[1]
    return Sizes(
        vocab_rows=rows,
        hidden_size=hidden,
        layers=read(text, "layers") or LAYERS,
        heads=heads,
        kv_heads=read(text, "kv_heads") or heads,
        head_size=read(text, "head_size") or hidden // heads,
        mlp_ratio=exact if dense else 4.0 if text.model_type == "gpt2" else MLP_RATIO,
        context_tokens=read(text, "context_tokens") or CONTEXT_TOKENS,
    )


def read(text: PretrainedConfig, what: str) -> int | None:
    """A size under any of the names that families have for it; the first layer's where each has its own."""
    for name in ALIASES[what]:
        value = getattr(text, name, None)
        value = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(value, int | float) and value > 0:
            return int(value)
    return None


def base_config(target: PretrainedConfig) -> tuple[dict[str, Any], list[str]]:
    """The configuration that a draft's sizes are put into, and what there is to say: the target's own, or a stand-in's.

    By way of JSON, so that a shape is the same when its card has been read: keys such as those of id2label are text.
    """
    text = target.get_text_config()
    notes = [] if text is target else [_text_part(target, text)]
    other = stand_in(text.model_type)
    if other is None:
        config = _plain(text)
    else:
        notes.append(f"the target is a `{text.model_type}`, the draft a `{other.family}`: {other.reason}")
        config = _plain(AutoConfig.for_model(other.family))
        if "sliding_window" in config:
            config["sliding_window"] = getattr(text, "sliding_window", None)
        if "rms_norm_eps" in config:  # no norm can do without: the stand-in's own where the target has none
            config["rms_norm_eps"] = getattr(text, "rms_norm_eps", None) or config["rms_norm_eps"]
        config |= {key: _known_id(getattr(text, key, None), sizes(target).vocab_rows) for key in SPECIAL_IDS}
        notes += _take_positions(text, config)
    config["pad_token_id"] = _known_id(config.get("pad_token_id"), sizes(target).vocab_rows)
    return {key: value for key, value in config.items() if key not in OF_TARGET_ONLY}, notes


def countable(target: PretrainedConfig) -> PretrainedConfig:
    """The target's text part; where transformers has no model of it, its dense stand-in at its sizes: an estimate."""
    text, known = target.get_text_config(), sizes(target)
    if is_countable(text):
        return text
    other = stand_in(text.model_type)
    family = other.family if other else text.model_type
    values = FAMILIES[family].names.filled(
        hidden_size=known.hidden_size,
        layers=known.layers,
        heads=known.heads,
        kv_heads=known.kv_heads,
        head_size=known.head_size,
        intermediate=round(known.hidden_size * known.mlp_ratio),
        context_tokens=known.context_tokens,
    )
    tied = bool(getattr(text, "tie_word_embeddings", False))
    values |= {"vocab_size": known.vocab_rows, "tie_word_embeddings": tied, "pad_token_id": None}
    estimate: PretrainedConfig = AutoConfig.for_model(family, **values)
    return estimate


def _text_part(target: PretrainedConfig, text: PretrainedConfig) -> str:
    return (
        f"the target is a `{target.model_type}`, which reads more than text; the draft is of its text part, a "
        f"`{text.model_type}`, and proposes from the text alone"
    )


def _plain(config: PretrainedConfig) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return values


def _known_id(found: Any, rows: int) -> Any:
    """A special id, or a list of them, that has a row; None otherwise."""
    ids = found if isinstance(found, list) else [found]
    return found if all(isinstance(i, int) and 0 <= i < rows for i in ids) else None


def _take_positions(text: PretrainedConfig, config: dict[str, Any]) -> list[str]:
    """Put the target's rotary positions into a stand-in's configuration, as far as engines compute them alike."""
    own = config.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in own.values()):
        return []  # Gemma 3's: one for each kind of layer, the same in all of its kin
    found = _rope(text)
    kind = found.get("rope_type") or found.get("type") or "default"
    theta = found.get("rope_theta") or read(text, "rope_theta")
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta or own.get("rope_theta", 10000.0)}
    if kind not in ROPE_TYPES:
        return [f"positions of type `{kind}` are not taken over: the draft's are plain rotary ones"]
    if kind != "default":
        kept = {key: found[key] for key in ROPE_KEYS if found.get(key) is not None}
        config["rope_parameters"] |= {"rope_type": kind, **kept}
    return [] if theta else ["the target names no rotary positions: the draft's have the usual base of 10 000"]


def _rope(text: PretrainedConfig) -> dict[str, Any]:
    """The target's rotary positions; where layers differ, those of the layers that see the whole context."""
    found = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    nested = found.get("full_attention")
    return dict(nested if isinstance(nested, dict) else found)
