"""The floating-point precision that a device computes in: bf16 where it multiplies matrices faster in it, else fp32.

With AVX-512 bf16 or AMX instructions bf16 is 2 to 4 times as fast as fp32. With AVX2 alone torch emulates it, at a
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

Asked = Literal["auto", "bf16", "fp32"]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Sides of the square matrices: emulated bf16 takes 30 to 70 ms for a product of 256 on AVX2 cores, fp32 .3 to .5.
CPU_SIDE, ACCELERATOR_SIDE, ROUNDS, ROUND_SECONDS = 256, 4096, 4, 0.005
# Times as fast as fp32 that bf16 must be: it rounds, and a choice near 1 would differ from run to run.
WORTH_TAKING = 1.2
FIRST_CUDA_CAPABILITY = (8, 0)


class PrecisionWarning(UserWarning):
    """The precision that was asked for is slow on this device."""


class Precision(BaseModel):
    """What a device computes in, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Literal["bf16", "fp32"]
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]


@cache
def choose(asked: Asked, device: torch.device) -> Precision:
    """The precision asked for; `auto` is the faster one. A PrecisionWarning, once, where bf16 is asked for and slow."""
    best = fastest(device)
    if asked == "auto":
        return best
    if asked == "bf16" and best.name == "fp32":
        rate = f"its matrix products run at {bf16_ratio(device):.2g} times the rate of fp32 on this {device.type}"
        warnings.warn(f"precision bf16 is slow here: {rate}", PrecisionWarning, stacklevel=2)
    return Precision(name=asked, reason="the recipe asks for it")


@cache
def fastest(device: torch.device) -> Precision:
    """bf16 where the device multiplies matrices faster in it: CUDA by compute capability, all others measured."""
    if device.type == "cuda":
        found = torch.cuda.get_device_capability(device)
        has = found >= FIRST_CUDA_CAPABILITY
        reason = f"compute capability {found[0]}.{found[1]}, bf16 needs {'.'.join(map(str, FIRST_CUDA_CAPABILITY))}"
        return Precision(name="bf16" if has else "fp32", reason=reason)
    faster = bf16_ratio(device) >= WORTH_TAKING
    # Without the ratio, which differs from run to run: cards of equal stages are equal.
    reason = f"bf16 matrix products are {'' if faster else 'not '}faster than those of fp32 on this {device.type}"
    return Precision(name="bf16" if faster else "fp32", reason=reason)


@cache
def bf16_ratio(device: torch.device) -> float:
    """How many times as fast as in fp32 this process multiplies matrices in bf16; 0 where the device cannot.

    The best product of each: other work on the machine slows some of them down. For the same reason the two take turns,
    and a processor multiplies with one thread: beside other work two threads wait for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    side = CPU_SIDE if device.type == "cpu" else ACCELERATOR_SIDE
    try:
        # Not of ones: accelerators multiply matrices of equal numbers faster.
        matrices = [
            torch.arange(side * side, device=device, dtype=torch.float32).sin().view(side, side).to(dtype)
            for dtype in (torch.float32, torch.bfloat16)
        ]
        rounds: list[list[float]] = [[_product_seconds(matrix) for matrix in matrices] for _ in range(ROUNDS)]
    except (RuntimeError, TypeError):  # what torch raises for a dtype that a device lacks
        return 0.0
    finally:
        torch.set_num_threads(threads)
    fp32: float = min(times[0] for times in rounds)
    return fp32 / min(times[1] for times in rounds)


def _product_seconds(matrix: Tensor) -> float:
    """Seconds of the best of the products of a matrix with itself that end within ROUND_SECONDS, of one at least."""
    times: list[float] = []
    synchronize = torch.get_device_module(matrix.device).synchronize
    while sum(times) < ROUND_SECONDS:
        synchronize()
        begin = perf_counter()
        matrix @ matrix
        synchronize()
        times.append(perf_counter() - begin)
    return min(times)
