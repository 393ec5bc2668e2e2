"""OpenVINO GenAI: the time of a model's steps; a model's logits."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdraft.data.shards import Tokens
from fastdraft.models.logits_reader import Logits
from fastdraft.models.openvino_llama import EXTRA, block_seconds, decode_seconds
from fastdraft.system.optional_packages import need

TOKENS, REPEATS = 64, 5
# f32 throughout, and activations as they are: with the defaults of this engine no two greedy texts need be equal.
STRICT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}


def open_folder(folder: Path, device: str = "CPU", **settings: Any) -> Any:
    """An exported folder (`export_openvino`) as an LLMPipeline; MissingExtra where OpenVINO GenAI is not installed."""
    return need("openvino_genai", EXTRA).LLMPipeline(folder, device, **settings)


def step_seconds(folder: Path, block_tokens: int = 1, tokens: int = TOKENS, repeats: int = REPEATS) -> float:
    """Measured seconds of a step on so many tokens at once, the median of repeats.

    One token: steps of a greedy completion of `tokens`. More: forwards over a block with nothing before it.
    """
    pipeline = open_folder(folder)
    if block_tokens > 1:
        return block_seconds(pipeline, block_tokens, repeats)
    return median(decode_seconds(pipeline, tokens) for _ in range(repeats))


def logits_of(folder: Path) -> Logits:
    """The model in a folder on the CPU, as exactly as it computes: only its weights are rounded."""
    compiled = need("openvino", EXTRA).Core().compile_model(folder / "openvino_model.xml", "CPU", STRICT)
    named = {port.get_any_name() for port in compiled.inputs}

    def logits(text: Tokens) -> Tensor:
        inputs = {
            "input_ids": text[None],
            "attention_mask": np.ones_like(text)[None],
            "position_ids": np.arange(len(text))[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        found = compiled.create_infer_request().infer({key: inputs[key] for key in named})["logits"]
        return torch.from_numpy(found[0].copy())

    return logits
