"""Energy: what counters say is added up, what they do not say is not known, and nothing about them stops a run."""

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
from fastdraft.pipeline.stage_result import StageResult
from fastdraft.pipeline.stages import Stage, _make
from fastdraft.report import terminal_run
from fastdraft.system import energy
from fastdraft.system.cards import Card, Cost
from fastdraft.system.energy import (
    Counter,
    Meter,
    Spent,
    added,
    counters,
    energy_text,
    gpu,
    over_processes,
    packages,
    spent,
)
from fastdraft.system.manifest import Manifest

CPU = torch.device("cpu")
# What the counters of processors say of themselves: 65 kJ, in microjoules.
RANGE = 65_532_610_987


class Clock:
    """A clock that is set."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def zone(tmp_path):
    """Make a powercap zone below the test's folder; its folder."""

    def make(place, name="package-0", microjoules=0):
        folder = tmp_path / "powercap" / place
        folder.mkdir(parents=True)
        for file, content in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", RANGE)):
            (folder / file).write_text(f"{content}\n")
        return folder

    return make


@pytest.fixture
def root(tmp_path):
    return tmp_path / "powercap"


def to(zone, microjoules):
    """A counter goes on to."""
    (zone / "energy_uj").write_text(f"{microjoules}\n")


def meter(root, clock=None):
    return Meter({"cpu": packages(root)}, clock or Clock())


# CPU packages.


def test_packages_are_added_up(zone, root):
    one, other = zone("intel-rapl:0", "package-0", 7), zone("intel-rapl:1", "package-1-die-0", 11)
    found = meter(root)
    assert found.joules() == {"cpu": 0.0}
    to(one, 7 + 3_000_000), to(other, 11 + 500_000)
    assert found.joules() == {"cpu": pytest.approx(3.5)}
    to(one, 7 + 5_000_000)
    assert found.joules() == {"cpu": pytest.approx(5.5)}


def test_a_counter_that_is_full_begins_again(zone, root):
    package, clock = zone("intel-rapl:0", microjoules=RANGE - 1_000_000), Clock()
    found = meter(root, clock)
    for turn in range(1, 4):
        to(package, 500_000)
        assert found.joules()["cpu"] == pytest.approx((turn - 1) * RANGE / 1e6 + 1.5)
        for seconds, microjoules in ((30.0, 30_000_000_000), (30.0, 60_000_000_000), (30.0, RANGE - 1_000_000)):
            clock.seconds += seconds
            to(package, microjoules)
            found.joules()


def test_nothing_is_counted_twice(zone, root):
    """Cores are a part of their package, psys holds it, and intel-rapl-mmio is the same counter by another way."""
    kept = zone("intel-rapl:0")
    others = [zone("intel-rapl:0:0", "core"), zone("intel-rapl:0:1", "package-0"), zone("intel-rapl:1", "psys")]
    others.append(zone("intel-rapl-mmio:0"))
    found = meter(root)
    for each in others:
        to(each, 9_000_000)
    to(kept, 2_000_000)
    assert found.joules() == {"cpu": 2.0}


@pytest.mark.parametrize("file", ["name", "energy_uj", "max_energy_range_uj"])
@pytest.mark.parametrize("fault", ["gone", "nonsense", "refused"])
def test_a_file_that_cannot_be_read_is_not_known(zone, root, file, fault):
    """A folder in the place of the file refuses to be read by root too."""
    zone("intel-rapl:0")
    path = zone("intel-rapl:1") / file
    path.unlink()
    if fault == "nonsense":
        path.write_bytes(b"\xff?")
    elif fault == "refused":
        path.mkdir()
    assert meter(root).joules() == {"cpu": None}
    assert Meter({"cpu": packages(root / "intel-rapl:0")}).joules() == {"cpu": None}  # no zones at all


def test_a_file_that_vanishes_is_not_known_from_then_on(zone, root):
    package, other = zone("intel-rapl:0"), zone("intel-rapl:1", "package-1")
    found = meter(root)
    to(package, 1_000_000)
    assert found.joules() == {"cpu": 1.0}
    shutil.move(other, root / "away")
    assert found.joules() == {"cpu": None}
    shutil.move(root / "away", other)
    assert found.joules() == {"cpu": None}, "what it counted meanwhile is unknown"


