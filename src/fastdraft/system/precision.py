"""The floating-point precision on a device: bf16 if it multiplies matrices faster in bf16, else fp32.

On CPUs with AVX-512 bf16 or AMX, bf16 is 2 to 4 times as fast as fp32. With AVX2 alone torch emulates bf16 at a
hundredth of the rate of fp32 (docs/decisions/0008-precision.md).
"""

from __future__ import annotations

import warnings
from functools import cache
from time import perf_counter
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

PrecisionChoice = Literal["auto", "bf16", "fp32"]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Sizes of the square matrices. On AVX2 cores a product of 256 x 256 takes 30 to 70 ms in emulated bf16, and .3 to .5 ms
# in fp32.
CPU_SIZE, ACCELERATOR_SIZE, ROUNDS, ROUND_SECONDS = 256, 4096, 4, 0.005
# The speed-up over fp32 from which bf16 is chosen. It rounds, and a limit near 1 would change the choice between runs.
MIN_SPEEDUP = 1.2
FIRST_CUDA_CAPABILITY = (8, 0)


class PrecisionWarning(UserWarning):
    """The requested precision is slow on this device."""


class Precision(BaseModel):
    """A precision, and the reason for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Literal["bf16", "fp32"]
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]


@cache
def choose(choice: PrecisionChoice, device: torch.device) -> Precision:
    """The requested precision; `auto` is the faster one. PrecisionWarning, once, if bf16 is requested and slow."""
    best = fastest(device)
    if choice == "auto":
        return best
    if choice == "bf16" and best.name == "fp32":
        rate = f"its matrix products run at {bf16_ratio(device):.2g} times the rate of fp32 on this {device.type}"
        warnings.warn(f"precision bf16 is slow here: {rate}", PrecisionWarning, stacklevel=2)
    return Precision(name=choice, reason="the recipe asks for it")


@cache
def fastest(device: torch.device) -> Precision:
    """bf16 if the device multiplies matrices faster in it: on CUDA by compute capability, elsewhere by measuring."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        reason = f"compute capability {major}.{minor}, bf16 needs {'.'.join(map(str, FIRST_CUDA_CAPABILITY))}"
        return Precision(name="bf16" if (major, minor) >= FIRST_CUDA_CAPABILITY else "fp32", reason=reason)
    faster = bf16_ratio(device) >= MIN_SPEEDUP
    # The reason does not contain the ratio: it differs between runs, and cards of equal stages must be equal.
    reason = f"bf16 matrix products are {'' if faster else 'not '}faster than those of fp32 on this {device.type}"
    return Precision(name="bf16" if faster else "fp32", reason=reason)


@cache
def bf16_ratio(device: torch.device) -> float:
    """The rate of matrix products in bf16 divided by that in fp32; 0 if the device does not support bf16.

    Other work on the machine disturbs the measurement. Therefore the two precisions take turns, the fastest product of
    each counts, and a CPU uses one thread: several would wait for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    size = CPU_SIZE if device.type == "cpu" else ACCELERATOR_SIZE
    try:
        # Not matrices of ones: accelerators multiply equal numbers faster.
        matrices = [
            torch.arange(size * size, device=device, dtype=torch.float32).sin().view(size, size).to(dtype)
            for dtype in (torch.float32, torch.bfloat16)
        ]
        rounds: list[list[float]] = [[_product_seconds(matrix) for matrix in matrices] for _ in range(ROUNDS)]
    except (RuntimeError, TypeError):  # torch's errors for a dtype that a device does not support
        return 0.0
    finally:
        torch.set_num_threads(threads)
    fp32: float = min(times[0] for times in rounds)
    return fp32 / min(times[1] for times in rounds)


def _product_seconds(matrix: Tensor) -> float:
    """Seconds of the fastest product of a matrix with itself; repeats for ROUND_SECONDS, at least once."""
    times: list[float] = []
    synchronize = torch.get_device_module(matrix.device).synchronize
    while sum(times) < ROUND_SECONDS:
        synchronize()
        begin = perf_counter()
        matrix @ matrix
        synchronize()
        times.append(perf_counter() - begin)
    return min(times)
