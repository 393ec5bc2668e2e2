"""Run the tasks of a datatrove pipeline on this machine, on Slurm or on Ray: one entry each in `EXECUTORS`.

All executors write the same files.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.utils.logging import logger

from fastdraft.config import TokenizePart
from fastdraft.system import errors, ray_cluster
from fastdraft.system.errors import RunError, UserError
from fastdraft.system.files import remove, write_json
from fastdraft.system.progress import Bar

Step = Callable[..., Any]

# datatrove logs every task to standard error; the errors of tasks are raised by `run_tasks`.
logger.disable("datatrove")


def run_tasks(*steps: Step, label: str, options: TokenizePart, folder: Path) -> None:
    """Run the unfinished tasks of a pipeline; afterwards all are finished. The log is in `folder`.

    A UserError of a task is raised here, wherever the task ran; RunError for any other failure.
    """
    log = folder.absolute() / "log"
    for failure in log.glob("failures/*.json"):
        remove(failure, inside=log)
    executor = EXECUTORS[options.executor](list(steps), options, log)
    reason = "some of them failed"
    try:
        with _progress_bar(label, executor):
            executor.run()
    except (TaskEnded, subprocess.CalledProcessError) as error:
        reason = str(error)
    _check_finished(executor, log, reason)


@contextmanager
def _progress_bar(label: str, executor: PipelineExecutor) -> Iterator[None]:
    """A bar of the finished tasks, counted by datatrove's marks on disk; none if there is only one task."""
    tasks, ended = executor.world_size, threading.Event()
    if tasks == 1:
        yield
        return

    def watch(seen: int) -> None:
        last = False
        while not last:
            last = ended.wait(1.0)
            finished = tasks - len(executor.get_incomplete_ranks())
            if finished > seen:
                bar.advance(finished - seen)
            seen = finished

    before = tasks - len(executor.get_incomplete_ranks())
    with Bar(label, tasks, "tasks", before) as bar:
        watcher = threading.Thread(target=watch, args=(before,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def _check_finished(executor: PipelineExecutor, log: Path, reason: str) -> None:
    """Raise the first UserError that a task recorded; RunError with the first other failure, or with `reason`."""
    failures = [(path, *json.loads(path.read_text(encoding="utf-8"))) for path in sorted(log.glob("failures/*.json"))]
    for _, user_error, text, _ in failures:
        if user_error is not None:
            raise getattr(errors, user_error)(text)
    for path, _, text, trace in failures[:1]:
        path.with_suffix(".txt").write_text(trace, encoding="utf-8")
        reason = f"task {int(path.stem)}: {text}; the traceback is in {path.with_suffix('.txt')}"
    if ranks := executor.get_incomplete_ranks():
        raise RunError(
            f"{len(ranks)} of {executor.world_size} tasks are not finished ({reason})\n"
            f"  do: fix that (the tasks' logs are in {log}), then run the same command to continue with these tasks"
        )


class TaskEnded(Exception):
    """The process of a task ended before the task was finished."""


class RecordsFailures:
    """Mixin for executors: a failed task writes its error to a file, because not every executor passes errors on."""

    logging_dir: Any

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        try:
            return super()._run_for_rank(rank, local_rank, node_rank)  # type: ignore[misc]
        except Exception as error:
            is_user_error = isinstance(error, UserError)
            user_error, text = (type(error).__name__, str(error)) if is_user_error else (None, repr(error))
            failure = Path(self.logging_dir.resolve_paths(f"failures/{rank:05d}.json"))
            write_json(failure, [user_error, text, traceback.format_exc()])
            raise


class LocalTasks(RecordsFailures, LocalPipelineExecutor):  # type: ignore[misc]  # datatrove has no types
    """This machine. The tasks' processes end when this process does.

    datatrove's own `run` starts a manager process even for one worker. If this process is killed, the manager (60 MB)
    and the workers of its pool are never ended.
    """

    def run(self) -> None:
        """Run the unfinished tasks: in this process, or in one process each, `workers` at a time."""
        ranks = self.get_incomplete_ranks()
        if self.workers > 1:
            self._run_parallel(ranks)
        else:
            for rank in ranks:
                deepcopy(self)._run_for_rank(rank)

    def _run_parallel(self, ranks: list[int]) -> None:
        """TaskEnded as soon as one task fails, since the others may take hours; no process is left running."""
        new_process = multiprocessing.get_context("forkserver").Process
        waiting, running = deque(ranks), dict[Any, BaseProcess]()
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    rank = waiting.popleft()
                    process = new_process(target=_run_one_task, args=(self, rank), name=f"task {rank}", daemon=True)
                    process.start()
                    running[process.sentinel] = process
                for sentinel in wait(list(running)):
                    ended = running.pop(sentinel)
                    ended.join()
                    if ended.exitcode:
                        raise TaskEnded(f"{ended.name} ended with {ended.exitcode}")
        finally:
            for unfinished in running.values():
                unfinished.kill()
                unfinished.join()


def _run_one_task(executor: PipelineExecutor, rank: int) -> None:
    """The main function of a task's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the parent, which ends its tasks
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        executor._run_for_rank(rank)
    except Exception:
        sys.exit(1)  # RecordsFailures has written the error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "the process of a task has a parent"
    parent.join()
    os._exit(1)


class SlurmTasks(RecordsFailures, SlurmPipelineExecutor):  # type: ignore[misc]
    """A job array on a Slurm cluster; `run` returns when it has ended (sbatch --wait)."""

    def launch_merge_stats(self) -> None:
        """Submit no second job, which would add up datatrove's statistics; they are not used."""


RAY_STORE_BYTES = 2**27  # tasks return nothing


class RayTasks(RecordsFailures, RayPipelineExecutor):  # type: ignore[misc]
    """The Ray cluster at RAY_ADDRESS, otherwise one that is started on this machine."""

    def run(self) -> None:
        """Run the unfinished tasks; a cluster that was started for them is stopped afterwards."""
        with ray_cluster.connected(self.workers, RAY_STORE_BYTES), warnings.catch_warnings():
            # datatrove uses a deprecated argument of Ray; where warnings are errors, its `run` would hang.
            warnings.filterwarnings("ignore", "placement_group", DeprecationWarning)
            super().run()


def _local(pipeline: list[Step], options: TokenizePart, log: Path) -> PipelineExecutor:
    return LocalTasks(pipeline, tasks=options.tasks, workers=min(options.workers, options.tasks), logging_dir=str(log))


def _slurm(pipeline: list[Step], options: TokenizePart, log: Path) -> PipelineExecutor:
    assert options.slurm is not None, "the recipe requires `slurm` for this executor"
    if shutil.which("sbatch") is None:
        raise RunError(
            "sbatch is not on the PATH\n  do: run this on a machine of the cluster, or set tokenize.executor=local"
        )
    minutes = math.ceil(60 * options.slurm.hours)
    return SlurmTasks(
        pipeline,
        tasks=options.tasks,
        workers=options.workers,
        time=f"{minutes // 60:02d}:{minutes % 60:02d}:00",
        partition=options.slurm.partition,
        mem_per_cpu_gb=options.slurm.gigabytes,
        job_name="fastdraft-tokenize",
        qos=None,
        env_command=f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        sbatch_args={**options.slurm.options, "wait": ""},
        logging_dir=str(log),
    )


def _ray_tasks(pipeline: list[Step], options: TokenizePart, log: Path) -> PipelineExecutor:
    return RayTasks(pipeline, tasks=options.tasks, workers=options.workers, mem_per_cpu_gb=0, logging_dir=str(log))


EXECUTORS: dict[str, Callable[[list[Step], TokenizePart, Path], PipelineExecutor]] = {
    "local": _local,
    "slurm": _slurm,
    "ray": _ray_tasks,
}
