"""A target's sizes, whatever its family, and the configuration that its draft starts from."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from transformers import AutoConfig
from transformers.configuration_utils import PretrainedConfig

from fastdraft.models.architecture import is_countable
from fastdraft.models.config_checks import ROPE_THETA, SPECIAL_IDS, read
from fastdraft.models.shape.families import FAMILIES, stand_in
from fastdraft.system.errors import ShapeError

# Used if the configuration does not state a size. An MLP of 2 to 6 widths is dense; others are an expert's, or missing.
HIDDEN_SIZE, LAYERS, CONTEXT_TOKENS, MLP_RATIO, DENSE_MLP = 4096, 32, 2048, 3.0, (2.0, 6.0)
# Keys about how the target's files are stored or opened: a draft is not quantised and needs no remote code.
OF_TARGET_ONLY = ("quantization_config", "compression_config", "auto_map", "_name_or_path")
# Configuration keys of the families: the number of routed experts, and the number per token.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_k", "top_k_experts")
# Kinds of rotary positions that every engine computes alike, and their keys.
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
    """A target's sizes; defaults for those that its configuration does not state. `mlp_ratio` is over hidden_size."""

    vocab_rows: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_ratio: float
    context_tokens: int


def sizes(target: PretrainedConfig) -> Sizes:
    """The sizes of a target's text part; ShapeError if it states no vocabulary size."""
    text = target.get_text_config()
    if not (rows := read(text, "vocab_rows")):
        raise ShapeError(
            f"the configuration of the `{text.model_type}` does not state the size of its vocabulary\n"
            f"  wanted: vocab_size\n  do: add it to config.json, padded as the model's own output layer is"
        )
    hidden = read(text, "hidden_size") or HIDDEN_SIZE
    heads = read(text, "heads") or max(1, hidden // 128)
    ratio = (read(text, "intermediate") or 0) / hidden
    dense = (text.model_type in FAMILIES and ratio) or DENSE_MLP[0] <= ratio <= DENSE_MLP[1]
    return Sizes(
        vocab_rows=rows,
        hidden_size=hidden,
        layers=read(text, "layers") or LAYERS,
        heads=heads,
        kv_heads=read(text, "kv_heads") or heads,
        head_size=read(text, "head_size") or hidden // heads,
        mlp_ratio=ratio if dense else 4.0 if text.model_type == "gpt2" else MLP_RATIO,
        context_tokens=read(text, "context_tokens") or CONTEXT_TOKENS,
    )


def expert_fraction(text: PretrainedConfig) -> float:
    """The fraction of the routed experts that a token uses; 1 if the configuration does not state both numbers."""
    experts, per_token = (
        next((value for name in names if isinstance(value := getattr(text, name, None), int) and value > 0), 1)
        for names in (EXPERTS, EXPERTS_PER_TOKEN)
    )
    return min(1.0, per_token / experts)


def base_config(target: PretrainedConfig) -> tuple[dict[str, Any], list[str]]:
    """The configuration that receives a draft's sizes, and notes about it: the target's own, or a stand-in's.

    It passes through JSON, so that it equals the one that is read back from a card (keys of id2label become strings).
    """
    text = target.get_text_config()
    notes = [] if text is target else [_text_part(target, text)]
    substitute = stand_in(text.model_type)
    if substitute is None:
        config = _plain(text)
    else:
        notes.append(f"the target is a `{text.model_type}`, the draft a `{substitute.family}`: {substitute.reason}")
        config = _plain(AutoConfig.for_model(substitute.family))
        if "sliding_window" in config:
            config["sliding_window"] = getattr(text, "sliding_window", None)
        if "rms_norm_eps" in config:  # every norm needs one: the stand-in's own if the target states none
            config["rms_norm_eps"] = getattr(text, "rms_norm_eps", None) or config["rms_norm_eps"]
        config |= {key: _known_id(getattr(text, key, None), sizes(target).vocab_rows) for key in SPECIAL_IDS}
        notes += _take_positions(text, config)
    config["pad_token_id"] = _known_id(config.get("pad_token_id"), sizes(target).vocab_rows)
    return {key: value for key, value in config.items() if key not in OF_TARGET_ONLY}, notes


def countable(target: PretrainedConfig) -> PretrainedConfig:
    """The target's text part if transformers can count it; otherwise its dense stand-in at the same sizes."""
    text, known = target.get_text_config(), sizes(target)
    if is_countable(text):
        return text
    substitute = stand_in(text.model_type)
    family = substitute.family if substitute else text.model_type
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


def _known_id(stated: Any, rows: int) -> Any:
    """A special id, or a list of them, if the vocabulary contains it; None otherwise."""
    ids = stated if isinstance(stated, list) else [stated]
    return stated if all(isinstance(i, int) and 0 <= i < rows for i in ids) else None


def _take_positions(text: PretrainedConfig, config: dict[str, Any]) -> list[str]:
    """Copy the target's rotary positions into a stand-in's configuration if engines compute them alike.

    Returns notes about what could not be copied.
    """
    own = config.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in own.values()):
        return []  # Gemma 3: one for each kind of layer, the same in all related families
    rope = _rope(text)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    theta = rope.get("rope_theta") or next((theta for key in ROPE_THETA if (theta := getattr(text, key, None))), None)
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta or own.get("rope_theta", 10000.0)}
    if kind not in ROPE_TYPES:
        return [f"positions of type `{kind}` are not copied: the draft has plain rotary positions"]
    if kind != "default":
        kept = {key: rope[key] for key in ROPE_KEYS if rope.get(key) is not None}
        config["rope_parameters"] |= {"rope_type": kind, **kept}
    return [] if theta else ["the target states no rotary base: the draft has the usual 10 000"]


def _rope(text: PretrainedConfig) -> dict[str, Any]:
    """The target's rotary positions; if layers differ, those of the layers that see the whole context."""
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    nested = rope.get("full_attention")
    return dict(nested if isinstance(nested, dict) else rope)
