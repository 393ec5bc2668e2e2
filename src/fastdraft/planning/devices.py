"""Devices: bandwidth, compute rates and overheads, published with their source; probe.py measures `cpu`."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fastdraft.system.errors import DeviceError

Kind = Literal["cpu", "gpu", "npu", "accelerator"]
# A device without a rate for a precision computes at the next wider one: weights are converted as they are read.
WIDER = {"int4": "int8", "int8": "bf16", "bf16": "fp32"}
GB, TERA, US = 1e9, 1e12, 1e-6


class Reading(BaseModel):
    """Measured on models of one size: seconds to read their weights, and the overhead of a layer at that size."""

    model_config = ConfigDict(frozen=True)
    read_bytes: float
    seconds: float
    layer_overhead_seconds: float


class Device(BaseModel):
    """The speed of a device: memory bandwidth, FLOP/s, and the overhead of a decode step.

    Rates are dense, by the precision of the weights. The overheads of published devices are estimates, see OVERHEADS.
    `bandwidth_fraction`: the part of a published bandwidth that engines reach; 1 if it was measured. `readings`, from
    small to large: the time to read weights that fit a cache; without them all weights are read at the bandwidth.
    `attention_rate`: FLOP/s of one token's attention, if it takes longer than reading the keys and values.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    kind: Kind
    memory_bandwidth_bytes_per_second: float
    rates: dict[str, float]
    layer_overhead_seconds: float
    step_overhead_seconds: float
    memory_bytes: float
    source: str
    bandwidth_fraction: float = 1.0
    attention_rate: float | None = None
    readings: tuple[Reading, ...] = ()

    def rate(self, precision: str) -> float:
        """FLOP/s at a precision, or at the next wider one that the device supports."""
        while precision not in self.rates:
            precision = WIDER[precision]
        return self.rates[precision]

    @property
    def bandwidth(self) -> float:
        """Bytes per second that an engine reads from memory."""
        return self.memory_bandwidth_bytes_per_second * self.bandwidth_fraction

    def reading_seconds(self, read_bytes: float) -> float:
        """Seconds to read the weights of a step: interpolated between readings, at the bandwidth above the last one."""
        if not self.readings or read_bytes >= self.readings[-1].read_bytes:
            return read_bytes / self.bandwidth
        return self._interpolate(read_bytes, [reading.seconds for reading in self.readings], 0.0)

    def layer_overhead(self, read_bytes: float) -> float:
        """Seconds of a layer's overhead, which grows with the bytes read: code and state leave the caches too."""
        overheads = [reading.layer_overhead_seconds for reading in self.readings]
        if not overheads or read_bytes >= self.readings[-1].read_bytes:
            return self.layer_overhead_seconds
        return self._interpolate(read_bytes, overheads, overheads[0])

    def _interpolate(self, read_bytes: float, values: list[float], at_zero: float) -> float:
        """Linear interpolation between the readings; `at_zero` is the value at 0 bytes."""
        sizes = [0.0, *(reading.read_bytes for reading in self.readings)]
        for (low, high), (below, above) in zip(pairwise(sizes), pairwise([at_zero, *values]), strict=True):
            if read_bytes <= high:
                return below + (above - below) * (read_bytes - low) / (high - low)
        return values[-1]


# The part of the published bandwidth that engines reach in decoding: gpt-fast 69 % on an A100 with Llama-2-7B in bf16,
# and 65 % with 70B in int8 (its README). These figures include the overheads below. tests/planning/test_devices.py
# checks the model against them.
REACHED_FRACTION = 0.7
# (seconds per layer, seconds per step), estimates. A layer is about ten kernels: 2 to 3 us each in a CUDA graph, 5 us
# or more if launched one by one. A step adds the engine's scheduler, sampling and the copy to the host.
OVERHEADS: dict[Kind, tuple[float, float]] = {
    "accelerator": (25 * US, 300 * US),
    "gpu": (50 * US, 500 * US),
    "npu": (60 * US, 2000 * US),
}


def _published(
    name: str,
    kind: Kind,
    gigabytes_per_second: float,
    bf16_teraflops: float,
    int8_teraops: float,
    gigabytes: float,
    source: str,
) -> Device:
    """A device from its data sheet: bandwidth, dense rates of bf16 (or fp16) and int8, memory."""
    layer, step = OVERHEADS[kind]
    return Device(
        name=name,
        kind=kind,
        memory_bandwidth_bytes_per_second=gigabytes_per_second * GB,
        rates={"bf16": bf16_teraflops * TERA, "int8": int8_teraops * TERA},
        layer_overhead_seconds=layer,
        step_overhead_seconds=step,
        memory_bytes=gigabytes * GB,
        source=source,
        bandwidth_fraction=REACHED_FRACTION,
    )


