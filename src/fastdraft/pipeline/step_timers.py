"""Seconds of a decoding step in an engine. The search over depths predicts speed from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fastdraft.benchmark import engine_transformers
from fastdraft.exporters.openvino import export_openvino
from fastdraft.models.openvino import EXTRA, step_seconds
from fastdraft.models.pretrained import open_model
from fastdraft.system import precision
from fastdraft.system.optional_packages import need

# (model's folder, tokens of a block) -> seconds of a step
StepTimer = Callable[[Path, int], float]


@contextmanager
def _openvino() -> Iterator[StepTimer]:
    """OpenVINO GenAI, int8, on the CPU; each model is exported once."""
    for module in ("openvino_genai", "optimum.intel"):  # reported now, not after the pilots have been trained
        need(module, EXTRA)
    exported: dict[Path, Path] = {}
    with TemporaryDirectory(prefix="fastdraft-search-") as scratch:

        def seconds(model: Path, block_tokens: int) -> float:
            if model not in exported:
                export_openvino(model, Path(scratch, str(len(exported))))
                exported[model] = Path(scratch, str(len(exported)))
            return step_seconds(exported[model], block_tokens)

        yield seconds


@contextmanager
def _transformers() -> Iterator[StepTimer]:
    """transformers on the first accelerator, else the CPU: the median of forwards with a filled cache."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")

    def seconds(folder: Path, block_tokens: int) -> float:
        model = open_model(folder, device, precision.fastest(device).dtype)
        return engine_transformers.step_seconds(model, block_tokens)

    yield seconds


TIMERS: dict[str, Callable[[], AbstractContextManager[StepTimer]]] = {
    "openvino": _openvino,
    "transformers": _transformers,
}
