"""Open a model of any causal family: its configuration, tokenizer and weights; model_folder.py finds its folder.

Every function takes a `Model`: a Path is a local folder; a string is a hub id, a local folder, a GGUF file or the name
of a pair; a TargetPart adds the hub revision, and whether remote code and pickled weights are allowed.
"""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.configuration_utils import PretrainedConfig

from fastdraft.models.architecture import class_of, read_config
from fastdraft.models.config_checks import SPECIAL_IDS
from fastdraft.models.file_errors import errors_explained, read_json
from fastdraft.models.model_folder import PICKLED, TOKENIZER_FILES, Model, as_part, digest, folder_of
from fastdraft.models.weight_files import check_floats
from fastdraft.system.errors import TargetError
from fastdraft.system.progress import suppressed_logs

__all__ = [
    "PICKLED",
    "TOKENIZER_FILES",
    "Model",
    "as_part",
    "cache_name",
    "digest",
    "false_alarms",
    "folder_of",
    "load",
    "open_config",
    "open_generation_config",
    "open_model",
    "open_tokenizer",
]

# transformers 5 warns about "an incorrect regex pattern" for every local tokenizer of more than 100,000 ids, unless
# config.json names the version that wrote it. The warning can be true of these families only.
MISTRAL = ("mistral", "mistral3", "voxtral", "ministral", "pixtral")
MISTRAL_WARNING = "with an incorrect regex pattern"


def open_config(model: Model) -> PretrainedConfig:
    """The model's configuration; TargetError if it is damaged or is not that of a causal language model.

    A family unknown to transformers gives a plain PretrainedConfig, which is enough to derive a draft's shape.
    """
    return read_config(folder_of(model, weights=False), as_part(model).trust_remote_code)


def open_generation_config(folder: Path) -> GenerationConfig:
    """generation_config.json, an empty one if there is none; TargetError if it is damaged."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return GenerationConfig()
    do = "fix it, or remove it"
    for key, value in read_json(file, do).items():
        ids = value if isinstance(value, list) else [value]
        if key in SPECIAL_IDS and not all(i is None or (type(i) is int and i >= 0) for i in ids):
            raise TargetError(f"{file}: {key} is {value!a}\n  wanted: a token id, or a list of them\n  do: {do}")
    with errors_explained(f"{file} cannot be read", do):
        return GenerationConfig.from_pretrained(folder)


def open_tokenizer(model: Model) -> PreTrainedTokenizerFast:
    """The model's tokenizer; TargetError if there is none, it is damaged, or it is not a fast one."""
    folder = folder_of(model, weights=False)
    do, wanted = "copy all of the model's tokenizer files there", ", ".join(TOKENIZER_FILES[:3])
    with (
        errors_explained(f"no tokenizer can be read in {folder}", do, wanted),
        suppressed_logs("transformers", *false_alarms(folder)),
    ):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=as_part(model).trust_remote_code)
        # Without tokenizer files transformers 5 builds the family's default tokenizer with an empty vocabulary, and
        # without tokenizer_config.json one that may be unable to encode.
        if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
            raise ValueError(f"it has special tokens only: {', '.join(tokenizer.all_special_tokens)}")
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ValueError("it is not a fast tokenizer")
        tokenizer("a")
    return tokenizer


def false_alarms(folder: Path) -> tuple[str, ...]:
    """Spurious tokenizer warnings of transformers for the model in a folder."""
    family = read_json(folder / "config.json").get("model_type")
    return () if family in MISTRAL else (MISTRAL_WARNING,)


def open_model(model: Model, device: torch.device | str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model on a device, in eval mode and without gradients; raises like `load`."""
    opened: PreTrainedModel = load(model, dtype).to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
    return opened


def load(model: Model, dtype: torch.dtype) -> PreTrainedModel:
    """The model on the CPU; TargetError if its weights are missing, damaged or do not fit its configuration."""
    part, folder = as_part(model), folder_of(model)
    config = read_config(folder, part.trust_remote_code)
    if getattr(config, "quantization_config", None) is None:
        check_floats(folder)
    do = "check that the download is complete, and that config.json belongs to it"
    with errors_explained(f"the weights in {folder} cannot be loaded", do):
        loaded: Any = class_of(config).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            trust_remote_code=part.trust_remote_code,
            use_safetensors=None if part.allow_pickle else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # its own error names no tensor; that below does
        )
    opened: PreTrainedModel = loaded[0]
    if mismatched := sorted(loaded[1]["mismatched_keys"]):
        name, stored, wanted = mismatched[0]
        raise TargetError(
            f"{len(mismatched)} of the weights in {folder} have another shape than in config.json, first {name} "
            f"{tuple(stored)}\n  wanted: {tuple(wanted)}\n  do: {do}"
        )
    if missing := sorted(loaded[1]["missing_keys"]):
        raise TargetError(
            f"the weights in {folder} lack {len(missing)} of the model's tensors, first {missing[0]}\n  do: {do}"
        )
    return opened


def cache_name(model: PreTrainedModel) -> str:
    """The name of the KV cache in this model's forward and its output: `cache`, or `past_key_values` in old releases.

    Newer transformers warn about `past_key_values`, and 5.40 removes it. Delete this function when the oldest
    transformers that pyproject.toml allows has `cache`.
    """
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
