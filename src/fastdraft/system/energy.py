"""Energy of a stage, read from the counters of the CPU packages (Linux powercap) and of an NVIDIA GPU (NVML).

Linux counts each CPU package under /sys/class/powercap (Intel RAPL; AMD processors use the same files). A count covers
everything that runs on the package, other programs included, but not memory, disks or the power supply. Since Linux
5.10 only root may read it. NVML counts a GPU with its memory. Energy that cannot be measured is None and never an
error: a run must not fail because of it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, NamedTuple

from fastdraft.system import processes
from fastdraft.system.optional_packages import need

if TYPE_CHECKING:
    import torch

# Energy by part of the machine: `cpu`, and the type of the accelerator. None: the part was used and not measured.
Joules = dict[str, float | None]

POWERCAP = Path("/sys/class/powercap")
# The counter of a package wraps around after 65 to 262 kJ, which takes 3 to 11 minutes at 400 W.
READ_EVERY_SECONDS = 10.0
# No package or GPU draws more power. A larger difference means that the counter was reset.
MAX_WATTS = 2000.0
UNITS = (("kWh", 3.6e6), ("Wh", 3.6e3), ("J", 1.0))


class Counter(NamedTuple):
    """A counter of energy. It wraps around to 0 at `wraps_at` units; None: never."""

    read: Callable[[], int]
    joules_per_unit: float
    wraps_at: int | None = None


# The counters of each part; None for a part that cannot be measured.
Parts = Mapping[str, Sequence[Counter] | None]


def counters(device: torch.device) -> Parts:
    """The counters that this process reads: its accelerator's, and the CPUs' if it is the first process of its host."""
    is_first = not processes.launched() or os.environ.get("LOCAL_RANK", "0") == "0"
    parts: dict[str, Sequence[Counter] | None] = {"cpu": cpu_counters() if is_first else []}
    if device.type != "cpu":
        parts[device.type] = gpu_counters(device) if device.type == "cuda" else None
    return parts


def cpu_counters(root: Path | None = None) -> list[Counter] | None:
    """A counter for each CPU package under a powercap folder; None if there are none, or if they cannot be read.

    Zones below a package (cores, graphics) are part of its count, and `psys` (the whole board) includes the packages:
    neither is counted again.
    """
    found = []
    try:
        for zone in sorted((root or POWERCAP).glob("intel-rapl:*")):
            if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package"):
                wraps_at = _read_int(zone / "max_energy_range_uj")
                found.append(Counter(partial(_read_int, zone / "energy_uj"), 1e-6, wraps_at))
    except (OSError, ValueError):
        return None
    return found or None


def _read_int(path: Path) -> int:
    return int(path.read_text())


def gpu_counters(device: torch.device) -> list[Counter] | None:
    """NVML's counter of a CUDA device; None without fastdraft[energy], or if the GPU has none (before Volta)."""
    import torch  # 2.7 s: cards import this module, and commands that only read cards start at once

    try:
        nvml, properties = need("pynvml", "energy"), torch.cuda.get_device_properties(device)
        nvml.nvmlInit()
        # By UUID: NVML numbers all GPUs of the machine, torch only those in CUDA_VISIBLE_DEVICES.
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}".encode())
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # the classes of NVML's errors cannot be named without importing it
        return None
    return [Counter(partial(nvml.nvmlDeviceGetTotalEnergyConsumption, handle), 1e-3)]


class Tally:
    """The energy that a counter has counted since this object was made. None after any failure, until the end."""

    def __init__(self, counter: Counter, clock: Callable[[], float]) -> None:
        self._counter, self._clock, self._units = counter, clock, 0
        self._last = self._read()

    def advance(self) -> float | None:
        """Read the counter, and return the joules so far."""
        if self._last is None:
            return None
        before, self._last = self._last, self._read()
        units = None if self._last is None else _units_between(self._counter, before, self._last)
        if units is None:
            self._last = None
            return None
        self._units += units
        return self._units * self._counter.joules_per_unit

    def _read(self) -> tuple[int, float] | None:
        """The count and the time."""
        try:
            return self._counter.read(), self._clock()
        except Exception:  # a file was removed, or a driver failed
            return None


