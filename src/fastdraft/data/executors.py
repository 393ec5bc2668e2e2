"""Where the tasks of a datatrove pipeline run: one row in `EXECUTORS` each. The same pipeline, the same files."""

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
from fastdraft.system.files import write_json
from fastdraft.system.progress import Bar

Step = Callable[..., Any]

# datatrove tells standard error about each task; what goes wrong in one is raised again in any case.
logger.disable("datatrove")


def run_tasks(*steps: Step, what: str, how: TokenizePart, folder: Path) -> None:
    """Run those tasks of a pipeline that are not finished (its log is in `folder`); all are when this returns.

    What a task raises for the user to fix is raised here, wherever the task ran; RunError for any other failure.
    """
    log = folder.absolute() / "log"
    for told in log.glob("told/*.json"):
        told.unlink()
    executor = EXECUTORS[how.executor](list(steps), how, log)
    why = "some of them failed"
    try:
        with _shown(what, executor):
            executor.run()
    except (TaskEnded, subprocess.CalledProcessError) as error:
        why = str(error)
    _check_finished(executor, log, why)


@contextmanager
def _shown(what: str, executor: PipelineExecutor) -> Iterator[None]:
    """A bar of the finished tasks, wherever they run; none for a single one."""
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
    with Bar(what, tasks, "tasks", before) as bar:
        watcher = threading.Thread(target=watch, args=(before,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def _check_finished(executor: PipelineExecutor, log: Path, why: str) -> None:
    """Nothing, if all tasks are; otherwise what the first of those that failed has told, or `why`."""
    told = [(path, *json.loads(path.read_text(encoding="utf-8"))) for path in sorted(log.glob("told/*.json"))]
    for _, name, text, _ in told:
        if name is not None:
            raise getattr(errors, name)(text)
    for path, _, text, trace in told[:1]:
        path.with_suffix(".txt").write_text(trace, encoding="utf-8")
        why = f"task {int(path.stem)}: {text}; {path.with_suffix('.txt')} says where"
    if ranks := executor.get_incomplete_ranks():
        raise RunError(
            f"{len(ranks)} of {executor.world_size} tasks are not finished ({why})\n"
            f"  do: fix that (the tasks' logs are in {log}), then run the same command: it goes on with these tasks"
        )


class TaskEnded(Exception):
    """A task's process ended before its task did."""


class Telling:
    """For an executor: a task that fails leaves word, since not every executor passes on what was raised."""

    logging_dir: Any

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        try:
            return super()._run_for_rank(rank, local_rank, node_rank)  # type: ignore[misc]
        except Exception as error:
            name, text = (type(error).__name__, str(error)) if isinstance(error, UserError) else (None, repr(error))
            told = Path(self.logging_dir.resolve_paths(f"told/{rank:05d}.json"))
            write_json(told, [name, text, traceback.format_exc()])
            raise


class LocalTasks(Telling, LocalPipelineExecutor):  # type: ignore[misc]  # datatrove has no types
    """This machine, with no process but the tasks', which end when this one does.

    datatrove's own `run` has a manager process even for one worker: killed, it leaves that behind for ever (60 MB), and
    its pool's workers at their tasks.
    """

    def run(self) -> None:
        """Run what is not finished: here, or as many processes at once as there are workers."""
        ranks = self.get_incomplete_ranks()
        if self.workers > 1:
            self._run_at_once(ranks)
        else:
            for rank in ranks:
                deepcopy(self)._run_for_rank(rank)

    def _run_at_once(self, ranks: list[int]) -> None:
        """TaskEnded as soon as a task fails, since the others may take hours; none is left running."""
        new_process = multiprocessing.get_context("forkserver").Process
        waiting, running = deque(ranks), dict[Any, BaseProcess]()
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    rank = waiting.popleft()
                    process = new_process(target=_one_task, args=(self, rank), name=f"task {rank}", daemon=True)
                    process.start()
                    running[process.sentinel] = process
                for sentinel in wait(list(running)):
                    ended = running.pop(sentinel)
                    ended.join()
                    if ended.exitcode:
                        raise TaskEnded(f"{ended.name} ended with {ended.exitcode}")
        finally:
            for left in running.values():
                left.kill()
                left.join()


def _one_task(executor: PipelineExecutor, rank: int) -> None:
    """A process of its own, from its beginning to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its tasks
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        executor._run_for_rank(rank)
    except Exception:
        sys.exit(1)  # it has left word


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a task's process has a parent"
    parent.join()
    os._exit(1)


class SlurmTasks(Telling, SlurmPipelineExecutor):  # type: ignore[misc]
    """A job array on a Slurm cluster; `run` returns when it has ended (sbatch --wait)."""

    def launch_merge_stats(self) -> None:
        """No second job for a sum of statistics that nobody reads."""


RAY_STORE_BYTES = 2**27  # tasks hand nothing over


class RayTasks(Telling, RayPipelineExecutor):  # type: ignore[misc]
    """The Ray cluster at RAY_ADDRESS; otherwise one of this process alone, on this machine."""

    def run(self) -> None:
        """Run what is not finished; a cluster that was started for it is gone afterwards."""
        with ray_cluster.connected(self.workers, RAY_STORE_BYTES), warnings.catch_warnings():
            # datatrove asks for its workers in a way that Ray would have otherwise; an error would hang its `run`.
            warnings.filterwarnings("ignore", "placement_group", DeprecationWarning)
            super().run()


def _local(pipeline: list[Step], how: TokenizePart, log: Path) -> PipelineExecutor:
    return LocalTasks(pipeline, tasks=how.tasks, workers=min(how.workers, how.tasks), logging_dir=str(log))


def _slurm(pipeline: list[Step], how: TokenizePart, log: Path) -> PipelineExecutor:
    assert how.slurm is not None, "the recipe saw to it"
    if shutil.which("sbatch") is None:
        raise RunError("no sbatch here\n  do: run this on a machine of the cluster, or set tokenize.executor=local")
    minutes = math.ceil(60 * how.slurm.hours)
    return SlurmTasks(
        pipeline,
        tasks=how.tasks,
        workers=how.workers,
        time=f"{minutes // 60:02d}:{minutes % 60:02d}:00",
        partition=how.slurm.partition,
        mem_per_cpu_gb=how.slurm.gigabytes,
        job_name="fastdraft-tokenize",
        qos=None,
        env_command=f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        sbatch_args={**how.slurm.options, "wait": ""},
        logging_dir=str(log),
    )


def _ray_tasks(pipeline: list[Step], how: TokenizePart, log: Path) -> PipelineExecutor:
    return RayTasks(pipeline, tasks=how.tasks, workers=how.workers, mem_per_cpu_gb=0, logging_dir=str(log))


EXECUTORS: dict[str, Callable[[list[Step], TokenizePart, Path], PipelineExecutor]] = {
    "local": _local,
    "slurm": _slurm,
    "ray": _ray_tasks,
}
