"""Export as a Hugging Face folder, safetensors in a chosen precision, for transformers, vLLM and SGLang."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from fastdraft.data.shards import Tokens
from fastdraft.exporters.proof import Opened, original_text
from fastdraft.models.pretrained import TOKENIZER_FILES, load, open_tokenizer
from fastdraft.system.errors import ExportError

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def export_huggingface(model_folder: Path, destination: Path, weights: str) -> list[str]:
    """Write the model in another precision with its tokenizer files; ExportError if a weight exceeds its range."""
    model = load(model_folder, torch.float32).requires_grad_(False)
    precision = PRECISIONS[weights]
    largest = max(float(weight.abs().max()) for weight in model.parameters())
    if not largest <= torch.finfo(precision).max:
        raise ExportError(
            f"a weight of the draft is {largest:.3g}, {weights} holds at most {torch.finfo(precision).max:.3g}\n"
            f"  do: --weights bf16 or fp32"
        )
    rounded: PreTrainedModel = model.to(precision)  # type: ignore[arg-type]
    rounded.save_pretrained(destination)
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (model_folder / name).is_file():
            shutil.copyfile(model_folder / name, destination / name)
    return []


def open_huggingface(folder: Path, longest_tokens: int) -> Opened:
    """The export in transformers, in its stored precision."""
    return _Opened(folder)


class _Opened:
    def __init__(self, folder: Path) -> None:
        self.engine = f"transformers {transformers.__version__}"
        self._model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        self._tokenizer = open_tokenizer(folder)

    def greedy(self, prompt: Tokens, tokens: int) -> Tokens:
        return original_text(self._model, prompt, tokens)

    @torch.inference_mode()
    def logits(self, text: Tokens) -> Tensor:
        (logits_TV,) = self._model(input_ids=torch.from_numpy(text)[None], use_cache=False).logits.float()
        return cast(Tensor, logits_TV)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text).input_ids
        return ids
