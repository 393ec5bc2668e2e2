"""What a step takes of the machine: the share of its own rate of multiplication, and memory."""

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
    """The machine's rate, and the FLOPs of a step over all processes.

    They are the draft's own: 6 for each parameter that a token is multiplied with, and attention. A live target's
    forward is time that the draft does not use. Made by all processes at once: each measures what it gets of the
    machine.
    """

    def __init__(self, config: PretrainedConfig, part: TrainPart, device: torch.device, dtype: torch.dtype) -> None:
        tokens, self._device = part.batch_size * part.sequence_tokens, device
        self._flops = training_flops(ModelSize.of_config(config), tokens, part.sequence_tokens)
        rate = _rate(device, dtype, torch.get_num_threads())
        self._flops_per_second = processes.summed(rate)[0]
        if device.type != "cpu":  # a target that has just written completions to measure on is no part of training
            torch.get_device_module(device).reset_peak_memory_stats(device)

    def row(self, seconds: float) -> dict[str, float]:
        """Of a step that took so long: `mfu`, the share of the rate measured in the phase's own precision (bf16 or
        fp32), and `memory_bytes`, the peak: of this process, resident, or allocated on its accelerator by this phase.
        """
        mfu = self._flops / (max(seconds, 1e-9) * self._flops_per_second)
        return {"mfu": mfu, "memory_bytes": peak_memory_bytes(self._device)}


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has had: resident on a CPU, allocated by torch on an accelerator."""
    if device.type == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return int(torch.get_device_module(device).max_memory_allocated(device))


@cache
def _rate(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """Measured once in a process: phases of one run are then held against one figure."""
    return matmul_rate(device, dtype, RATE_SECONDS)
