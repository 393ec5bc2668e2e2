"""Measure the `cpu` of this machine, in seconds, on the cores that this process may use.

If OpenVINO is installed, the engine itself is measured: small Llamas with random weights run in OpenVINO GenAI. Two
narrow ones that differ only in depth give the overhead of a step and of a layer. Larger ones come in pairs that read
about the same bytes, in many layers or in the head: the additional time of the deep one is its layers' overhead, the
rest is reading. The largest exceeds every cache. A block of tokens in it gives the compute rate, a long prompt the rate
of attention. Without OpenVINO the same quantities come from torch's kernels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm

from fastdraft.models.openvino import PROMPT_TOKENS, block_seconds, decode_seconds
from fastdraft.models.openvino_llama import Sizes, open_pipeline, random_llama
from fastdraft.planning.devices import Device, Reading
from fastdraft.planning.model_size import BITS, OUTER_BITS
from fastdraft.system.precision import fastest

SHALLOW, DEEP = (Sizes(512, 64, layers, 64, 1, 1) for layers in (1, 13))
# (all weights in layers, most of them in the head): SMALL reads 3 MB at int8, MIDDLE 15 MB. BROAD reads 24 MB, about
# the size of a last-level cache.
SMALL = Sizes(512, 256, 4, 704, 4, 2), Sizes(8192, 256, 1, 704, 4, 2)
MIDDLE = Sizes(512, 256, 20, 704, 4, 2), Sizes(24576, 512, 1, 1408, 8, 4)
BROAD = Sizes(512, 1024, 2, 2816, 16, 8)
# The largest model reads this many times the last-level cache; bounds on its layers: 107 to 400 MB at int8. With three
# times 32 MB a third of it was still in the cache, and a target of 300M was predicted 23 % too fast.
BEYOND_CACHE, LARGE_LAYERS = 6, (9, 34)
# A block long enough to be dominated by computing; a context long enough for attention to be measurable.
BLOCK_TOKENS, CONTEXT_TOKENS = 32, 512
STEP_TOKENS, LARGE_STEP_TOKENS, ROUNDS = 24, 12, 3
SIDE, ACCELERATOR_SIDE = 1024, 8192
# Lower bound of every measured difference, which noise could make negative.
TINY = 1e-9
# On an idle core a timer's median is 1.1 times its minimum; with other load it takes seconds instead of milliseconds.
BUSY = 1.5

Timer = Callable[[], float]


def probe_cpu(seconds: float = 4.0, weights: str = "int8") -> Device:
    """This machine's processor, with weights at a precision of BITS; building the models takes as long again."""
    measured = probe_openvino(seconds, weights) if find_spec("openvino_genai") else probe_torch(seconds)
    return Device(
        name=f"this machine's processor, {usable_cores()} cores",  # read last: OpenVINO 2026.4 can widen the set
        kind="cpu",
        memory_bytes=float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        **measured,
    )


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def timed(timers: Mapping[Any, Timer], seconds: float) -> tuple[dict[Any, float], str]:
    """The median of each timer, and a warning if the machine was busy, else "".

    The timers take turns, so that other load affects all of them.
    """
    end, rounds = perf_counter() + seconds, 0
    times: dict[Any, list[float]] = {name: [] for name in timers}
    while rounds < ROUNDS or perf_counter() < end:
        for name, timer in timers.items():
            times[name].append(timer())
        rounds += 1
    medians = {name: median(each) for name, each in times.items()}
    slowdown = max(medians[name] / max(min(each), TINY) for name, each in times.items())
    if slowdown < BUSY:
        return medians, ""
    return (
        medians,
        f"; the machine was busy, half of the time {slowdown:.1f} times as slow as at best: plan again later",
    )


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of torch's multiplication of two square matrices, with this process's threads on its device.

    The matrices have different numbers, because accelerators multiply equal ones faster. The fastest of all rounds
    counts: with the median, which other load slows down, training seemed to use 118 % of the rate in one phase.
    """
    side = SIDE if device.type == "cpu" else ACCELERATOR_SIDE
    if device.type == "cpu" and dtype == torch.bfloat16 != fastest(device).dtype:  # emulated: seconds at SIDE
        side //= 4
    matrix = torch.arange(side * side, device=device).sin().view(side, side).to(dtype)
    end, times = perf_counter() + seconds, [_square_seconds(matrix)]
    while len(times) < ROUNDS or perf_counter() < end:
        times.append(_square_seconds(matrix))
    return 2.0 * side**3 / min(times)


def probe_openvino(seconds: float, weights: str) -> dict[str, Any]:
    """Measured fields of a Device, for OpenVINO GenAI."""
    large = BROAD._replace(layers=_large_layers(weights))
    models = (SHALLOW, DEEP, *SMALL, *MIDDLE, BROAD, large)
    pipelines = {sizes: open_pipeline(random_llama(sizes, weights)) for sizes in models}
    timers: dict[Any, Timer] = {sizes: partial(decode_seconds, pipe, STEP_TOKENS) for sizes, pipe in pipelines.items()}
    timers[large] = partial(decode_seconds, pipelines[large], LARGE_STEP_TOKENS)
    timers["block"] = partial(block_seconds, pipelines[large], BLOCK_TOKENS, 1)
    timers["context"] = partial(decode_seconds, pipelines[SMALL[0]], STEP_TOKENS, CONTEXT_TOKENS)
    precision = fastest(torch.device("cpu"))
    timers["product"] = partial(_matmul_seconds, precision.dtype)
    found, busy = timed(timers, seconds)
    known, step = readings(found, large, weights)
    matmuls = max(found["block"] - step - large.layers * known[-1].layer_overhead_seconds, known[-1].seconds + TINY)
    computing = math.sqrt(matmuls**2 - known[-1].seconds ** 2)
    attention = 4.0 * SMALL[0].layers * SMALL[0].hidden * (CONTEXT_TOKENS - PROMPT_TOKENS)
    return {
        "memory_bandwidth_bytes_per_second": known[-1].read_bytes / known[-1].seconds,
        "rates": {
            precision.name: 2.0 * SIDE**3 / found["product"],
            weights: 2.0 * large.read_parameters * BLOCK_TOKENS / computing,
        },
        "layer_overhead_seconds": known[-1].layer_overhead_seconds,
        "step_overhead_seconds": step,
        "attention_rate": attention / max(found["context"] - found[SMALL[0]], TINY),
        "readings": known,
        "source": f"measured in OpenVINO GenAI {version('openvino-genai')}, weights {weights}{busy}",
    }


def readings(found: Mapping[Any, float], large: Sizes, weights: str) -> tuple[tuple[Reading, ...], float]:
    """The readings of all sizes, small to large, and the overhead of a step.

    A layer's overhead is at least that of the smaller model: a lower value is noise.
    """
    overhead = (found[DEEP] - found[SHALLOW]) / (DEEP.layers - SHALLOW.layers)
    step, known = max(found[SHALLOW] - overhead, 0.0), []
    for deep, headed in (SMALL, MIDDLE):
        overhead = max(overhead, _overhead(found, deep, headed, step, weights))
        known.append(_reading(found, headed, step, overhead, weights))
    return (*known, *(_reading(found, sizes, step, overhead, weights) for sizes in (BROAD, large))), step


def _overhead(found: Mapping[Any, float], deep: Sizes, headed: Sizes, step: float, weights: str) -> float:
    """Overhead of a layer from two models that read at the same rate but differ in layers and bytes."""
    fraction = _bytes(deep, weights) / _bytes(headed, weights)
    return (found[deep] - step - fraction * (found[headed] - step)) / (deep.layers - fraction * headed.layers)


def _reading(found: Mapping[Any, float], sizes: Sizes, step: float, overhead: float, weights: str) -> Reading:
    """The seconds of a model without its overheads."""
    seconds = max(found[sizes] - step - sizes.layers * overhead, TINY)
    return Reading(read_bytes=_bytes(sizes, weights), seconds=seconds, layer_overhead_seconds=overhead)


def _bytes(sizes: Sizes, weights: str) -> float:
    """Bytes of the weights that a step reads."""
    head = sizes.vocab_rows * sizes.hidden
    return ((sizes.read_parameters - head) * BITS[weights] + head * OUTER_BITS[weights]) / 8


def _large_layers(weights: str) -> int:
    """Layers of a model that exceeds every cache of this machine."""
    file = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    cache = float(file.read_text().strip().removesuffix("K")) * 1024 if file.is_file() else 32e6
    fewest, most = LARGE_LAYERS
    return min(most, max(fewest, math.ceil(BEYOND_CACHE * cache / _bytes(BROAD._replace(layers=1), weights))))


def _matmul_seconds(dtype: torch.dtype) -> float:
    """Seconds of torch's multiplication of two SIDE x SIDE matrices."""
    left = torch.ones(SIDE, SIDE, dtype=dtype)
    begin = perf_counter()
    left @ left
    return perf_counter() - begin


