"""What a configuration describes: its model class, whether it is a decoder, its parameters. Reads no weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM, __version__
from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    MODEL_MAPPING,
)

from fastdraft.models.config_checks import TEXT_PARTS, check_config, check_values
from fastdraft.models.file_errors import errors_explained, read_json
from fastdraft.system.errors import TargetError

# Endings of the class names of decoders.
DECODER_CLASSES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
# Modules and parameters of a model. 61 layers of 384 experts in separate modules have 190,000. More are not built: on
# the meta device 500,000 take 20 s and 1 GB.
MOST_PARTS = 500_000


class Counts(NamedTuple):
    """Exact numbers of parameters: all, input embedding, output layer (the same matrix if tied), routed experts."""

    parameters: int
    embedding: int
    output: int
    tied: bool
    experts: int


def read_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration in a folder; a plain PretrainedConfig if transformers does not know the family.

    transformers may still know the family of its text part. TargetError if it is damaged, or if the model does not
    generate text left to right.
    """
    file = folder / "config.json"
    values = read_json(file)
    check_values(values, file)
    with errors_explained(f"{file} cannot be read", "check the file"):
        if trust_remote_code or values.get("model_type") is None or _known(values):
            config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        else:
            config = PretrainedConfig.from_dict(values)
            config.name_or_path = str(folder)
            for key in TEXT_PARTS:
                if isinstance(inner := values.get(key), dict):
                    config.text_config = AutoConfig.for_model(**inner) if _known(inner) else PretrainedConfig(**inner)
        config = _with_defaults(config)
        if not writes_text(config):
            raise TargetError(
                f"{file} describes a `{config.model_type}`, which does not generate text left to right\n"
                f"  wanted: a causal language model (decoder only)\n  do: choose another target"
            )
        check_config(config, values, file)
    return config


def is_runnable(config: PretrainedConfig) -> bool:
    """Does transformers know this family? If not, a shape can be derived, but the model cannot be run or counted."""
    return type(config) is not PretrainedConfig


def is_countable(config: PretrainedConfig) -> bool:
    """Does transformers have a model class for this configuration? The text part of a multimodal one may have none."""
    return has_own_code(config) or type(config) in MODEL_MAPPING


def has_own_code(config: PretrainedConfig) -> bool:
    """Does this configuration's class come from the model's own remote code?"""
    return is_runnable(config) and not type(config).__module__.startswith("transformers.models.")


def writes_text(config: PretrainedConfig) -> bool:
    """Is this the configuration of a decoder? transformers can also open encoders such as BERT as one."""
    if has_own_code(config):
        return "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    # MusicGen, an encoder-decoder, has two parts for text, for which get_text_config raises ValueError.
    if config.is_encoder_decoder or (text := config.get_text_config()).is_encoder_decoder:
        return False
    if not is_runnable(config):
        return any(name.endswith(DECODER_CLASSES) for name in config.architectures or DECODER_CLASSES)
    causal = {config.model_type, text.model_type} & MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return bool(causal) and bool(getattr(config, "is_decoder", False))
    return bool(causal) or config.model_type in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES


def class_of(config: PretrainedConfig) -> Any:
    """The auto class that opens this configuration; AutoModel for a text part that has no causal class of its own.

    TargetError if transformers does not know the family.
    """
    if not is_runnable(config):
        raise TargetError(
            f"{config.name_or_path or 'the configuration'} is of family `{config.model_type}`, which transformers "
            f"{__version__} cannot run\n  wanted: a family that it knows\n"
            f"  do: install a newer transformers, or set target.trust_remote_code=true if the model brings its own code"
        )
    causal = has_own_code(config) or config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    multimodal = config.model_type in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    if multimodal and (not causal or config.get_text_config() is not config):
        return AutoModelForMultimodalLM
    return AutoModelForCausalLM if causal else AutoModel


def parameters(config: PretrainedConfig) -> int:
    """The exact number of parameters of a model with this configuration, counted on the meta device."""
    return counts(config).parameters


def counts(config: PretrainedConfig) -> Counts:
    """The parameters of a model with this configuration by kind, counted on the meta device.

    TargetError if transformers has no model for it, or cannot build it.
    """
    model = _on_meta(config)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    headless, tied = head is None, bool(getattr(config.get_text_config(), "tie_word_embeddings", False))
    output = embedding if headless else head.weight
    return Counts(
        parameters=int(model.num_parameters()) + (embedding.numel() if headless and not tied else 0),
        embedding=embedding.numel(),
        output=output.numel(),
        tied=tied if headless else output is embedding,
        experts=sum(p.numel() for name, p in model.named_parameters() if ".experts." in name),
    )


def vocabulary_tensors(config: PretrainedConfig) -> tuple[list[str], list[str]]:
    """The names of the input embedding and of the output layer; if tied, every name in both lists."""
    model = _on_meta(config)
    named = list(model.named_parameters(remove_duplicate=False))
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    layers = (embedding, embedding if output is None else output)
    embedding_names, output_names = ([name for name, weight in named if weight is layer.weight] for layer in layers)
    return embedding_names, output_names


def _on_meta(config: PretrainedConfig) -> Any:
    """A model with this configuration on the meta device, without weights."""
    found = f"transformers cannot build the `{config.model_type}` of {config.name_or_path or 'this configuration'}"
    with errors_explained(found, "check its config.json"), torch.device("meta"), _bounded():
        model = class_of(config).from_config(_with_defaults(deepcopy(config)), trust_remote_code=has_own_code(config))
        model.tie_weights()  # on the meta device a tied output layer starts as a separate matrix
    return model


@contextmanager
def _bounded() -> Iterator[None]:
    """ValueError as soon as the models that are built have more than MOST_PARTS modules and parameters."""
    parts = 0

    def count(*_: object) -> None:
        nonlocal parts
        parts += 1
        if parts > MOST_PARTS:
            raise ValueError(f"it has more than {MOST_PARTS:,} modules and parameters")

    hooks = [
        register_module_module_registration_hook(count),
        register_module_parameter_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _known(values: dict[str, Any]) -> bool:
    family = values.get("model_type")
    return isinstance(family, str) and family in CONFIG_MAPPING


def _with_defaults(config: PretrainedConfig) -> PretrainedConfig:
    """Add the keys that transformers 5 reads and some of its configurations lack (StableLM, Llama 4, Qwen2-VL)."""
    tied = bool(getattr(config, "tie_word_embeddings", False))
    for part in (config, config.get_text_config()):
        for key, value in (("pad_token_id", None), ("tie_word_embeddings", tied)):
            if not hasattr(part, key):
                setattr(part, key, value)
    return config
