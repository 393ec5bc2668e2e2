"""The model families of llama.cpp: names of sizes and tensors, and the order of weight rows.

Follows llama.cpp's converter (conversion/{llama,qwen,phi}.py) and loader (src/models/), read in November 2026.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import gguf
import torch
from torch import Tensor
from transformers.configuration_utils import PretrainedConfig

from fastdraft.models.gguf_file import llama3_factors
from fastdraft.system.errors import ExportError


class Family(NamedTuple):
    """An architecture of llama.cpp.

    interleaved: rotary positions rotate dimensions j, j + 1; transformers rotates j, j + d/2, so rows are reordered.
    square: all heads together must be as wide as the model. long: rotary positions may be of type longrope.
    """

    arch: str
    interleaved: bool = False
    square: bool = False
    long: bool = False


FAMILIES = {
    "llama": Family("llama", interleaved=True),
    "mistral": Family("llama", interleaved=True),
    "qwen2": Family("qwen2", square=True),
    "qwen3": Family("qwen3"),
    "phi3": Family("phi3", square=True, long=True),
}


def family_of(config: PretrainedConfig) -> Family:
    """The llama.cpp family of a configuration; ExportError if llama.cpp or this table does not support it."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ExportError(
            f"a `{config.model_type}` cannot be written as GGUF\n  wanted: one of {', '.join(FAMILIES)}\n"
            f"  do: --format huggingface, then llama.cpp's own convert_hf_to_gguf.py; or --format openvino"
        )
    attention = _head_size(config) * config.num_attention_heads
    if family.square and attention != config.hidden_size:
        raise ExportError(
            f"llama.cpp's {family.arch} needs heads that are together as wide as the model\n"
            f"  found: {config.num_attention_heads} heads of {_head_size(config)} in a width of {config.hidden_size}\n"
            f"  do: shape the draft with draft.heads and draft.head_size so that they fit, or choose another format"
        )
    rope = _rope(config)["rope_type"]
    supported = (
        {"default", "linear", "yarn"}
        | ({"llama3"} if family.interleaved else set())
        | ({"longrope"} if family.long else set())
    )
    if rope not in supported:
        raise ExportError(
            f"llama.cpp's {family.arch} has no rotary positions of type {rope}\n"
            f"  wanted: {', '.join(sorted(supported))}\n  do: choose another format"
        )
    return family


def write_sizes(writer: Any, config: PretrainedConfig, family: Family) -> None:
    """Write the keys from which llama.cpp reads the model's shape."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(_rotary_dimensions(config))
    writer.add_rope_freq_base(float(_rope(config)["rope_theta"]))
    _write_scaling(writer, config)
    if family.long:
        writer.add_rope_scaling_orig_ctx_len(_original_context(config))
        # 0 marks a Phi-4 among the models of this family.
        writer.add_sliding_window(config.sliding_window or 0)


def _write_scaling(writer: Any, config: PretrainedConfig) -> None:
    rope = _rope(config)
    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(_original_context(config))
        for key, add in (
            ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if rope.get(key) is not None:
                add(rope[key])
    if kind == "longrope":
        scale = config.max_position_embeddings / _original_context(config)
        stretched = math.sqrt(1 + math.log(scale) / math.log(_original_context(config))) if scale > 1 else 1.0
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_attn_factors(rope.get("attention_factor") or stretched)


def tensors(config: PretrainedConfig, family: Family, weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor with llama.cpp's name and order of rows; a tied output layer is left out, as in llama.cpp."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.arch.upper()], config.num_hidden_layers)
    yield from _rope_tensors(config)
    for name, weight in weights.items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise ExportError(
                f"llama.cpp's {family.arch} has no tensor like {name} {list(weight.shape)}\n  do: choose another format"
            )
        part = name.split(".")[-2]
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        yield gguf_name, interleaved(weight, heads[part]) if family.interleaved and part in heads else weight


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Reorder each head's rows to 0, d/2, 1, d/2 + 1, ...: dimensions that are rotated together become neighbours."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _rope_tensors(config: PretrainedConfig) -> Iterator[tuple[str, Tensor]]:
    """The factors that divide the rotary frequencies, one per pair of dimensions."""
    rope = _rope(config)
    names = {part: f"{gguf.TENSOR_NAMES[getattr(gguf.MODEL_TENSOR, part)]}.weight" for part in _ROPE_TENSORS}
    if rope["rope_type"] == "llama3":
        original = {"original_max_position_embeddings": _original_context(config)}
        yield names["ROPE_FREQS"], llama3_factors(rope | original, _head_size(config))
    if rope["rope_type"] == "longrope":
        yield names["ROPE_FACTORS_LONG"], torch.tensor(rope["long_factor"], dtype=torch.float32)
        yield names["ROPE_FACTORS_SHORT"], torch.tensor(rope["short_factor"], dtype=torch.float32)


_ROPE_TENSORS = ("ROPE_FREQS", "ROPE_FACTORS_LONG", "ROPE_FACTORS_SHORT")


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    rope: dict[str, Any] = config.rope_parameters
    return rope


def _original_context(config: PretrainedConfig) -> int:
    stated = _rope(config).get("original_max_position_embeddings")
    stated = stated or getattr(config, "original_max_position_embeddings", None)
    return int(stated or config.max_position_embeddings)


def _head_size(config: PretrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rotary_dimensions(config: PretrainedConfig) -> int:
    fraction = _rope(config).get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    return int(_head_size(config) * fraction)