def _square_seconds(matrix: Tensor) -> float:
    """Seconds of a matrix times itself, until its device has finished."""
    device = torch.get_device_module(matrix.device)
    device.synchronize()
    begin = perf_counter()
    matrix @ matrix
    device.synchronize()
    return perf_counter() - begin


def probe_torch(seconds: float) -> dict[str, Any]:
    """Measured fields of a Device, for torch's kernels in this machine's faster precision.

    The bandwidth is used for weights of any precision, because engines read about as fast.
    """
    precision = fastest(torch.device("cpu"))
    cached, large = (torch.ones(count, 1024, 1024, dtype=precision.dtype) for count in (8, 128))
    timers: dict[Any, Timer] = {
        "layer": partial(_layer_seconds, precision.dtype),
        "cached": partial(_read_seconds, cached),
        "large": partial(_read_seconds, large),
        "product": partial(_matmul_seconds, precision.dtype),
    }
    found, busy = timed(timers, seconds)
    overhead, size = found["layer"], float(large.nbytes)
    known = [
        Reading(read_bytes=float(stack.nbytes), seconds=found[name], layer_overhead_seconds=overhead)
        for name, stack in (("cached", cached), ("large", large))
    ]
    return {
        "memory_bandwidth_bytes_per_second": size / found["large"],
        "rates": {precision.name: 2.0 * SIDE**3 / found["product"]},
        "layer_overhead_seconds": overhead,
        "step_overhead_seconds": overhead,
        "readings": tuple(known),
        "source": f"measured with torch's kernels; pip install 'fastdraft[openvino]' measures the engine itself{busy}",
    }


def _read_seconds(stack_LHH: Tensor) -> float:
    """Seconds of one vector times each matrix."""
    states_H, begin = stack_LHH.new_ones(stack_LHH.shape[-1]), perf_counter()
    for matrix_HH in stack_LHH:
        linear(states_H, matrix_HH)
    return perf_counter() - begin


def _layer_seconds(dtype: torch.dtype) -> float:
    """Seconds of the operations of a layer, so narrow that only their overhead matters."""
    states_1H, matrix_HH = torch.ones(1, 64, dtype=dtype), torch.ones(64, 64, dtype=dtype)
    begin = perf_counter()
    for _ in range(2):
        states_1H = rms_norm(states_1H, (64,))
        for _ in range(4):
            states_1H = linear(states_1H, matrix_HH)
        states_1H = states_1H + states_1H.softmax(-1) * states_1H.sigmoid()
    return perf_counter() - begin
