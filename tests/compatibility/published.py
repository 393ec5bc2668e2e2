"""Tokenizers and configurations of published models as folders, from the files beside the repository."""

import base64
import importlib
import json
import shutil
import struct
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import LlamaTokenizerFast, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

SHARED = Path(__file__).parents[3] / "shared" / "data"
TOKENIZERS, CONFIGS = SHARED / "tokenizers", SHARED / "configs"
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # kinds of pieces in a sentencepiece model


def _copied(*folders: str):
    def write(folder: Path) -> None:
        for name in folders:
            shutil.copytree(TOKENIZERS / name, folder, dirs_exist_ok=True)

    return write


def _file(name: str):
    """A tokenizer.json without its configuration, which would be read as the family's own."""

    def write(folder: Path) -> None:
        PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZERS / name / "tokenizer.json")).save_pretrained(folder)

    return write


def _tiktoken(folder: Path) -> None:
    """Llama 3's ranks by transformers' own converter; the package that it reads the file with is one line."""

    def load(path: str) -> dict[bytes, int]:
        lines = (line.split() for line in Path(path).read_text().splitlines())
        return {base64.b64decode(token): int(rank) for token, rank in lines}

    converters = importlib.import_module("transformers.convert_slow_tokenizer")
    names = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(254))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(importlib.sys.modules, "tiktoken.load", types.SimpleNamespace(load_tiktoken_bpe=load))
        patch.setitem(importlib.sys.modules, "tiktoken", types.SimpleNamespace())
        path = str(TOKENIZERS / "llama-3" / "tokenizer.model")
        made = converters.TikTokenConverter(vocab_file=path, extra_special_tokens=names).converted()
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token=names[0], eos_token=names[1]).save_pretrained(folder)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a protobuf message: enough of the format for a sentencepiece model."""
    place = 0

    def varint() -> int:
        nonlocal place
        found = shift = 0
        while True:
            found |= (data[place] & 127) << shift
            place, shift = place + 1, shift + 7
            if data[place - 1] < 128:
                return found

    while place < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            length = {1: 8, 5: 4}.get(key & 7) or varint()
            place += length
            yield key >> 3, data[place - length : place]


def pieces(name: str) -> list[tuple[str, float, int]]:
    """(text, score, kind) of each piece, in order of ids."""
    found = []
    for number, value in _fields((TOKENIZERS / name / "tokenizer.model").read_bytes()):
        if number == 1:
            piece = dict(_fields(value))
            found.append((piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0], piece.get(3, NORMAL)))
    return found


def _sentencepiece(name: str):
    def write(folder: Path) -> None:
        known = pieces(name)
        vocab = {text: number for number, (text, _, _) in enumerate(known)}
        merges = generate_merges(vocab, {text: score for text, score, kind in known if kind == NORMAL})
        made = LlamaTokenizerFast(vocab=vocab, merges=merges, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
        named = [text for text, _, kind in known if kind in (CONTROL, USER_DEFINED)]
        made.add_special_tokens({"additional_special_tokens": named})
        made.save_pretrained(folder)

    return write


# name: configuration, keys of it that the model has otherwise, tokenizer.
MODELS = {
    "Qwen2.5-0.5B": ("Qwen2.5-0.5B", {}, _copied("qwen2.5")),
    "Qwen2.5-7B": ("Qwen2.5-7B-Instruct", {}, _copied("qwen2.5")),
    "Qwen3-8B": ("Qwen3-8B", {}, _copied("qwen2.5", "qwen3")),
    "Llama-3.1-8B": ("Llama-3.1-8B", {}, _tiktoken),
    "Llama-3.2-1B": ("Llama-3.2-1B", {}, _tiktoken),
    "Phi-3-mini": ("Phi-3-mini-4k-instruct", {}, _copied("phi-3-mini")),
    "TinyLlama": ("TinyLlama-1.1B", {}, _sentencepiece("llama-2")),
    "SmolLM2": ("SmolLM2-135M", {}, _file("smollm2")),
    "Mistral-v0.1": ("Mistral-7B-v0.3", {"vocab_size": 32000}, _sentencepiece("mistral-v1")),
    "Mistral-v0.3": ("Mistral-7B-v0.3", {}, _sentencepiece("mistral-v3")),
    "GPT-2": ("gpt2", {}, _copied("gpt2")),
    "Pythia": ("pythia-160m", {}, _file("gpt-neox-20b")),
    "OLMo-1": ("pythia-160m", {}, _file("olmo-1")),
}


class Published:
    """`published(name)`: the folder of a model without its weights, made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: dict[object, Path] = {}

    def __call__(self, name: str) -> Path:
        if not CONFIGS.is_dir():
            pytest.skip("no published tokenizers and configurations at ../shared/data, beside the repository")
        made = self.folder / name
        if not made.exists():
            config, keys, write = MODELS[name]
            if write in self.written:
                shutil.copytree(self.written[write], made)
            else:
                made.mkdir()
                write(made)
            self.written[write] = made
            content = json.loads((CONFIGS / config / "config.json").read_text()) | keys
            (made / "config.json").write_text(json.dumps(content))
        return made
