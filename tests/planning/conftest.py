"""Sizes and devices whose step times are sums that a reader can check."""

import pytest

from fastdraft.planning.devices import Device, Reading
from fastdraft.planning.model_size import ModelSize


@pytest.fixture(scope="session")
def paper() -> ModelSize:
    """About the paper's 120M draft for Phi-3-mini: tied, 32 064 rows."""
    return ModelSize(
        parameters=120_000_000,
        embedding_parameters=32064 * 768,
        output_parameters=32064 * 768,
        tied=True,
        layers=13,
        hidden=768,
        attention_width=768,
        kv_width=768,
        vocab_rows=32064,
    )


@pytest.fixture(scope="session")
def target() -> ModelSize:
    """Phi-3-mini: untied."""
    return ModelSize(
        parameters=3_821_079_552,
        embedding_parameters=32064 * 3072,
        output_parameters=32064 * 3072,
        tied=False,
        layers=32,
        hidden=3072,
        attention_width=3072,
        kv_width=3072,
        vocab_rows=32064,
    )


@pytest.fixture(scope="session")
def plain() -> Device:
    """1 GB/s, 1 TFLOP/s, 3 ms a layer, 7 ms a step, without a cache."""
    return Device(
        name="plain",
        kind="gpu",
        memory_bandwidth_bytes_per_second=1e9,
        rates={"bf16": 1e12},
        layer_overhead_seconds=0.003,
        step_overhead_seconds=0.007,
        memory_bytes=16e9,
        source="made for a test",
    )


@pytest.fixture(scope="session")
def cached(plain: Device) -> Device:
    """The same, but 2 MB are read in 1 ms and 10 MB in 7, with 1 and 3 ms of a layer."""
    readings = ((2e6, 0.001, 0.001), (10e6, 0.007, 0.003))
    made = tuple(Reading(read_bytes=b, seconds=s, layer_overhead_seconds=o) for b, s, o in readings)
    return plain.model_copy(update={"readings": made})
