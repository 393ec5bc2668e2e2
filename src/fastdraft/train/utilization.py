"""Hardware use of a step: model FLOPs utilization (MFU) and memory."""

from __future__ import annotations

import resource
import sys
from functools import cache

import torch
from transformers.configuration_utils import PretrainedConfig

from fastdraft.config import TrainPart
from fastdraft.planning.model_size import ModelSize
from fastdraft.planning.probe import matmul_rate
from fastdraft.planning.training_cost import training_flops
from fastdraft.system import processes

RATE_SECONDS = 0.5


class Meter:
    """The matrix multiplication rate of the machine and the FLOPs of a step, over all processes.

    The FLOPs are those of the draft: 6 per parameter that a token is multiplied with, plus attention. The forward of an
    online teacher takes time but does not count. All processes must create a Meter at the same time, because each
    measures its share of the machine.
    """

    def __init__(self, config: PretrainedConfig, part: TrainPart, device: torch.device, dtype: torch.dtype) -> None:
        tokens, self._device = part.batch_size * part.sequence_tokens, device
        self._flops = training_flops(ModelSize.of_config(config), tokens, part.sequence_tokens)
        rate = _rate(device, dtype, torch.get_num_threads())
        self._flops_per_second = processes.summed(rate)[0]
        if device.type != "cpu":  # exclude the target that generated completions for validation before training
            torch.get_device_module(device).reset_peak_memory_stats(device)

    def metrics(self, seconds: float) -> dict[str, float]:
        """Metrics of a step that took `seconds`.

        `mfu` is relative to the rate measured in the precision of the phase (bf16 or fp32). `memory_bytes` is the peak:
        resident memory of this process, or memory that this phase allocated on its accelerator.
        """
        mfu = self._flops / (max(seconds, 1e-9) * self._flops_per_second)
        return {"mfu": mfu, "memory_bytes": peak_memory_bytes(self._device)}


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of this process: resident on a CPU, allocated by torch on an accelerator."""
    if device.type == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return int(torch.get_device_module(device).max_memory_allocated(device))


@cache
def _rate(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """Measured once per process, so that all phases of a run have the same reference."""
    return matmul_rate(device, dtype, RATE_SECONDS)
