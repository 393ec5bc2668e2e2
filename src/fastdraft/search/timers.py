"""The seconds of a model's step in an engine, which a search compares depths by."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from fastdraft.bench import openvino
from fastdraft.cost.engine import EXTRA
from fastdraft.export.openvino import export_openvino
from fastdraft.extras import need
from fastdraft.target import load

# (model's folder, tokens of a block) -> seconds of a step
StepTimer = Callable[[Path, int], float]

WARM_UP, REPEATS, CONTEXT_TOKENS = 3, 31, 64


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
    """transformers on the first accelerator, else the CPU: a forward with CONTEXT_TOKENS behind it, the median."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")

    @torch.inference_mode()
    def seconds(folder: Path, block_tokens: int) -> float:
        model = load(folder, torch.float32 if device.type == "cpu" else torch.bfloat16).to(device).eval()  # type: ignore[arg-type]
        context = torch.arange(CONTEXT_TOKENS, device=device)[None] % model.config.vocab_size
        cache = model(input_ids=context, use_cache=True).past_key_values
        taken = []
        for _ in range(WARM_UP + REPEATS):
            started = time.perf_counter()
            model(input_ids=context[:, :block_tokens], past_key_values=cache, use_cache=True).logits.argmax(-1).tolist()
            taken.append(time.perf_counter() - started)
            cache.crop(CONTEXT_TOKENS)
        return median(taken[WARM_UP:])

    yield seconds


TIMERS: dict[str, Callable[[], AbstractContextManager[StepTimer]]] = {
    "openvino": _openvino,
    "transformers": _transformers,
}
