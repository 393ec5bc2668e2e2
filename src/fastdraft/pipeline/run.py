"""A recipe run in its folder, which is locked meanwhile and keeps the resolved recipe and a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch

from fastdraft.config.resolve import Resolved, digest, resolved_yaml
from fastdraft.models.run_context import RunContext
from fastdraft.pipeline.run_stages import run_stages
from fastdraft.system import processes
from fastdraft.system.cards import Card
from fastdraft.system.errors import DiskFull
from fastdraft.system.files import atomic_write, locked
from fastdraft.system.manifest import Manifest
from fastdraft.system.progress import log_line
from fastdraft.system.signals import stop_on_sigterm
from fastdraft.system.torch_device import usable_device
from fastdraft.train import trackers


def run_recipe(
    resolved: Resolved, folder: Path | None = None, until: str | None = None, only: str | None = None
) -> dict[str, Card]:
    """The cards of the stages passed: all stages, those up to `until`, or `only` one. Finished stages are skipped.

    The folder is runs/NAME unless another one is given.
    """
    with open_run(resolved, folder) as (run_context, manifest):
        cards = run_stages(run_context, manifest, until, only)
    processes.leave()
    return cards


@contextmanager
def open_run(resolved: Resolved, folder: Path | None = None) -> Iterator[tuple[RunContext, Manifest]]:
    """Lock the folder of a run, and write resolved.yaml and an entry of manifest.json.

    RunError if another process holds the folder. Ctrl-C and SIGTERM log that the run can be resumed, and are raised
    again.
    """
    recipe = resolved.recipe
    trackers.check(recipe.trackers)
    run_context = RunContext(recipe, folder or Path("runs") / recipe.name, usable_device(recipe.device))
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    try:
        with stop_on_sigterm(), ExitStack() as lock:
            processes.on_rank0(lambda: _take(run_context, resolved, lock))
            manifest = Manifest(run_context.folder, digest(recipe), recipe.seed, run_context.device)
            with _outcome_in_manifest(manifest):
                yield run_context, manifest
    except KeyboardInterrupt:
        log_line("stopped: the same command goes on from the last checkpoint")
        processes.leave()
        raise


def _take(run_context: RunContext, resolved: Resolved, lock: ExitStack) -> None:
    """Hold a run folder until `lock` closes, and write the resolved recipe into it."""
    lock.enter_context(locked(run_context.folder))
    with atomic_write(run_context.folder / "resolved.yaml") as part:
        part.write_text(resolved_yaml(resolved, run_context.automatic()), encoding="utf-8")


@contextmanager
def _outcome_in_manifest(manifest: Manifest) -> Iterator[None]:
    """Write into the manifest how the command ended."""
    try:
        yield
    except KeyboardInterrupt:
        manifest.end("interrupted")
        raise
    except BaseException as error:
        with suppress(DiskFull):  # report what stopped the stage, not that the manifest could not be written
            manifest.end(f"{type(error).__name__}: {error}".splitlines()[0])
        raise
    manifest.end("finished")
