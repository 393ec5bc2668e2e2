"""Published devices: every figure has a source, and none is out of the world."""

import pytest

from fastdraft.planning.devices import DEVICES, OVERHEADS, published
from fastdraft.planning.model_size import ModelSize
from fastdraft.planning.step_times import step_seconds
from fastdraft.system.errors import DeviceError


def test_the_table_has_what_people_have():
    assert {"gaudi-2", "h200", "l4", "rtx-4090", "arc-140v", "npu-258v", "m4-max"} <= set(DEVICES)
    assert {device.kind for device in DEVICES.values()} == {"accelerator", "gpu", "npu"} == set(OVERHEADS)


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_every_device_has_a_source_and_sound_figures(name):
    device = DEVICES[name]
    assert any(maker in device.source for maker in ("NVIDIA", "Intel", "AMD", "Apple"))
    assert len(device.source) > 20
    assert 1e11 < device.memory_bandwidth_bytes_per_second < 1e13
    assert 0 < device.bandwidth_fraction < 1
    assert device.bandwidth < device.memory_bandwidth_bytes_per_second
    assert 1e12 <= device.rates["bf16"] <= device.rates["int8"] <= 4.1 * device.rates["bf16"]
    assert 8e9 <= device.memory_bytes <= 1e12
    assert device.memory_bandwidth_bytes_per_second < device.rates["bf16"]


def test_a_precision_without_a_rate_is_computed_at_the_next_wider_one(plain):
    assert plain.rate("int4") == plain.rate("int8") == plain.rate("bf16") == 1e12
    assert DEVICES["h200"].rate("int4") == DEVICES["h200"].rate("int8") > DEVICES["h200"].rate("bf16")


@pytest.mark.parametrize(
    ("sizes", "weights", "tokens_per_second"),
    [
        ((6_738_415_616, 32, 4096, 4096), "bf16", 104.9),
        ((6_738_415_616, 32, 4096, 4096), "int8", 155.58),
        ((68_976_648_192, 80, 8192, 1024), "int8", 19.13),
    ],
)
def test_what_gpt_fast_reached_on_an_a100(sizes, weights, tokens_per_second):
    """Llama-2-7B and 70B on an A100 80 GB, one text: the benchmarks in gpt-fast's README."""
    parameters, layers, hidden, kv_width = sizes
    llama = ModelSize(
        parameters=parameters,
        embedding_parameters=32000 * hidden,
        output_parameters=32000 * hidden,
        tied=False,
        layers=layers,
        hidden=hidden,
        attention_width=hidden,
        kv_width=kv_width,
        vocab_rows=32000,
    )
    predicted = 1 / step_seconds(llama, DEVICES["a100-80gb"], weights)
    assert predicted == pytest.approx(tokens_per_second, rel=0.2)


def test_an_unknown_device_is_reported():
    assert published("l4") is DEVICES["l4"]
    with pytest.raises(DeviceError, match="device `l5`\n  wanted: cpu .*l40s.*\n  do: "):
        published("l5")
