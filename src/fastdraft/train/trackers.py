"""The rows of metrics.jsonl in accelerate's trackers too: TensorBoard, trackio, Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from fastdraft.system import processes
from fastdraft.system.optional_packages import need

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

# (recipe's name, phase's folder, steps taken before) -> what accelerate's tracker is made with
Settings = Callable[[str, Path, int], dict[str, Any]]


def check(names: Sequence[str]) -> None:
    """MissingExtra, which names the pip line, where the package of a tracker is not installed."""
    for name in names:
        need(name, name)


def opened(names: Sequence[str], run: str, folder: Path, step: int) -> list[GeneralTracker]:
    """The trackers of a phase that has taken so many steps, ready for the next one's row; in the main process alone.

    A phase that goes on after a kill goes on in its trackers too. MissingExtra as above.
    """
    check(names)
    if not names or not processes.is_main():
        return []
    from accelerate import PartialState, tracking  # a second of imports, for those who ask

    PartialState()  # its trackers log to a logger that asks it which process this is
    found: list[GeneralTracker] = []
    for name in names:
        kind, settings = TRACKERS[name]
        tracker: GeneralTracker = getattr(tracking, kind)(**settings(run, folder, step))
        tracker.start()
        found.append(tracker)
    return found


def logged(row: dict[str, Any]) -> dict[str, float]:
    """What a tracker can draw of a row: its numbers, but the step, which is their place."""
    return {key: value for key, value in row.items() if isinstance(value, int | float) and key != "step"}


def _tensorboard(run: str, folder: Path, step: int) -> dict[str, Any]:
    """Event files in tensorboard/PHASE of the run folder, without those of steps that are taken again."""
    place = {"run_name": folder.name, "logging_dir": str(folder.parent / "tensorboard")}
    return place | {"purge_step": step + 1 if step else None}


def _trackio(run: str, folder: Path, step: int) -> dict[str, Any]:
    """A project of the recipe's name, whose runs are the phases of its run folders."""
    return {"run_name": run, "name": f"{folder.name}-{_identity(folder)}", "resume": "allow"}


def _wandb(run: str, folder: Path, step: int) -> dict[str, Any]:
    return {
        **{"run_name": run, "name": folder.name, "group": str(folder.parent), "dir": str(folder.parent)},
        **{"id": _identity(folder), "resume": "allow"},
    }


def _identity(folder: Path) -> str:
    """8 hex digits for a phase of a run: its folder, and what is made in it, which a changed recipe makes anew."""
    key = folder / "key"
    made = key.read_text() if key.is_file() else ""
    return xxhash.xxh3_64_hexdigest(f"{folder.resolve()} {made}".encode())[:8]


# By the recipe's name for it, which is its package's and its extra's too: accelerate's class, and its settings.
TRACKERS: dict[str, tuple[str, Settings]] = {
    "tensorboard": ("TensorBoardTracker", _tensorboard),
    "trackio": ("TrackioTracker", _trackio),
    "wandb": ("WandBTracker", _wandb),
}
