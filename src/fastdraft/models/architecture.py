"""What a configuration describes: is it a decoder, of which class, with how many parameters. No weights are read."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM
from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    MODEL_MAPPING,
)

# Where families keep the configuration of their text part, and the heads that write text, as class names end.
TEXT_PARTS = ("text_config", "llm_config", "language_config")
WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


class Counts(NamedTuple):
    """Exact numbers of parameters: all, the input embedding's, the output layer's (the same matrix where tied), and
    those of routed experts."""

    parameters: int
    embedding: int
    output: int
    tied: bool
    experts: int


def read_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration in a folder; a plain one where transformers has no such family.

    That of its text part may still be one that transformers knows. Raises OSError, ValueError, and what transformers
    raises.
    """
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("it holds no mapping of keys to values")
    if trust_remote_code or not isinstance(values.get("model_type"), str) or _known(values):
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        return _whole(config)
    config = PretrainedConfig.from_dict(values)
    for key in TEXT_PARTS:
        if isinstance(inner := values.get(key), dict):
            config.text_config = AutoConfig.for_model(**inner) if _known(inner) else PretrainedConfig(**inner)
    return _whole(config)


def is_runnable(config: PretrainedConfig) -> bool:
    """Does transformers know this family? Where not, a shape can be derived, but nothing be run or counted."""
    return type(config) is not PretrainedConfig


def is_countable(config: PretrainedConfig) -> bool:
    """Has transformers a model for this very configuration? The text part of a multimodal one may have none."""
    return has_own_code(config) or type(config) in MODEL_MAPPING


def has_own_code(config: PretrainedConfig) -> bool:
    """Was this configuration read by code that came with it?"""
    return is_runnable(config) and not type(config).__module__.startswith("transformers.models.")


def writes_text(config: PretrainedConfig) -> bool:
    """Is this the configuration of a decoder? Encoders such as BERT can be opened as one, and are none."""
    if has_own_code(config):
        return "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    text = config.get_text_config()
    if config.is_encoder_decoder or text.is_encoder_decoder:
        return False
    if not is_runnable(config):
        return any(name.endswith(WRITERS) for name in config.architectures or WRITERS)
    causal = {config.model_type, text.model_type} & MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return bool(causal) and bool(getattr(config, "is_decoder", False))
    return bool(causal) or config.model_type in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES


def class_of(config: PretrainedConfig) -> Any:
    """The class of transformers that opens it: one that writes; a body without output layer for a bare text part."""
    causal = has_own_code(config) or config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    multimodal = config.model_type in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    if multimodal and (not causal or config.get_text_config() is not config):
        return AutoModelForMultimodalLM
    return AutoModelForCausalLM if causal else AutoModel


def parameters(config: PretrainedConfig) -> int:
    """The exact number of parameters of a model with this configuration, counted on the meta device."""
    return counts(config).parameters


def counts(config: PretrainedConfig) -> Counts:
    """The parameters of a model with this configuration by what they are for, counted on the meta device.

    ValueError where transformers has no model for it.
    """
    model = _on_meta(config)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    bare, tied = head is None, bool(getattr(config.get_text_config(), "tie_word_embeddings", False))
    output = embedding if bare else head.weight
    return Counts(
        parameters=int(model.num_parameters()) + (embedding.numel() if bare and not tied else 0),
        embedding=embedding.numel(),
        output=output.numel(),
        tied=tied if bare else output is embedding,
        experts=sum(p.numel() for name, p in model.named_parameters() if ".experts." in name),
    )


def vocabulary_tensors(config: PretrainedConfig) -> tuple[list[str], list[str]]:
    """The names of the input embedding and of the output layer, which have one row for each id; all of both if tied."""
    model = _on_meta(config)
    named = list(model.named_parameters(remove_duplicate=False))
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    layers = (embedding, embedding if output is None else output)
    found = tuple([name for name, weight in named if weight is layer.weight] for layer in layers)
    return found[0], found[1]


def _on_meta(config: PretrainedConfig) -> Any:
    """A model with this configuration without weights."""
    with torch.device("meta"):
        model = class_of(config).from_config(_whole(deepcopy(config)), trust_remote_code=has_own_code(config))
    model.tie_weights()  # on the meta device a tied output layer is made as a matrix of its own
    return model


def _known(values: dict[str, Any]) -> bool:
    return values.get("model_type") in CONFIG_MAPPING


def _whole(config: PretrainedConfig) -> PretrainedConfig:
    """With the keys that transformers 5.0 reads and some of its configurations lack (StableLM, Llama 4, Qwen2-VL)."""
    tied = bool(getattr(config, "tie_word_embeddings", False))
    for part in (config, config.get_text_config()):
        for key, value in (("pad_token_id", None), ("tie_word_embeddings", tied)):
            if not hasattr(part, key):
                setattr(part, key, value)
    return config
