"""OpenVINO GenAI: the time of a model's steps."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from fastdraft.cost.engine import EXTRA, block_seconds, decode_seconds
from fastdraft.extras import need

TOKENS, REPEATS = 64, 5


def open_folder(folder: Path, device: str = "CPU") -> Any:
    """An exported folder (`export_openvino`) as an LLMPipeline; MissingExtra where OpenVINO GenAI is not installed."""
    return need("openvino_genai", EXTRA).LLMPipeline(folder, device)


def step_seconds(folder: Path, block_tokens: int = 1, tokens: int = TOKENS, repeats: int = REPEATS) -> float:
    """Measured seconds of a step on so many tokens at once, the median of repeats.

    One token: steps of a greedy completion of `tokens`. More: forwards over a block with nothing before it.
    """
    pipeline = open_folder(folder)
    if block_tokens > 1:
        return block_seconds(pipeline, block_tokens, repeats)
    return median(decode_seconds(pipeline, tokens) for _ in range(repeats))
