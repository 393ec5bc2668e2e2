"""OpenVINO IR, for OpenVINO GenAI and AI PCs: optimum-intel's export with nncf's weight compression.

The tokenizer is converted from the folder's own files, and these are copied byte for byte: transformers 5 can write a
tokenizer that encodes differently.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastdraft.data.shards import Tokens
from fastdraft.exporters.proof import Opened
from fastdraft.models.openvino import (
    EXACT,
    EXTRA,
    convert,
    generate_greedily,
    logits_of,
    open_pipeline,
    quiet_export,
    write_tokenizer,
)
from fastdraft.models.openvino_llama import GROUP
from fastdraft.models.pretrained import TOKENIZER_FILES, open_tokenizer
from fastdraft.system.files import atomic_write, short_writes_explained, write_json
from fastdraft.system.optional_packages import need

_INT4 = {"bits": 4, "group_size": GROUP, "group_size_fallback": "adjust"}
# nncf's settings by weight precision. At int4 embedding and head stay int8, symmetric if the rest is: the NPU requires
# one kind throughout. Rows whose length GROUP does not divide keep one scale per row.
COMPRESSION: dict[str, dict[str, Any] | None] = {
    "fp16": None,
    "int8": {"bits": 8, "sym": False},
    "int8_sym": {"bits": 8, "sym": True},
    "int4": {**_INT4, "sym": False},
    "int4_sym": {**_INT4, "sym": True, "backup_precision": "int8_sym"},
}


def export_openvino(model_folder: Path, destination: Path, weights: str = "int8") -> list[str]:
    """Write a folder with model, tokenizer and detokenizer, atomically; returns the notes for the model card (none).

    MissingExtra if optimum-intel is not installed; ExportError if it cannot convert this family.
    """
    need("optimum.intel", EXTRA)
    with atomic_write(destination) as part, short_writes_explained(), quiet_export(model_folder):
        model = convert(model_folder, COMPRESSION[weights])
        (model if COMPRESSION[weights] else model.half()).save_pretrained(part)
        _remove_local_path(part / "openvino_config.json")
        for name in (*TOKENIZER_FILES, "generation_config.json"):
            if (model_folder / name).is_file():
                shutil.copyfile(model_folder / name, part / name)
        write_tokenizer(open_tokenizer(model_folder), part)
    return []


def _remove_local_path(file: Path) -> None:
    """Remove the local folder that optimum-intel records as the calibration tokenizer of quantised weights."""
    if file.is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        config["quantization_config"]["tokenizer"] = None
        write_json(file, config)


def open_openvino(folder: Path, longest_tokens: int) -> Opened:
    """The export in OpenVINO GenAI on the CPU, computed exactly: only the weights are rounded."""
    return _Opened(folder)


class _Opened:
    def __init__(self, folder: Path) -> None:
        genai = need("openvino_genai", EXTRA)
        self.engine = f"OpenVINO GenAI {genai.__version__}"
        self._pipeline = open_pipeline(folder, **EXACT)
        self._logits = logits_of(folder)
        self._tokenizer = genai.Tokenizer(folder)

    def greedy(self, prompt: Tokens, tokens: int) -> Tokens:
        return np.array(generate_greedily(self._pipeline, prompt, tokens).tokens[0])

    def logits(self, text: Tokens) -> Tensor:
        return self._logits(text)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).input_ids.data[0].tolist()
        return ids
