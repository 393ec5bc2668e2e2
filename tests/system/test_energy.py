"""Energy: counters are summed, a counter that fails gives None, and no failure stops a run."""

import io
import json
import multiprocessing
import shutil
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from rich.console import Console

from fastdraft.config.resolve import digest, resolve
from fastdraft.models.run_context import RunContext
from fastdraft.pipeline.run_stages import MAKERS, Maker, _make
from fastdraft.pipeline.stage_result import StageResult
from fastdraft.pipeline.stages import Stage
from fastdraft.report import terminal_run
from fastdraft.system import energy
from fastdraft.system.cards import Card, Cost
from fastdraft.system.energy import (
    Counter,
    Meter,
    TotalJoules,
    add_joules,
    counters,
    cpu_counters,
    energy_text,
    gpu_counters,
    summed_over_processes,
    total_joules,
)
from fastdraft.system.manifest import Manifest

CPU = torch.device("cpu")
# The range of the counters of common processors, in microjoules: 65 kJ.
RANGE = 65_532_610_987


class Clock:
    """A clock that the test sets."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def zone(tmp_path):
    """Make a powercap zone in the test's folder. Returns the zone's folder."""

    def make(path, name="package-0", microjoules=0):
        folder = tmp_path / "powercap" / path
        folder.mkdir(parents=True)
        for file, content in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", RANGE)):
            (folder / file).write_text(f"{content}\n")
        return folder

    return make


@pytest.fixture
def root(tmp_path):
    return tmp_path / "powercap"


def set_counter(zone, microjoules):
    (zone / "energy_uj").write_text(f"{microjoules}\n")


def meter(root, clock=None):
    return Meter({"cpu": cpu_counters(root)}, clock or Clock())


# CPU packages.


def test_packages_are_summed(zone, root):
    first, second = zone("intel-rapl:0", "package-0", 7), zone("intel-rapl:1", "package-1-die-0", 11)
    energy_meter = meter(root)
    assert energy_meter.joules() == {"cpu": 0.0}
    set_counter(first, 7 + 3_000_000)
    set_counter(second, 11 + 500_000)
    assert energy_meter.joules() == {"cpu": pytest.approx(3.5)}
    set_counter(first, 7 + 5_000_000)
    assert energy_meter.joules() == {"cpu": pytest.approx(5.5)}


def test_a_counter_that_wraps_around_is_followed(zone, root):
    package, clock = zone("intel-rapl:0", microjoules=RANGE - 1_000_000), Clock()
    energy_meter = meter(root, clock)
    for wraps in range(1, 4):
        set_counter(package, 500_000)
        assert energy_meter.joules()["cpu"] == pytest.approx((wraps - 1) * RANGE / 1e6 + 1.5)
        for microjoules in (30_000_000_000, 60_000_000_000, RANGE - 1_000_000):
            clock.seconds += 30.0
            set_counter(package, microjoules)
            energy_meter.joules()


def test_nothing_is_counted_twice(zone, root):
    """Cores are part of their package, psys includes it, and intel-rapl-mmio is the same counter."""
    package = zone("intel-rapl:0")
    duplicates = [zone("intel-rapl:0:0", "core"), zone("intel-rapl:0:1", "package-0"), zone("intel-rapl:1", "psys")]
    duplicates.append(zone("intel-rapl-mmio:0"))
    energy_meter = meter(root)
    for duplicate in duplicates:
        set_counter(duplicate, 9_000_000)
    set_counter(package, 2_000_000)
    assert energy_meter.joules() == {"cpu": 2.0}


@pytest.mark.parametrize("file", ["name", "energy_uj", "max_energy_range_uj"])
@pytest.mark.parametrize("fault", ["missing", "nonsense", "unreadable"])
def test_a_file_that_cannot_be_read_gives_none(zone, root, file, fault):
    """A folder instead of the file is unreadable even for root."""
    zone("intel-rapl:0")
    path = zone("intel-rapl:1") / file
    path.unlink()
    if fault == "nonsense":
        path.write_bytes(b"\xff?")
    elif fault == "unreadable":
        path.mkdir()
    assert meter(root).joules() == {"cpu": None}
    assert Meter({"cpu": cpu_counters(root / "intel-rapl:0")}).joules() == {"cpu": None}  # a folder without zones


def test_a_file_that_disappears_gives_none_from_then_on(zone, root):
    first, second = zone("intel-rapl:0"), zone("intel-rapl:1", "package-1")
    energy_meter = meter(root)
    set_counter(first, 1_000_000)
    assert energy_meter.joules() == {"cpu": 1.0}
    shutil.move(second, root / "away")
    assert energy_meter.joules() == {"cpu": None}
    shutil.move(root / "away", second)
    assert energy_meter.joules() == {"cpu": None}, "the count in between is unknown"


@pytest.mark.parametrize(
    ("before", "after", "seconds"),
    [
        (0, 1_000_000, 33.0),  # it may have wrapped more than once
        (40_000_000_000, 0, 10.0),  # it was reset to 0, as by sleep
        (0, 30_000_000_000, 10.0),  # 3 kW
    ],
)
def test_a_counter_that_cannot_be_followed_gives_none(zone, root, before, after, seconds):
    package, clock = zone("intel-rapl:0", microjoules=before), Clock()
    energy_meter = meter(root, clock)
    clock.seconds += seconds
    set_counter(package, after)
    assert energy_meter.joules() == {"cpu": None}


def test_a_thread_reads_the_counters_until_the_end_of_the_block(monkeypatch):
    """The counter wraps around again and again."""
    monkeypatch.setattr(energy, "READ_EVERY_SECONDS", 0.001)
    readings = []

    def count():
        readings.append(len(readings) * 500 % 997)
        return readings[-1]

    with Meter({"cpu": [Counter(count, 1.0, 997)]}) as energy_meter:
        deadline = time.monotonic() + 30
        while len(readings) < 11 and time.monotonic() < deadline:
            time.sleep(0.001)
        joules = energy_meter.joules()["cpu"]
        assert joules >= 500 * 10
        assert joules % 500 == 0
    time.sleep(0.05)
    before = len(readings)
    time.sleep(0.05)
    assert len(readings) == before


# GPUs.


@pytest.fixture
def nvml(monkeypatch):
    """Install an NVML in which one GPU has torch's UUID; `counter` is called with its handle."""

    def install(counter):
        functions = {"nvmlInit": lambda: None, "nvmlDeviceGetHandleByUUID": {b"GPU-b5c0": "the handle"}.__getitem__}
        functions["nvmlDeviceGetTotalEnergyConsumption"] = counter
        monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**functions))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="b5c0"))

    return install