def _units_between(counter: Counter, before: tuple[int, float], after: tuple[int, float]) -> int | None:
    """The units counted between two readings; None if the counter was reset, or may have wrapped more than once."""
    units, seconds = after[0] - before[0], after[1] - before[1]
    if counter.wraps_at is not None:
        if seconds * MAX_WATTS >= counter.wraps_at * counter.joules_per_unit:
            return None
        units %= counter.wraps_at
    return units if 0 <= units * counter.joules_per_unit <= MAX_WATTS * (seconds + 1.0) else None


def _seconds_including_sleep() -> float:
    """A clock that, on Linux, also counts while the machine sleeps, when counters may be reset."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


class Meter:
    """Measures energy within a `with` block. A thread reads the counters often enough that none wraps unnoticed."""

    def __init__(self, parts: Parts, clock: Callable[[], float] = _seconds_including_sleep) -> None:
        self._tallies = {
            part: None if part_counters is None else [Tally(counter, clock) for counter in part_counters]
            for part, part_counters in parts.items()
        }
        self._lock, self._ended = Lock(), Event()

    def __enter__(self) -> Meter:
        if any(self._tallies.values()):
            Thread(target=self._follow, name="energy", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def joules(self) -> Joules:
        """Energy since the beginning. None for a part if one of its counters failed."""
        with self._lock:
            return {part: None if tallies is None else _sum(tallies) for part, tallies in self._tallies.items()}

    def _follow(self) -> None:
        while not self._ended.wait(READ_EVERY_SECONDS):
            self.joules()


def _sum(tallies: Sequence[Tally]) -> float | None:
    readings = [tally.advance() for tally in tallies]
    known = [joules for joules in readings if joules is not None]
    return sum(known) if len(known) == len(readings) else None


def summed_over_processes(joules: Joules) -> Joules:
    """The sum over all processes of the command; None for a part that one of them could not measure.

    All processes must call it at the same point.
    """
    parts = sorted(joules)
    sums = processes.summed(*(joules[part] or 0.0 for part in parts), *(joules[part] is None for part in parts))
    totals, failures = sums[: len(parts)], sums[len(parts) :]
    return {part: None if failed else total for part, total, failed in zip(parts, totals, failures, strict=True)}


def add_joules(before: Joules | None, after: Joules) -> Joules | None:
    """The sum of two readings of one stage, by part. None if either reading is missing."""
    if before is None:
        return None
    total: Joules = {}
    for part in sorted({*before, *after}):
        first, second = before.get(part, 0.0), after.get(part, 0.0)
        total[part] = None if first is None or second is None else first + second
    return total


class TotalJoules(NamedTuple):
    """Total energy, None if nothing was measured; and `of`, the parts and stages that it covers, for people."""

    joules: float | None
    of: str


def total_joules(stages: Sequence[Joules | None]) -> TotalJoules:
    """Total measured energy of the stages. A stage is None if it was not measured."""
    measured = [stage for stage in stages if stage is not None]
    parts = sorted({part for stage in measured for part in stage})
    known = {part: [joules for stage in measured if (joules := stage.get(part)) is not None] for part in parts}
    coverage = []
    for part in sorted(parts, key=lambda part: not known[part]):  # parts without any reading last
        stages_with_part = len(stages) - sum(part not in stage for stage in measured)
        if not known[part]:
            coverage.append(f"not {part}")
        elif len(known[part]) == stages_with_part:
            coverage.append(part)
        else:
            coverage.append(f"{part} in {len(known[part])} of {stages_with_part} stages")
    return TotalJoules(sum(map(sum, known.values())) if any(known.values()) else None, ", ".join(coverage))


def energy_text(joules: float) -> str:
    """Energy in kWh, Wh or J."""
    unit, size = next((unit for unit in UNITS if joules >= unit[1]), UNITS[-1])
    return f"{joules / size:,.1f} {unit}"
