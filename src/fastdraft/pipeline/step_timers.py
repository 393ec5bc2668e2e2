"""The seconds of a model's step in an engine, which a search compares depths by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fastdraft.bench import engine_transformers
from fastdraft.export.openvino import export_openvino
from fastdraft.models import openvino
from fastdraft.models.openvino_llama import EXTRA
from fastdraft.models.target import load
from fastdraft.system import precision
from fastdraft.system.optional_packages import need

# (model's folder, tokens of a block) -> seconds of a step
StepTimer = Callable[[Path, int], float]


@contextmanager
def _openvino() -> Iterator[StepTimer]:
    """OpenVINO GenAI, int8, on the CPU; each model is exported once."""
    for module in ("openvino_genai", "optimum.intel"):  # missed now, and not when pilots have been trained
        need(module, EXTRA)
    exported: dict[Path, Path] = {}
    with TemporaryDirectory(prefix="fastdraft-search-") as scratch:

        def seconds(model: Path, block_tokens: int) -> float:
            if model not in exported:
                export_openvino(model, Path(scratch, str(len(exported))))
                exported[model] = Path(scratch, str(len(exported)))
            return openvino.step_seconds(exported[model], block_tokens)

        yield seconds


@contextmanager
def _transformers() -> Iterator[StepTimer]:
    """transformers on the first accelerator, else the CPU: the median of forwards with tokens behind them."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")

    def seconds(folder: Path, block_tokens: int) -> float:
        model = load(folder, precision.fastest(device).dtype).to(device).eval()  # type: ignore[arg-type]
        return engine_transformers.step_seconds(model, block_tokens)

    yield seconds


TIMERS: dict[str, Callable[[], AbstractContextManager[StepTimer]]] = {
    "openvino": _openvino,
    "transformers": _transformers,
}