@pytest.mark.parametrize(
    ("before", "after", "seconds"),
    [
        (0, 1_000_000, 33.0),  # it may have been full more than once
        (40_000_000_000, 0, 10.0),  # it was not full: it was set to 0, by sleep
        (0, 30_000_000_000, 10.0),  # 3 kW
    ],
)
def test_a_counter_that_cannot_be_followed_is_not_known(zone, root, before, after, seconds):
    package, clock = zone("intel-rapl:0", microjoules=before), Clock()
    found = meter(root, clock)
    clock.seconds += seconds
    to(package, after)
    assert found.joules() == {"cpu": None}


def test_counters_are_read_while_the_work_goes_on(monkeypatch):
    """Full again and again; after the end nobody reads."""
    monkeypatch.setattr(energy, "READ_EVERY_SECONDS", 0.001)
    read = []

    def count():
        read.append(len(read) * 500 % 997)
        return read[-1]

    with Meter({"cpu": [Counter(count, 1.0, 997)]}) as found:
        deadline = time.monotonic() + 30
        while len(read) < 11 and time.monotonic() < deadline:
            time.sleep(0.001)
        joules = found.joules()["cpu"]
        assert joules >= 500 * 10
        assert joules % 500 == 0
    time.sleep(0.05)
    seen = len(read)
    time.sleep(0.05)
    assert len(read) == seen


# GPUs.


@pytest.fixture
def nvml(monkeypatch):
    """NVML of a machine where one GPU has torch's UUID; `counter` is asked with its handle."""

    def install(counter):
        found = {"nvmlInit": lambda: None, "nvmlDeviceGetHandleByUUID": {b"GPU-b5c0": "the handle"}.__getitem__}
        found["nvmlDeviceGetTotalEnergyConsumption"] = counter
        monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**found))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="b5c0"))

    return install


def test_a_gpu_is_asked_by_its_uuid(nvml):
    millijoules = {"the handle": iter([5, 7_000, 7_000 + 1_500])}
    nvml(lambda handle: next(millijoules[handle]))
    found = Meter({"cuda": gpu(torch.device("cuda", 3))}, Clock())
    assert found.joules() == {"cuda": pytest.approx(1.5)}
    assert found.joules() == {"cuda": None}, "the driver had no more to say"


def test_a_gpu_without_a_counter_is_not_known(nvml, monkeypatch):
    nvml({}.__getitem__)
    assert gpu(torch.device("cuda")) is None
    nvml({"the handle": 7}.__getitem__)
    assert len(gpu(torch.device("cuda"))) == 1
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert gpu(torch.device("cuda")) is None
    assert counters(torch.device("xpu"))["xpu"] is None
    assert Meter(counters(torch.device("mps"))).joules()["mps"] is None


# Several processes, several stretches, several stages.


def test_the_first_process_of_a_host_reads_its_cpus(zone, monkeypatch, root):
    zone("intel-rapl:0")
    monkeypatch.setattr(energy, "POWERCAP", root)
    assert len(counters(CPU)["cpu"]) == 1
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert len(counters(CPU)["cpu"]) == 1
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert counters(CPU) == {"cpu": []}
    assert Meter(counters(CPU)).joules() == {"cpu": 0}


TWO = """
import json, os
from pathlib import Path
os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
import torch
from fastdraft.system import processes
from fastdraft.system.energy import over_processes
processes.begin(torch.device("cpu"))
asked = [{"cuda": 2.5 + rank, "cpu": 0.0 if rank else 7.0}, {"cpu": 3.0, "cuda": None if rank else 1.0}]
Path(folder, str(rank)).write_text(json.dumps([over_processes(each) for each in asked]))
processes.end()
"""