DEVICES: dict[str, Device] = {
    "a100-80gb": _published(
        "NVIDIA A100 80GB SXM", "accelerator", 2039, 312, 624, 80,
        "NVIDIA A100 Tensor Core GPU data sheet, 2021 (nvidia.com, a100-datasheet)",
    ),
    "h100-sxm": _published(
        "NVIDIA H100 SXM", "accelerator", 3350, 989.5, 1979, 80,
        "NVIDIA H100 Tensor Core GPU data sheet, half of its figures with sparsity",
    ),
    "h200": _published(
        "NVIDIA H200 SXM", "accelerator", 4800, 989.5, 1979, 141,
        "NVIDIA H200 Tensor Core GPU data sheet, half of its figures with sparsity",
    ),
    "b200": _published(
        "NVIDIA HGX B200", "accelerator", 8000, 2250, 4500, 180,
        "NVIDIA Blackwell Architecture Technical Brief, HGX B200, half of its figures with sparsity",
    ),
    "l4": _published(
        "NVIDIA L4", "accelerator", 300, 121, 242.5, 24,
        "NVIDIA L4 Tensor Core GPU data sheet, half of its figures with sparsity",
    ),
    "l40s": _published(
        "NVIDIA L40S", "accelerator", 864, 362.05, 733, 48,
        "NVIDIA L40S GPU data sheet",
    ),
    "rtx-4090": _published(
        "NVIDIA GeForce RTX 4090", "accelerator", 1008, 165.2, 660.6, 24,
        "NVIDIA Ada GPU Architecture white paper, appendix A (fp16 with fp32 accumulation)",
    ),
    "rtx-5090": _published(
        "NVIDIA GeForce RTX 5090", "accelerator", 1792, 209.5, 838, 32,
        "NVIDIA RTX Blackwell GPU Architecture white paper, appendix A (fp16 with fp32 accumulation)",
    ),
    "mi300x": _published(
        "AMD Instinct MI300X", "accelerator", 5300, 1307.4, 2614.9, 192,
        "AMD Instinct MI300X accelerator data sheet, 2023",
    ),
    "gaudi-2": _published(
        "Intel Gaudi 2", "accelerator", 2450, 432, 432, 96,
        "Intel Gaudi 3 AI Accelerator white paper, 2024, table against Gaudi 2 (it computes in bf16 and fp8)",
    ),
    "gaudi-3": _published(
        "Intel Gaudi 3", "accelerator", 3700, 1835, 1835, 128,
        "Intel Gaudi 3 AI Accelerator white paper, 2024 (HL-325L)",
    ),
    "arc-155h": _published(
        "Intel Core Ultra 7 155H, Arc GPU", "gpu", 119.5, 9.2, 18.4, 32,
        "Intel ARK, Core Ultra 7 155H: LPDDR5x-7467 on 128 bits; 8 Xe cores at 2.25 GHz, 18 int8 TOPS",
    ),
    "npu-155h": _published(
        "Intel Core Ultra 7 155H, NPU", "npu", 119.5, 5.5, 11, 32,
        "Intel ARK, Core Ultra 7 155H: LPDDR5x-7467 on 128 bits; 11 int8 TOPS, fp16 half of it",
    ),
    "arc-140v": _published(
        "Intel Core Ultra 7 258V, Arc 140V GPU", "gpu", 136.5, 32, 64, 32,
        "Intel ARK, Core Ultra 7 258V: LPDDR5X-8533 on 128 bits; 64 int8 TOPS, fp16 half of it",
    ),
    "npu-258v": _published(
        "Intel Core Ultra 7 258V, NPU", "npu", 136.5, 23.5, 47, 32,
        "Intel ARK, Core Ultra 7 258V: LPDDR5X-8533 on 128 bits; 47 int8 TOPS, fp16 half of it",
    ),
    "m4-max": _published(
        "Apple M4 Max, 40-core GPU", "gpu", 546, 16.2, 16.2, 128,
        "Apple, MacBook Pro (2024) specifications: 546 GB/s; rate not published: 40 x 128 lanes x 2 x 1.58 GHz",
    ),
    "m3-ultra": _published(
        "Apple M3 Ultra, 80-core GPU", "gpu", 819, 28.3, 28.3, 512,
        "Apple, Mac Studio (2025) specifications: 819 GB/s; rate not published: 80 x 128 lanes x 2 x 1.38 GHz",
    ),
    "ryzen-ai-max-395": _published(
        "AMD Ryzen AI Max+ 395, Radeon 8060S", "gpu", 256, 59.4, 59.4, 128,
        "AMD, Ryzen AI Max+ 395 product page: 256 GB/s; RDNA 3.5: 40 CUs x 512 a clock x 2.9 GHz",
    ),
}  # fmt: skip


def published(name: str) -> Device:
    """A device of the table; DeviceError if there is none of that name."""
    if name not in DEVICES:
        raise DeviceError(
            f"no figures for a device `{name}`\n  wanted: cpu (measured here), or one of {', '.join(DEVICES)}\n"
            f"  do: choose the most similar of these, or measure this machine with `cpu`"
        )
    return DEVICES[name]
