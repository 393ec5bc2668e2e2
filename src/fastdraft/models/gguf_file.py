"""A GGUF file, the model file of llama.cpp, LM Studio and Ollama, opened as the folder of an ordinary model.

The folder is written once, into the user's cache, under a digest of the file's content. It has the weights dequantised:
the draft is then trained for the model that is served, quantised as it is. Everything else opens the folder.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import xxhash
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from fastdraft.models.file_errors import errors_explained
from fastdraft.models.gguf_tokenizer import VOCABULARY, end_ids, tokenizer_config, tokenizer_json
from fastdraft.system.errors import TargetError
from fastdraft.system.files import atomic_write, cache_folder, disk_full_explained, remove
from fastdraft.system.progress import log_line, suppressed_logs

SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
TOKENIZER = "tokenizer.ggml."
# llama.cpp divides rotary frequencies by these factors, one per pair of dimensions.
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# Dequantised weights are stored in 16 bits: rounding them to 11 bits adds 2^-12 of their size, where llama.cpp's own
# products round activations to 8 bits. Weights that the file holds unquantised keep their type.
STORED = {GGMLQuantizationType.F32: torch.float32, GGMLQuantizationType.BF16: torch.bfloat16}


def folder_of(file: Path, weights: bool = True) -> Path:
    """The folder of the model in a GGUF file; without weights it is made from the header alone.

    file: the file, or the first part of a split one. TargetError if it is missing, damaged, of another version, or
    holds a model or a quantisation that is not known.
    """
    parts = _parts(file)
    name = _digest(tuple((part, part.stat().st_size, part.stat().st_mtime_ns) for part in parts))
    whole, header = cache_folder("gguf", name), cache_folder("gguf", f"{name}-header")
    if whole.is_dir() or (header.is_dir() and not weights):
        return whole if whole.is_dir() else header
    destination = whole if weights else header
    if weights:
        log_line(f"{file.name}: its weights are dequantised once, into {whole}")
    damaged = errors_explained(
        f"{file} cannot be read as GGUF",
        "check that its download is complete, or give the model's folder or hub id",
        wanted="a whole file of version 2 or 3, of a causal language model",
    )
    # A full disk is explained within `damaged`, which would call it a damaged file.
    with atomic_write(destination) as part, damaged, disk_full_explained(destination):
        part.mkdir(parents=True)
        _write(parts, part, weights)
    return destination


def _parts(file: Path) -> list[Path]:
    """All parts of a split file, the first one first; else the file alone."""
    match = SPLIT.search(file.name)
    count = int(match[2]) if match else 1
    names = [file.name.replace(match[0], f"-{i + 1:05}-of-{count:05}.gguf") for i in range(count)] if match else []
    parts = [file.with_name(name) for name in names] or [file]
    if missing := [part for part in parts if not part.is_file()]:
        found = f"{len(parts) - len(missing)} of its {count} parts" if count > 1 else "no such file"
        raise TargetError(f"{missing[0]}: {found}\n  wanted: a GGUF file\n  do: check the path, or download it again")
    return parts


@lru_cache
def _digest(parts: tuple[tuple[Path, int, int], ...]) -> str:
    """Hash of the content of all parts; sizes and times of change only keep the cache of this function correct."""
    state = xxhash.xxh3_128()
    for path, _, _ in parts:
        with path.open("rb") as handle:
            while block := handle.read(1 << 24):
                state.update(block)
    return str(state.hexdigest())


def _write(parts: list[Path], folder: Path, weights: bool) -> None:
    readers = [GGUFReader(part) for part in parts]
    metadata = {key: field.contents() for key, field in readers[0].fields.items()}
    tokenizer = {key.removeprefix(TOKENIZER): value for key, value in metadata.items() if key.startswith(TOKENIZER)}
    definition = tokenizer_json(tokenizer, str(metadata.get("general.name", "")), parts[0])
    ends, begin = end_ids(tokenizer), tokenizer.get("bos_token_id")
    special = {"bos_token_id": begin, "eos_token_id": ends[0] if ends else None}
    special |= {"pad_token_id": tokenizer.get("padding_token_id")}
    config = _config(parts[0], metadata, readers, folder, special)
    settings = tokenizer_config(tokenizer, metadata.get("tokenizer.chat_template"), config.max_position_embeddings)
    (_load(parts, config, readers, folder) if weights else config).save_pretrained(folder)
    for name, content in (
        ("tokenizer.json", definition),
        ("tokenizer_config.json", settings),
        ("generation_config.json", {"bos_token_id": begin, "eos_token_id": ends}),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    if licence := metadata.get("general.license"):
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n", encoding="utf-8")
    # An exported draft takes over the tokenizer's keys.
    _write_keys(readers[0], folder / VOCABULARY, lambda key: key.startswith("tokenizer."))


def _config(
    file: Path, metadata: Mapping[str, Any], readers: list[GGUFReader], folder: Path, special: Mapping[str, int | None]
) -> PretrainedConfig:
    """The configuration as transformers reads it, with the rotary scaling that transformers leaves out."""
    # transformers takes 5 s to read the vocabulary of a file with 49,152 tokens, and uses its length alone.
    keys = folder / "keys.gguf"
    _write_keys(readers[0], keys, lambda key: not key.startswith("tokenizer."))
    with suppressed_logs("transformers"):
        fields = load_gguf_checkpoint(str(keys))["config"]
    remove(keys, inside=keys.parent)
    tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise TargetError(f"{file} has no weights (token_embd.weight)\n  do: choose a GGUF file of a whole model")
    fields |= {"vocab_size": int(tensors["token_embd.weight"].shape[-1])}
    fields |= {"tie_word_embeddings": "output.weight" not in tensors}
    fields |= special
    if head_size := metadata.get(f"{metadata['general.architecture']}.attention.key_length"):
        fields |= {"head_dim": head_size}  # which transformers does not read for every family
    largest = max(tensors.values(), key=lambda tensor: int(tensor.n_elements))
    fields |= {"dtype": STORED.get(largest.tensor_type, torch.float16)}
    family = fields.pop("model_type")
    config: PretrainedConfig = AutoConfig.for_model(family, **fields)
    factors = {name: tensor.data.tolist() for name, tensor in tensors.items() if name in ROPE_TENSORS}
    if scaling := _rope_scaling(file, metadata, factors, config):
        config.rope_parameters = config.rope_parameters | scaling
    return config


def _rope_scaling(
    file: Path, metadata: Mapping[str, Any], factors: Mapping[str, list[float]], config: PretrainedConfig
) -> dict[str, Any]:
    """The keys of `rope_parameters` that differ from plain rotary positions."""
    prefix = f"{metadata['general.architecture']}.rope.scaling."
    scaling = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    original = scaling.get("original_context_length")
    if "rope_freqs.weight" in factors:
        # The published models of this kind differ in `factor` alone: the largest of the factors.
        found = factors["rope_freqs.weight"]
        llama3 = {"rope_type": "llama3", "factor": max(found), **LLAMA3_SCALING}
        expected = llama3_factors(config.rope_parameters | llama3, 2 * len(found))
        if torch.allclose(torch.tensor(found), expected, rtol=1e-4):
            return llama3
        kind = f"unknown (rope_freqs from {min(found):g} to {max(found):g})"
        raise _unknown_rope(file, kind)
    if "rope_factors_long.weight" in factors:
        return {
            "rope_type": "longrope",
            "long_factor": factors["rope_factors_long.weight"],
            "short_factor": factors["rope_factors_short.weight"],
            "original_max_position_embeddings": original,
            "attention_factor": scaling.get("attn_factor"),
        }
    kind = scaling.get("type", "none")
    if kind == "linear":
        return {"rope_type": "linear", "factor": scaling["factor"]}
    if kind == "yarn":
        return {"rope_type": "yarn", "factor": scaling["factor"], "original_max_position_embeddings": original}
    if kind != "none":
        raise _unknown_rope(file, kind)
    return {}


def _unknown_rope(file: Path, kind: str) -> TargetError:
    return TargetError(
        f"{file} has rotary positions of type {kind}\n  wanted: none, linear, yarn, longrope or those of Llama 3\n"
        f"  do: give the model's folder or hub id"
    )


def llama3_factors(rope: Mapping[str, Any], head_size: int) -> Tensor:
    """(head_size / 2) plain over scaled frequency: 1 for short wavelengths, `factor` for long ones."""
    waves = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    low, high, original = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    smooth = (original / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / rope["factor"] + smooth)
    factors = torch.where(waves < original / high, 1.0, torch.where(waves > original / low, rope["factor"], between))
    return factors.float()


def _load(parts: list[Path], config: PretrainedConfig, readers: list[GGUFReader], folder: Path) -> PreTrainedModel:
    """The model with its weights dequantised; TargetError if one of the file's tensors has no place in it."""
    whole = parts[0] if len(parts) == 1 else _joined(readers, folder / "joined.gguf")
    with suppressed_logs("transformers"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            whole.parent, gguf_file=whole.name, config=config, dtype=config.dtype, output_loading_info=True
        )
    model: PreTrainedModel = loaded[0]
    stored = sum(int(t.n_elements) for reader in readers for t in reader.tensors if t.name not in ROPE_TENSORS)
    # transformers leaves out tensors that it has no place for, such as biases.
    if loaded[1]["missing_keys"] or stored != model.num_parameters():
        raise TargetError(
            f"{parts[0]} holds {stored:,} weights, a `{config.model_type}` in transformers {model.num_parameters():,}; "
            f"{len(loaded[1]['missing_keys'])} of its tensors are not in the file\n"
            f"  do: give the model's folder or hub id"
        )
    if whole not in parts:
        remove(whole, inside=whole.parent)
    # transformers 5.24 calls the dequantised model quantised, and does not save it. The same tensors go into another.
    with torch.device("meta"):
        plain: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain


def _joined(readers: list[GGUFReader], destination: Path) -> Path:
    """All parts as one file, which transformers can read."""
    with closing(GGUFWriter(destination, _architecture(readers[0]))) as writer:
        copy_keys(readers[0], writer)
        for reader in readers:
            for tensor in reader.tensors:
                writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return destination


def _write_keys(reader: GGUFReader, destination: Path, chosen: Callable[[str], bool]) -> None:
    """A GGUF file with some of the keys and no weights."""
    with closing(GGUFWriter(destination, _architecture(reader))) as writer:
        copy_keys(reader, writer, chosen)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()


def copy_keys(reader: GGUFReader, writer: GGUFWriter, chosen: Callable[[str], bool] = lambda _: True) -> None:
    """Give a new file the chosen keys of another one, without those that the writer writes itself."""
    for key, field in reader.fields.items():
        if chosen(key) and not key.startswith(("GGUF.", "general.architecture", "split.")):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)


def _architecture(reader: GGUFReader) -> str:
    return str(reader.fields["general.architecture"].contents())
