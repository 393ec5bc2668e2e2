"""The electricity that work takes, where the machine tells: counters of its CPU packages, and of an NVIDIA GPU.

Linux counts each CPU package under /sys/class/powercap (Intel's RAPL, and AMD's processors in the same tree): all that
runs on it, whoever's work it is, and not the memory, the disks or the power supply. Since Linux 5.10 root alone may
read it. NVML counts a GPU with its memory. What does not tell is None, and never an error: no figure is worth a run.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import NamedTuple

import torch

from fastdraft.system import processes
from fastdraft.system.optional_packages import need

# By part of the machine: `cpu`, and the kind of accelerator that the work ran on. None: it was there, and did not tell.
Joules = dict[str, float | None]

POWERCAP = Path("/sys/class/powercap")
# A package's counter begins again after 65 to 262 kJ: at 400 W after three to eleven minutes.
READ_EVERY_SECONDS = 10.0
# No package and no GPU takes as much. What would need more is a counter that began anew: not known.
MOST_WATTS = 2000.0
UNITS = (("kWh", 3.6e6), ("Wh", 3.6e3), ("J", 1.0))


class Counter(NamedTuple):
    """A count of energy, a unit of which is so many joules; it begins again at 0 after `most_units`, or never."""

    read: Callable[[], int]
    joules: float
    most_units: int | None = None


# The counters of each part; None where a part has none that tells.
Parts = Mapping[str, Sequence[Counter] | None]


def counters(device: torch.device) -> Parts:
    """What this process reads: the accelerator that it works on; its host's CPUs, if it is the host's first process."""
    first = not processes.launched() or os.environ.get("LOCAL_RANK", "0") == "0"
    found: dict[str, Sequence[Counter] | None] = {"cpu": packages() if first else []}
    if device.type != "cpu":
        found[device.type] = gpu(device) if device.type == "cuda" else None
    return found


def packages(root: Path | None = None) -> list[Counter] | None:
    """A counter for each CPU package under a powercap folder; None where there is none.

    Zones below a package (cores, graphics) are in its count; `psys`, the whole board, holds the packages.
    """
    zones = [zone for zone in sorted((root or POWERCAP).glob("intel-rapl:*")) if zone.name.count(":") == 1]
    try:
        found = [_package(zone) for zone in zones if (zone / "name").read_text().startswith("package")]
    except (OSError, ValueError):
        return None
    return found or None


def _package(zone: Path) -> Counter:
    return Counter(partial(_number, zone / "energy_uj"), 1e-6, _number(zone / "max_energy_range_uj"))


def _number(path: Path) -> int:
    return int(path.read_text())


def gpu(device: torch.device) -> list[Counter] | None:
    """NVML's counter of a CUDA device; None without fastdraft[energy], and where the GPU has none (before Volta)."""
    try:
        nvml, known = need("pynvml", "energy"), torch.cuda.get_device_properties(device)
        nvml.nvmlInit()
        # By UUID: NVML numbers all GPUs of the machine, torch those that CUDA_VISIBLE_DEVICES leaves.
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{known.uuid}".encode())
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # NVML's errors are of no class that could be named without it
        return None
    return [Counter(partial(nvml.nvmlDeviceGetTotalEnergyConsumption, handle), 1e-3)]


class Tally:
    """What a counter has counted since now; None for ever once it could not be followed."""

    def __init__(self, counter: Counter, clock: Callable[[], float]) -> None:
        self._counter, self._clock, self._units = counter, clock, 0
        self._last = self._seen()

    def advance(self) -> float | None:
        """Read the counter; the joules so far."""
        if self._last is None:
            return None
        before, self._last = self._last, self._seen()
        units = None if self._last is None else _units_between(self._counter, before, self._last)
        if units is None:
            self._last = None
            return None
        self._units += units
        return self._units * self._counter.joules

    def _seen(self) -> tuple[int, float] | None:
        try:
            return self._counter.read(), self._clock()
        except Exception:  # a file that has gone, a driver's error
            return None


def _units_between(counter: Counter, before: tuple[int, float], after: tuple[int, float]) -> int | None:
    """None where the counter may have begun again more than once, or for another reason than that it was full."""
    units, seconds = after[0] - before[0], after[1] - before[1]
    if counter.most_units is not None:
        if seconds * MOST_WATTS >= counter.most_units * counter.joules:
            return None
        units %= counter.most_units
    return units if 0 <= units * counter.joules <= MOST_WATTS * (seconds + 1.0) else None


def _awake_or_asleep() -> float:
    """Seconds; on Linux they go on while the machine sleeps, when a counter may begin anew."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


class Meter:
    """Follows counters from now to the end of a `with`, in a thread of its own."""

    def __init__(self, parts: Parts, clock: Callable[[], float] = _awake_or_asleep) -> None:
        self._tallies = {
            part: None if found is None else [Tally(counter, clock) for counter in found]
            for part, found in parts.items()
        }
        self._lock, self._ended = Lock(), Event()

    def __enter__(self) -> Meter:
        if any(self._tallies.values()):
            Thread(target=self._follow, name="energy", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def joules(self) -> Joules:
        """Since the beginning; of a part all of whose counters told all the time."""
        with self._lock:
            return {part: None if tallies is None else _sum(tallies) for part, tallies in self._tallies.items()}

    def _follow(self) -> None:
        while not self._ended.wait(READ_EVERY_SECONDS):
            self.joules()


def _sum(tallies: Sequence[Tally]) -> float | None:
    found = [tally.advance() for tally in tallies]
    told = [joules for joules in found if joules is not None]
    return sum(told) if len(told) == len(found) else None


def over_processes(joules: Joules) -> Joules:
    """Added up over the processes of this command, all of which ask at once; None where a process was not told."""
    parts = sorted(joules)
    told, silent = [joules[part] or 0.0 for part in parts], [joules[part] is None for part in parts]
    sums = processes.summed(*told, *silent)
    return {part: None if sums[len(parts) + at] else sums[at] for at, part in enumerate(parts)}


def added(before: Joules | None, after: Joules) -> Joules | None:
    """Of two stretches of the same work; a part that was silent in one is not known, and nothing is after None."""
    if before is None:
        return None
    return {part: _both(before.get(part, 0.0), after.get(part, 0.0)) for part in sorted({*before, *after})}


def _both(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


class Spent(NamedTuple):
    """What was told of the energy of stages, None where nothing was, and `of` which parts and stages, in words."""

    joules: float | None
    of: str


def spent(stages: Sequence[Joules | None]) -> Spent:
    """Of stages together; one that is None was not measured."""
    measured = [stage for stage in stages if stage is not None]
    parts = sorted({part for stage in measured for part in stage})
    told = {part: [each for stage in measured if (each := stage.get(part)) is not None] for part in parts}
    idle = {part: sum(part not in stage for stage in measured) for part in parts}
    heard_first = sorted(parts, key=lambda part: not told[part])
    words = [_told(part, len(told[part]), len(stages) - idle[part]) for part in heard_first]
    return Spent(sum(map(sum, told.values())) if any(told.values()) else None, ", ".join(words))


def _told(part: str, told: int, of: int) -> str:
    return part if told == of else f"{part} in {told} of {of} stages" if told else f"not {part}"


def energy_text(joules: float) -> str:
    """In the unit that fits."""
    unit, size = next((each for each in UNITS if joules >= each[1]), UNITS[-1])
    return f"{joules / size:,.1f} {unit}"
