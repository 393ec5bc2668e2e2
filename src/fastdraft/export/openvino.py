"""OpenVINO IR, for OpenVINO GenAI and the AI PC: optimum-intel's export, nncf's weight compression.

The tokenizer is converted from the folder's own files, and they are copied byte for byte: transformers 5 can write a
tokenizer that encodes otherwise (docs: the engines' traps).
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastdraft.config import TargetPart
from fastdraft.data.shards import Tokens
from fastdraft.export.proof import Opened
from fastdraft.models.openvino import STRICT, logits_of
from fastdraft.models.openvino_llama import EXTRA, GROUP, write_tokenizer
from fastdraft.models.target import TOKENIZER_FILES, open_tokenizer
from fastdraft.synthesize.engine_openvino import tracing
from fastdraft.system.errors import ExportError
from fastdraft.system.files import atomic_write, short_writes_explained, write_json
from fastdraft.system.optional_packages import need

# nncf's settings by the precision of the weights; of int4 the embedding and the head stay int8, symmetric where the
# rest is: the NPU wants all of them so. Rows that GROUP does not divide keep one scale a row.
COMPRESSION: dict[str, dict[str, Any] | None] = {
    "fp16": None,
    "int8": {"bits": 8, "sym": False},
    "int8_sym": {"bits": 8, "sym": True},
    "int4": {"bits": 4, "sym": False, "group_size": GROUP, "group_size_fallback": "adjust"},
    "int4_sym": {
        **{"bits": 4, "sym": True, "group_size": GROUP, "group_size_fallback": "adjust"},
        "backup_precision": "int8_sym",
    },
}


def export_openvino(model_folder: Path, destination: Path, weights: str = "int8") -> list[str]:
    """A folder with model, tokenizer and detokenizer, whole or not at all; what a reader of it must know, a line each.

    MissingExtra where optimum-intel is not installed; ExportError where it cannot convert this family.
    """
    need("optimum.intel", EXTRA)
    with atomic_write(destination) as part, short_writes_explained(), tracing(model_folder), _quiet():
        model = _converted(model_folder, weights)
        (model if COMPRESSION[weights] else model.half()).save_pretrained(part)
        _forget_places(part / "openvino_config.json")
        for name in (*TOKENIZER_FILES, "generation_config.json"):
            if (model_folder / name).is_file():
                shutil.copyfile(model_folder / name, part / name)
        write_tokenizer(open_tokenizer(TargetPart(path=str(model_folder.resolve()))), part)
    return []


def _forget_places(file: Path) -> None:
    """Without the path of this machine that optimum-intel writes down as that of a tokenizer for calibration."""
    if file.is_file():  # of weights that are rounded
        config = json.loads(file.read_text(encoding="utf-8"))
        config["quantization_config"]["tokenizer"] = None
        write_json(file, config)


def _converted(model_folder: Path, weights: str) -> Any:
    """The model as optimum-intel has it."""
    intel, settings = need("optimum.intel", EXTRA), COMPRESSION[weights]
    compression = intel.OVWeightQuantizationConfig(**settings) if settings else None
    try:
        return intel.OVModelForCausalLM.from_pretrained(
            model_folder, export=True, compile=False, load_in_8bit=False, quantization_config=compression
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"optimum-intel cannot convert the model in {model_folder}: {told}\n  do: choose another format"
        ) from error


def open_openvino(folder: Path, longest_tokens: int) -> Opened:
    """The folder in OpenVINO GenAI on the CPU, as exactly as it computes: only the weights are rounded."""
    return _Opened(folder)


class _Opened:
    def __init__(self, folder: Path) -> None:
        self._genai, self._openvino = need("openvino_genai", EXTRA), need("openvino", EXTRA)
        self.engine = f"OpenVINO GenAI {self._genai.__version__}"
        self._pipeline = self._genai.LLMPipeline(folder, "CPU", **STRICT)
        self._logits = logits_of(folder)
        self._tokenizer = self._genai.Tokenizer(folder)

    def greedy(self, prompt: Tokens, tokens: int) -> Tokens:
        inputs = self._genai.TokenizedInputs(*map(self._openvino.Tensor, (prompt[None], np.ones_like(prompt)[None])))
        config = self._genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        return np.array(self._pipeline.generate(inputs, config).tokens[0])

    def logits(self, text: Tokens) -> Tensor:
        return self._logits(text)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).input_ids.data[0].tolist()
        return ids


@contextmanager
def _quiet() -> Iterator[None]:
    """Without nncf's tables; its bar goes beside the results."""
    known = logging.getLogger("nncf").level
    with redirect_stdout(sys.stderr):
        logging.getLogger("nncf").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("nncf").setLevel(known)
