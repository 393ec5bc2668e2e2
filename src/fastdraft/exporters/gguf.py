"""Export as GGUF, the file of llama.cpp, LM Studio and Ollama, with the `gguf` package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdraft.data.shards import Tokens
from fastdraft.exporters import gguf_families as families
from fastdraft.exporters.gguf_vocabulary import Vocabulary, read_vocabulary
from fastdraft.exporters.proof import Opened
from fastdraft.models.gguf_file import copy_keys
from fastdraft.models.gguf_tokenizer import VOCABULARY
from fastdraft.models.pretrained import load
from fastdraft.system.errors import ExportError
from fastdraft.system.files import short_writes_explained
from fastdraft.system.optional_packages import need

EXTRA = "llamacpp"
LARGEST_HALF = float(np.finfo(np.float16).max)
BLOCK = 32  # weights that share a scale in q8_0 and q4_0
# In q4_0 files these stay q8_0, nearly as in llama.cpp's own quantiser: predictions depend most on the output layer.
TOKEN_TENSORS = ("token_embd.weight", "output.weight")


class _Kind(NamedTuple):
    """Names of ggml types: of matrices, of TOKEN_TENSORS, and of the whole file."""

    matrices: str
    tokens: str
    file: str


KINDS = {
    "f16": _Kind("F16", "F16", "MOSTLY_F16"),
    "q8_0": _Kind("Q8_0", "Q8_0", "MOSTLY_Q8_0"),
    "q4_0": _Kind("Q4_0", "Q8_0", "MOSTLY_Q4_0"),
    "f32": _Kind("F32", "F32", "ALL_F32"),
}


def export_gguf(model_folder: Path, destination: Path, weights: str) -> list[str]:
    """Write one file into the folder `destination`; returns notes for the model card.

    ExportError if llama.cpp does not support the family or the tokenizer, or a weight exceeds half precision.
    """
    model = load(model_folder, torch.float32)
    config = model.config.get_text_config()
    family = families.family_of(config)
    vocabulary = read_vocabulary(model_folder, config.vocab_size)
    destination.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(destination / file_name(weights), family.arch)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("draft")
    writer.add_description("a draft for speculative decoding, made by FastDraft")
    writer.add_file_type(gguf.LlamaFileType[KINDS[weights].file])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    families.write_sizes(writer, config, family)
    _write_vocabulary(writer, vocabulary, model_folder)
    notes = [*vocabulary.notes, *_window(config), *_write_tensors(writer, config, family, model.state_dict(), weights)]
    with short_writes_explained(), closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return notes


def file_name(weights: str) -> str:
    """The name of the file in its folder."""
    return f"draft-{weights}.gguf"


def _write_vocabulary(writer: Any, vocabulary: Vocabulary, folder: Path) -> None:
    """The keys of the target's own file if the target is a GGUF file.

    Otherwise special ids and flags are read from the files as llama.cpp's converter does, which also writes the target.
    """
    if (folder / VOCABULARY).is_file():
        copy_keys(gguf.GGUFReader(folder / VOCABULARY), writer)
        return
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    special = gguf.SpecialVocab(folder, n_vocab=len(vocabulary.tokens))
    special.add_to_gguf(writer, quiet=True)
    if "bos" not in special.add_special_token:
        writer.add_add_bos_token(vocabulary.adds_bos)
    if "eos" not in special.add_special_token:
        writer.add_add_eos_token(vocabulary.adds_eos)


def _write_tensors(
    writer: Any, config: Any, family: families.Family, weights: dict[str, Tensor], kind: str
) -> Iterator[str]:
    """Write the tensors, quantised; yields a note for each shape that cannot be quantised."""
    unquantised: dict[tuple[int, ...], int] = {}
    for name, weight in families.tensors(config, family, weights):
        values = weight.float().numpy()
        ggml_type = _type_of(name, values, kind)
        if ggml_type in ("Q8_0", "Q4_0") and values.shape[-1] % BLOCK:
            unquantised[values.shape] = unquantised.get(values.shape, 0) + 1
            ggml_type = "F16"
        stored = _stored(name, values, gguf.GGMLQuantizationType[ggml_type])
        writer.add_tensor(name, stored, raw_dtype=gguf.GGMLQuantizationType[ggml_type])
    for shape, count in unquantised.items():
        yield (
            f"{count} of {list(shape)} stay f16: rows of {shape[-1]} are no multiple of the {BLOCK} weights that share "
            f"a scale in {kind}"
        )


def _type_of(name: str, values: npt.NDArray[np.float32], kind: str) -> str:
    """Vectors stay exact: they are few, and ggml requires it."""
    if values.ndim == 1:
        return "F32"
    return KINDS[kind].tokens if name in TOKEN_TENSORS else KINDS[kind].matrices


def _stored(name: str, values: npt.NDArray[np.float32], kind: Any) -> npt.NDArray[Any]:
    """The values as ggml stores them; ExportError if one exceeds half precision, in which scales are stored."""
    largest = float(np.abs(values).max())
    if kind.name != "F32" and not largest <= LARGEST_HALF:
        raise ExportError(f"{name} holds {largest:.3g}, half precision at most {LARGEST_HALF:g}\n  do: --weights f32")
    if kind.name == "F32":
        return values
    quantised: npt.NDArray[Any] = gguf.quants.quantize(values, kind)
    return quantised


def _window(config: Any) -> Iterator[str]:
    """A note on sliding windows: llama.cpp attends to the whole text in these families."""
    window = getattr(config, "sliding_window", None)
    used = getattr(config, "use_sliding_window", True)
    if window and used and window < config.max_position_embeddings:
        yield f"llama.cpp reads this family without its sliding window: texts longer than {window} tokens may differ"


def open_gguf(folder: Path, longest_tokens: int) -> Opened:
    """The export in llama-cpp-python with a float32 KV cache, so that only the weights are rounded."""
    return _Opened(folder, longest_tokens)


class _Opened:
    def __init__(self, folder: Path, longest_tokens: int) -> None:
        llama_cpp = need("llama_cpp", EXTRA)
        self.engine = f"llama.cpp, llama-cpp-python {llama_cpp.__version__}"
        (file,) = folder.glob("*.gguf")
        self._model = llama_cpp.Llama(
            str(file),
            n_ctx=longest_tokens,
            n_threads=torch.get_num_threads(),
            n_threads_batch=torch.get_num_threads(),
            logits_all=True,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )

    def greedy(self, prompt: Tokens, tokens: int) -> Tokens:
        generated = self._model.generate(prompt.tolist(), temp=0.0, repeat_penalty=1.0)
        return np.array(list(islice(generated, tokens)))

    def logits(self, text: Tokens) -> Tensor:
        self._model.reset()
        self._model.eval(text.tolist())
        return torch.from_numpy(self._model.scores[: len(text)].copy())

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._model.tokenize(text.encode(), add_bos=True, special=True)
        return ids