def test_a_gpu_is_found_by_its_uuid(nvml):
    millijoules = {"the handle": iter([5, 7_000, 7_000 + 1_500])}
    nvml(lambda handle: next(millijoules[handle]))
    energy_meter = Meter({"cuda": gpu_counters(torch.device("cuda", 3))}, Clock())
    assert energy_meter.joules() == {"cuda": pytest.approx(1.5)}
    assert energy_meter.joules() == {"cuda": None}, "the driver failed"


def test_a_gpu_without_a_counter_gives_none(nvml, monkeypatch):
    nvml({}.__getitem__)
    assert gpu_counters(torch.device("cuda")) is None
    nvml({"the handle": 7}.__getitem__)
    assert len(gpu_counters(torch.device("cuda"))) == 1
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert gpu_counters(torch.device("cuda")) is None
    assert counters(torch.device("xpu"))["xpu"] is None
    assert Meter(counters(torch.device("mps"))).joules()["mps"] is None


# Several processes, readings and stages.


def test_only_the_first_process_of_a_host_reads_the_cpus(zone, monkeypatch, root):
    zone("intel-rapl:0")
    monkeypatch.setattr(energy, "POWERCAP", root)
    assert len(counters(CPU)["cpu"]) == 1
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert len(counters(CPU)["cpu"]) == 1
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert counters(CPU) == {"cpu": []}
    assert Meter(counters(CPU)).joules() == {"cpu": 0}


SUM_IN_PROCESS = """
import json, os
from pathlib import Path
os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
import torch
from fastdraft.system import processes
from fastdraft.system.energy import summed_over_processes
processes.join(torch.device("cpu"))
readings = [{"cuda": 2.5 + rank, "cpu": 0.0 if rank else 7.0}, {"cpu": 3.0, "cuda": None if rank else 1.0}]
Path(folder, str(rank)).write_text(json.dumps([summed_over_processes(joules) for joules in readings]))
processes.leave()
"""


