"""What was run, with what, on what: one entry of manifest.json for each command that touched the run folder.

Of several processes the main one writes it.
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

from fastdraft import __version__
from fastdraft.system import processes
from fastdraft.system.errors import CardError
from fastdraft.system.files import write_json

VERSIONS_OF = ("torch", "transformers", "tokenizers", "safetensors", "datatrove", "datasets", "numpy")


class Manifest:
    """manifest.json of a run folder; each `note` and each stage is on the disk at once."""

    def __init__(self, folder: Path, recipe_digest: str, seed: int, device: torch.device) -> None:
        self._path = folder / "manifest.json"
        before = _commands(self._path)
        self._entry: dict[str, Any] = {
            "command": shlex.join(["fastdraft", *sys.argv[1:]]),
            "started": _now(),
            "recipe": recipe_digest,
            "seed": seed,
            "commit": _commit(),
            "versions": {"fastdraft": __version__} | {name: metadata.version(name) for name in VERSIONS_OF},
            "python": platform.python_version(),
            "device": describe(device),
            "threads": torch.get_num_threads(),
            "processes": processes.count(),
            "stages": {},
            "notes": [],
        }
        self._commands = [*before, self._entry]
        self._write()

    def stage(self, name: str, outcome: str) -> None:
        """A stage was `made`, or was `already done`."""
        self._entry["stages"][name] = outcome
        self._write()

    def note(self, text: str) -> None:
        """Something that a reader of the results must know."""
        self._entry["notes"].append(text)
        self._write()

    def end(self, outcome: str) -> None:
        """The command ended: `finished`, or the error that stopped it."""
        self._entry |= {"ended": _now(), "outcome": outcome}
        self._write()

    def _write(self) -> None:
        if processes.is_main():
            write_json(self._path, {"commands": self._commands})


def describe(device: torch.device) -> str:
    """A device in words."""
    if device.type != "cpu":
        named = getattr(torch.get_device_module(device), "get_device_name", None)
        return str(named(device)) if named else str(device)
    return f"{platform.processor() or platform.machine()} cpu, {torch.get_num_threads()} threads"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commands(path: Path) -> list[Any]:
    """The entries of the commands before; CardError where the file cannot be read."""
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
    ours = subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True)
    found = subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return found.stdout.strip() or None if ours.returncode == found.returncode == 0 else None