@pytest.mark.slow
def test_processes_add_up_and_one_that_is_silent_is_heard(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        scope = {"rank": rank, "port": port, "folder": tmp_path}
        started.append(multiprocessing.get_context("forkserver").Process(target=exec, args=(TWO, scope)))
        started[-1].start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    for rank in range(2):
        said = json.loads((tmp_path / str(rank)).read_text())
        assert said == [{"cpu": 7.0, "cuda": 6.0}, {"cpu": 6.0, "cuda": None}]
    assert over_processes({"cpu": 2.0, "cuda": None}) == {"cpu": 2.0, "cuda": None}


def test_stretches_of_one_work():
    assert added({}, {"cpu": 3.0}) == {"cpu": 3.0}
    assert added({"cpu": 2.0, "cuda": 7.0}, {"cpu": 3.0}) == {"cpu": 5.0, "cuda": 7.0}
    assert added({"cpu": 2.0}, {"cpu": None, "cuda": 1.0}) == {"cpu": None, "cuda": 1.0}
    assert added({"cpu": None}, {"cpu": 2.0}) == {"cpu": None}
    assert added(None, {"cpu": 3.0}) is None


def test_what_stages_took_reports_what_it_is_of():
    assert spent([]) == spent([None]) == Spent(None, "")
    assert spent([{"cpu": None}, None]) == Spent(None, "not cpu")
    assert spent([{"cpu": 2.0}]) == Spent(2.0, "cpu")
    assert spent([{"cpu": 2.0}, {"cpu": 3.0, "cuda": 5.0}]) == Spent(10.0, "cpu, cuda")
    assert spent([{"cpu": None, "cuda": 5.0}]) == Spent(5.0, "cuda, not cpu")
    stages = [None, {"cpu": 2.0}, {"cpu": None, "cuda": 5.0}]
    assert spent(stages) == Spent(7.0, "cpu in 1 of 3 stages, cuda in 1 of 2 stages")
    assert spent([{"cpu": 0.0}]) == Spent(0.0, "cpu")


def test_energy_in_words():
    told = [energy_text(joules) for joules in (0, 71.25, 3599, 3600, 46_000, 3.6e6, 1.234e10)]
    assert told == ["0.0 J", "71.2 J", "3,599.0 J", "1.0 Wh", "12.8 Wh", "1.0 kWh", "3,427.8 kWh"]


# Stages.


class ToilCard(Card):
    kind: ClassVar[str] = "toil"


@pytest.fixture
def walk(tiny, zone, root, monkeypatch):
    """Make a stage whose work adds 3 J to the machine's counter; its card."""
    package = zone("intel-rapl:0")
    monkeypatch.setattr(energy, "POWERCAP", root)
    monkeypatch.chdir(tiny)
    recipe = resolve(Path("recipe.yaml")).recipe
    run_context = RunContext(recipe, tiny / "run", CPU)
    (tiny / "run").mkdir()

    def go(made):
        def make(run_context, folder):
            to(package, 3_000_000)
            return made

        stage = Stage("toil", (), lambda recipe: (recipe.seed,), make, ToilCard)
        _make(stage, run_context, Manifest(run_context.folder, digest(recipe), 7, CPU), "key")
        return json.loads((run_context.folder / "toil" / "card.json").read_text())

    return go


def test_a_card_reports_what_its_stage_took(walk):
    cost = walk(StageResult({}, tokens=13))["cost"]
    assert cost["joules"] == {"cpu": 3.0}
    assert cost["tokens"] == 13


@pytest.mark.parametrize("joules", [{"cpu": 88.0}, {"cpu": None}, None])
def test_work_that_began_before_reports_itself_what_it_took(walk, joules):
    cost = walk(StageResult({}, 13, 5.0, joules))["cost"]
    assert (cost["seconds"], cost["joules"]) == (5.0, joules)


def test_the_end_of_a_run_tells_it_where_it_is_known():
    def shown(**joules):
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(
            terminal_run.costs({name: Cost(seconds=2.0, joules=joules.get(name)) for name in ("target", "align")})
        )
        return console.export_text()

    assert "energy" not in shown() + shown(align={"cpu": None})
    text = shown(align={"cpu": 5400.0, "cuda": None})
    assert "energy" in text
    assert text.count("1.5 Wh (cpu, not cuda)") == 1
    assert text.count("1.5 Wh (cpu in 1 of 2 stages, not cuda)") == 1


def test_cards_from_before_are_read():
    assert Cost.model_validate({"seconds": 1.0, "tokens": 2}).joules is None
