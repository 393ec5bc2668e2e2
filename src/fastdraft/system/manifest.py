"""manifest.json of a run folder: an entry for each command, with recipe, commit, versions and device.

With several processes only the main one writes it.
"""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from fastdraft.system import processes
from fastdraft.system.errors import CardError
from fastdraft.system.files import write_json
from fastdraft.system.validation import read_json

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "datatrove", "datasets", "numpy")


class Command(BaseModel):
    """The entry of one command, as reports and model cards show it. None or empty: not recorded."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    command: str = "?"
    started: str = "?"
    outcome: str | None = None
    seed: int | None = None
    commit: str | None = None
    device: str | None = None
    python: str = "?"
    versions: dict[str, str] = Field(default_factory=dict)
    stages: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Commands(BaseModel):
    """The content of manifest.json."""

    commands: tuple[Command, ...]


def read_commands(run: Path) -> tuple[Command, ...]:
    """The commands of a run folder, none if it has no manifest; CardError if the file is not one."""
    path = run / "manifest.json"
    return read_json(path, Commands, "a manifest", "move it away").commands if path.is_file() else ()


class Manifest:
    """The entry of this command. Every change is written to the disk at once."""

    def __init__(self, folder: Path, recipe_digest: str, seed: int, device: torch.device) -> None:
        self._path = folder / "manifest.json"
        self._entry: dict[str, Any] = {
            "command": shlex.join(["fastdraft", *sys.argv[1:]]),
            "started": _now(),
            "recipe": recipe_digest,
            "seed": seed,
            "commit": _commit(),
            "versions": {name: metadata.version(name) for name in ("fastdraft", *PACKAGES)},
            "python": platform.python_version(),
            "device": device_name(device),
            "threads": torch.get_num_threads(),
            "processes": processes.world_size(),
            "stages": {},
            "notes": [],
        }
        self._commands = [*_commands(self._path), self._entry]
        self._write()

    def stage(self, name: str, outcome: str) -> None:
        """Record a stage: `made` or `already done`."""
        self._entry["stages"][name] = outcome
        self._write()

    def note(self, text: str) -> None:
        """Record a remark that matters for the results."""
        self._entry["notes"].append(text)
        self._write()

    def end(self, outcome: str) -> None:
        """Record the end of the command: `finished`, or the error that stopped it."""
        self._entry |= {"ended": _now(), "outcome": outcome}
        self._write()

    def _write(self) -> None:
        if processes.is_main():
            write_json(self._path, {"commands": self._commands})


def device_name(device: torch.device) -> str:
    """A device's name for people."""
    if device.type != "cpu":
        get_name = getattr(torch.get_device_module(device), "get_device_name", None)
        return str(get_name(device)) if get_name else str(device)
    return f"{platform.processor() or platform.machine()} cpu, {torch.get_num_threads()} threads"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commands(path: Path) -> list[Any]:
    """The entries of earlier commands; CardError if the file cannot be read."""
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["commands"])
    except (ValueError, KeyError, TypeError) as error:
        raise CardError(f"{path} is not a manifest ({error})\n  do: move it away, then run again") from error


def _commit() -> str | None:
    """The commit of the checkout that this code runs from; None for an installed package, or without git."""
    if shutil.which("git") is None:
        return None
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    tracked = subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True)
    commit = subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return commit.stdout.strip() or None if tracked.returncode == commit.returncode == 0 else None
