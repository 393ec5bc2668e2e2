"""Open a target: the packaged one, a local folder, or a hub id, always by way of files in a folder."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import ClassVar

import torch
import xxhash
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.configuration_utils import PretrainedConfig

from fastdraft.errors import TargetError, VocabularyMismatch
from fastdraft.recipe import TargetPart
from fastdraft.records import Card

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)


class TargetCard(Card):
    """What a draft must know of its target. Sizes in rows and tokens; `digest` changes when any file of it does."""

    kind: ClassVar[str] = "target"
    name: str
    family: str
    parameters: int
    vocab_rows: int
    tokenizer_tokens: int
    context_tokens: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    adds_bos: bool
    digest: str


def folder_of(part: TargetPart) -> Path:
    """The folder that holds the target's files, fetched from the hub where it is not a local one.

    TargetError where there is none, or only pickled weights that the user has not asked for.
    """
    if part.path == "demo":
        return Path(str(resources.files("fastdraft.demo").joinpath("target")))
    local = Path(part.path).expanduser()
    folder = local if local.exists() or part.path.startswith((".", "/", "~")) else _fetched(part)
    if not (folder / "config.json").is_file():
        raise TargetError(f"no config.json in {folder}\n  do: give the folder of a model, a hub id, or `demo`")
    weights = [file for file in folder.iterdir() if file.suffix in (".safetensors", *PICKLED)]
    if weights and not part.allow_pickle and all(file.suffix in PICKLED for file in weights):
        raise TargetError(
            f"{folder} has pickled weights only ({weights[0].name}), which can run code when they are loaded\n"
            f"  wanted: *.safetensors\n  do: convert them, or set target.allow_pickle=true if you trust their maker"
        )
    return folder


def card(part: TargetPart) -> dict[str, object]:
    """All fields of a TargetCard but its key and cost.

    TargetError where config or tokenizer cannot be read; VocabularyMismatch where they do not fit together.
    """
    folder = folder_of(part)
    config, tokenizer = open_config(part), open_tokenizer(part)
    text = config.get_text_config()
    if len(tokenizer) > text.vocab_size:
        raise VocabularyMismatch(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the embedding {text.vocab_size} rows\n"
            f"  wanted: at least a row a token\n  do: take the tokenizer that the model was trained with, or resize it"
        )
    return {
        "name": part.path,
        "family": text.model_type,
        "parameters": parameters(config),
        "vocab_rows": text.vocab_size,
        "tokenizer_tokens": len(tokenizer),
        "context_tokens": text.max_position_embeddings,
        "bos_id": tokenizer.bos_token_id,
        "eos_ids": _eos_ids(config, tokenizer),
        "adds_bos": tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id],
        "digest": digest(part),
    }


def digest(part: TargetPart) -> str:
    """Of config and tokenizer all bytes, of weights the name, size, head and tail: gigabytes are not read for it."""
    found = xxhash.xxh3_64()
    for file in sorted(folder_of(part).iterdir()):
        if file.name == "config.json" or file.name in TOKENIZER_FILES:
            found.update(file.name.encode() + file.read_bytes())
        elif file.suffix in (".safetensors", *PICKLED):
            with file.open("rb") as handle:
                head = handle.read(1 << 20)
                handle.seek(max(file.stat().st_size - (1 << 20), 0))
                found.update(f"{file.name}:{file.stat().st_size}".encode() + head + handle.read(1 << 20))
    return str(found.hexdigest())


def open_config(part: TargetPart) -> PretrainedConfig:
    """The target's configuration; TargetError where it is not one of a causal language model."""
    folder = folder_of(part)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=part.trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        raise TargetError(f"{folder / 'config.json'} cannot be read: {error}\n  do: check the folder") from error
    return config


def open_tokenizer(part: TargetPart) -> PreTrainedTokenizerFast:
    """The target's tokenizer, which must be a fast one; TargetError where there is none."""
    folder = folder_of(part)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=part.trust_remote_code)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise TargetError(
            f"no tokenizer can be read in {folder}: {error}\n"
            f"  wanted: {', '.join(TOKENIZER_FILES[:3])}\n  do: copy the model's tokenizer files there"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TargetError(f"the tokenizer in {folder} has no fast form\n  do: convert it to tokenizer.json")
    return tokenizer


def open_model(part: TargetPart, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The target itself, ready to answer; TargetError where its weights are missing or do not fit its config."""
    folder = folder_of(part)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=part.trust_remote_code,
            use_safetensors=None if part.allow_pickle else True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise TargetError(
            f"the weights in {folder} cannot be loaded: {error}\n  do: check that the download is complete"
        ) from error
    opened: PreTrainedModel = model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
    return opened


def parameters(config: PretrainedConfig) -> int:
    """The exact number of parameters of a model with this configuration, counted on the meta device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return int(model.num_parameters())


def _fetched(part: TargetPart) -> Path:
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", *(["*.bin"] if part.allow_pickle else [])]
    try:
        return Path(snapshot_download(part.path, revision=part.revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TargetError(
            f"{part.path} is no local folder and cannot be fetched from the hub: {reason}\n"
            f"  do: check the name, the network, and `hf auth login` for a gated model; or give a local folder"
        ) from error


def _eos_ids(config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Every id that ends a text, the tokenizer's own first."""
    named = config.get_text_config().eos_token_id
    ids = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    found = tuple(dict.fromkeys(int(i) for i in ids if i is not None))
    if not found:
        raise TargetError("the target names no end-of-text token\n  do: set eos_token_id in its config.json")
    return found