@pytest.mark.slow
def test_processes_are_summed_and_none_in_one_gives_none(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        scope = {"rank": rank, "port": port, "folder": tmp_path}
        started.append(multiprocessing.get_context("forkserver").Process(target=exec, args=(SUM_IN_PROCESS, scope)))
        started[-1].start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    for rank in range(2):
        sums = json.loads((tmp_path / str(rank)).read_text())
        assert sums == [{"cpu": 7.0, "cuda": 6.0}, {"cpu": 6.0, "cuda": None}]
    assert summed_over_processes({"cpu": 2.0, "cuda": None}) == {"cpu": 2.0, "cuda": None}


def test_two_readings_of_a_stage_are_added():
    assert add_joules({}, {"cpu": 3.0}) == {"cpu": 3.0}
    assert add_joules({"cpu": 2.0, "cuda": 7.0}, {"cpu": 3.0}) == {"cpu": 5.0, "cuda": 7.0}
    assert add_joules({"cpu": 2.0}, {"cpu": None, "cuda": 1.0}) == {"cpu": None, "cuda": 1.0}
    assert add_joules({"cpu": None}, {"cpu": 2.0}) == {"cpu": None}
    assert add_joules(None, {"cpu": 3.0}) is None


def test_the_total_of_stages_names_the_parts_and_stages_it_covers():
    assert total_joules([]) == total_joules([None]) == TotalJoules(None, "")
    assert total_joules([{"cpu": None}, None]) == TotalJoules(None, "not cpu")
    assert total_joules([{"cpu": 2.0}]) == TotalJoules(2.0, "cpu")
    assert total_joules([{"cpu": 2.0}, {"cpu": 3.0, "cuda": 5.0}]) == TotalJoules(10.0, "cpu, cuda")
    assert total_joules([{"cpu": None, "cuda": 5.0}]) == TotalJoules(5.0, "cuda, not cpu")
    stages = [None, {"cpu": 2.0}, {"cpu": None, "cuda": 5.0}]
    assert total_joules(stages) == TotalJoules(7.0, "cpu in 1 of 3 stages, cuda in 1 of 2 stages")
    assert total_joules([{"cpu": 0.0}]) == TotalJoules(0.0, "cpu")


def test_energy_is_printed_in_a_fitting_unit():
    texts = [energy_text(joules) for joules in (0, 71.25, 3599, 3600, 46_000, 3.6e6, 1.234e10)]
    assert texts == ["0.0 J", "71.2 J", "3,599.0 J", "1.0 Wh", "12.8 Wh", "1.0 kWh", "3,427.8 kWh"]


# Stages.


class WorkCard(Card):
    kind: ClassVar[str] = "work"


@pytest.fixture
def run_stage(tiny, zone, root, monkeypatch):
    """Run a stage that adds 3 J to the machine's counter and returns the given result. Returns the stage's card."""
    package = zone("intel-rapl:0")
    monkeypatch.setattr(energy, "POWERCAP", root)
    monkeypatch.chdir(tiny)
    recipe = resolve(Path("recipe.yaml")).recipe
    run_context = RunContext(recipe, tiny / "run", CPU)
    (tiny / "run").mkdir()

    def run(result):
        def make(run_context, folder):
            set_counter(package, 3_000_000)
            return result

        monkeypatch.setitem(MAKERS, "work", Maker(make, WorkCard))
        stage = Stage("work", (), lambda recipe: (recipe.seed,))
        _make(stage, run_context, Manifest(run_context.folder, digest(recipe), 7, CPU), "key")
        return json.loads((run_context.folder / "work" / "card.json").read_text())

    return run


def test_a_card_has_the_energy_and_tokens_of_its_stage(run_stage):
    cost = run_stage(StageResult({}, tokens=13))["cost"]
    assert cost["joules"] == {"cpu": 3.0}
    assert cost["tokens"] == 13


@pytest.mark.parametrize("joules", [{"cpu": 88.0}, {"cpu": None}, None])
def test_a_resumed_stage_reports_its_own_cost(run_stage, joules):
    cost = run_stage(StageResult({}, 13, 5.0, joules))["cost"]
    assert (cost["seconds"], cost["joules"]) == (5.0, joules)


def test_the_summary_of_a_run_shows_energy_only_if_it_was_measured():
    def summary(**joules):
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(
            terminal_run.costs({name: Cost(seconds=2.0, joules=joules.get(name)) for name in ("target", "align")})
        )
        return console.export_text()

    assert "energy" not in summary() + summary(align={"cpu": None})
    text = summary(align={"cpu": 5400.0, "cuda": None})
    assert "energy" in text
    assert text.count("1.5 Wh (cpu, not cuda)") == 1
    assert text.count("1.5 Wh (cpu in 1 of 2 stages, not cuda)") == 1


def test_a_cost_without_energy_is_valid():
    assert Cost.model_validate({"seconds": 1.0, "tokens": 2}).joules is None
