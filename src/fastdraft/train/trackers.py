"""Experiment trackers, by accelerate: TensorBoard, trackio and Weights & Biases get the metrics of each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from fastdraft.system import processes
from fastdraft.system.optional_packages import need

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

# (name of the recipe, folder of the phase, steps taken so far) -> arguments of accelerate's tracker
Settings = Callable[[str, Path, int], dict[str, Any]]


def check(names: Sequence[str]) -> None:
    """MissingExtra, with the pip command, if the package of a tracker is not installed."""
    for name in names:
        need(name, name)


def opened(names: Sequence[str], run: str, folder: Path, step: int) -> list[GeneralTracker]:
    """The trackers of a phase that has taken `step` steps; empty in all but the main process.

    A resumed phase continues its runs in the trackers. MissingExtra if a package is not installed.
    """
    check(names)
    if not names or not processes.is_main():
        return []
    from accelerate import PartialState, tracking  # takes a second: only if trackers are used

    PartialState()  # the logger of accelerate's trackers needs it
    trackers: list[GeneralTracker] = []
    for name in names:
        kind, settings = TRACKERS[name]
        tracker: GeneralTracker = getattr(tracking, kind)(**settings(run, folder, step))
        tracker.start()
        trackers.append(tracker)
    return trackers


def numbers_of(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl without the step, which trackers take separately."""
    return {key: value for key, value in row.items() if isinstance(value, int | float) and key != "step"}


def _tensorboard(run: str, folder: Path, step: int) -> dict[str, Any]:
    """Event files in tensorboard/PHASE of the run folder; events of steps that run again are purged."""
    return {
        "run_name": folder.name,
        "logging_dir": str(folder.parent / "tensorboard"),
        "purge_step": step + 1 if step else None,
    }


def _trackio(run: str, folder: Path, step: int) -> dict[str, Any]:
    """A project with the name of the recipe; its runs are the phases."""
    return {"run_name": run, "name": f"{folder.name}-{_identity(folder)}", "resume": "allow"}


def _wandb(run: str, folder: Path, step: int) -> dict[str, Any]:
    return {
        "run_name": run,
        "name": folder.name,
        "group": str(folder.parent),
        "dir": str(folder.parent),
        "id": _identity(folder),
        "resume": "allow",
    }


def _identity(folder: Path) -> str:
    """8 hex digits from the folder of the phase and the stage's key, which changes with the recipe."""
    path = folder / "key"
    key = path.read_text() if path.is_file() else ""
    return xxhash.xxh3_64_hexdigest(f"{folder.resolve()} {key}".encode())[:8]


# Name in the recipe, also of the package and the extra -> accelerate's class and its arguments.
TRACKERS: dict[str, tuple[str, Settings]] = {
    "tensorboard": ("TensorBoardTracker", _tensorboard),
    "trackio": ("TrackioTracker", _trackio),
    "wandb": ("WandBTracker", _wandb),
}
