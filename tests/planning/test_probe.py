"""The probe takes apart what it measured: overhead, reading, rate."""

import math
from importlib.util import find_spec

import pytest
import torch

from fastdraft.planning import probe
from fastdraft.planning.devices import Device
from fastdraft.planning.probe import (
    BROAD,
    DEEP,
    MIDDLE,
    SHALLOW,
    SMALL,
    matmul_rate,
    probe_cpu,
    probe_torch,
    readings,
    timed,
    usable_cores,
)
from fastdraft.planning.step_times import step_seconds

LARGE = BROAD._replace(layers=9)
# Seconds a byte while weights fit a cache and beyond, a layer's overhead then, a step's.
FAST, SLOW, LAYER, STEP = 1 / 25e9, 1 / 15e9, {3: 50e-6, 15: 80e-6}, 60e-6


def times() -> dict[object, float]:
    """What a machine of just these figures would say."""
    found = {sizes: STEP + sizes.layers * 50e-6 for sizes in (SHALLOW, DEEP)}
    for megabytes, pair in ((3, SMALL), (15, MIDDLE)):
        found |= {sizes: STEP + sizes.layers * LAYER[megabytes] + sizes.read_parameters * FAST for sizes in pair}
    found[BROAD] = STEP + BROAD.layers * LAYER[15] + BROAD.read_parameters * FAST
    found[LARGE] = STEP + LARGE.layers * LAYER[15] + LARGE.read_parameters * SLOW
    return found


def test_the_figures_of_a_machine_are_found_again():
    known, step = readings(times(), LARGE, "int8")
    assert step == pytest.approx(STEP)
    assert [round(reading.read_bytes / 1e6) for reading in known] == [3, 16, 24, 107]
    rates = [reading.seconds / reading.read_bytes for reading in known]
    assert rates == pytest.approx([FAST, FAST, FAST, SLOW])
    assert [reading.layer_overhead_seconds for reading in known] == pytest.approx([50e-6, 80e-6, 80e-6, 80e-6])


def test_pairs_read_about_the_same_bytes():
    for deep, headed in (SMALL, MIDDLE):
        assert deep.read_parameters == pytest.approx(headed.read_parameters, rel=0.1)
        assert deep.layers >= 4 * headed.layers


def test_what_noise_makes_of_the_times_stays_a_device():
    """A disturbed deep or wide model gives overheads and readings that are positive all the same."""
    for disturbed in (SHALLOW, DEEP, *SMALL, *MIDDLE, BROAD, LARGE):
        known, step = readings(times() | {disturbed: 0.004}, LARGE, "int8")
        assert step >= 0
        assert all(reading.seconds > 0 and reading.layer_overhead_seconds >= 0 for reading in known)


def test_timers_take_turns_and_what_was_disturbed_is_left_out():
    said: list[str] = []

    def timer(name: str, values: list[float]):
        def next_one() -> float:
            said.append(name)
            return values.pop(0)

        return next_one

    found = timed({"a": timer("a", [1.0, 1.0, 900.0]), "b": timer("b", [7.0, 2.1, 3.0])}, 0)
    assert found == ({"a": 1.0, "b": 3.0}, "")
    assert said == ["a", "b"] * 3
    _, busy = timed({"a": timer("a", [1.0, 1.0, 1.0]), "b": timer("b", [7.0, 2.0, 6.0])}, 0)
    assert "the machine was busy, half of the time 3.0 times as slow as at best" in busy


def sound(device: Device, paper) -> bool:
    """Every figure is positive and finite, and more of a model takes longer."""
    figures = [device.memory_bandwidth_bytes_per_second, device.memory_bytes, *device.rates.values()]
    figures += [reading.seconds for reading in device.readings]
    assert all(math.isfinite(figure) and figure > 0 for figure in figures)
    assert device.layer_overhead_seconds >= 0 <= device.step_overhead_seconds
    assert step_seconds(paper, device) < step_seconds(paper.model_copy(update={"parameters": 10**9}), device)
    return step_seconds(paper, device) < step_seconds(paper, device, tokens=9)


def test_without_the_engine_torch_is_measured(paper):
    found = probe_torch(0.1)
    device = Device(name="cpu", kind="cpu", memory_bytes=1e9, **found)
    assert sound(device, paper)
    assert "pip install 'fastdraft[openvino]'" in device.source


def test_the_rate_of_multiplication_is_that_of_its_fastest_product(monkeypatch):
    """At least three products are timed, because other load slows some of them down."""
    seconds = [0.4, 0.1, 0.2]
    monkeypatch.setattr(probe, "_square_seconds", lambda matrix: seconds.pop(0) if len(matrix) == probe.SIDE else 0.0)
    assert matmul_rate(torch.device("cpu"), torch.float32, 0) == pytest.approx(2.0 * probe.SIDE**3 / 0.1)
    assert seconds == []


def test_a_product_takes_some_time():
    assert 0 < probe._square_seconds(torch.ones(131, 131)) < 60


@pytest.mark.slow
def test_this_machine_is_measured(paper):
    device = probe_cpu(0.5)
    assert sound(device, paper)
    assert device.kind == "cpu"
    assert device.name.endswith(f"{usable_cores()} cores")
    assert ("OpenVINO" if find_spec("openvino_genai") else "torch") in device.source
    assert probe.LARGE_LAYERS[0] >= 2
