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
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.utils.logging import logger

from fastdraft import errors
from fastdraft.errors import RunError, UserError
from fastdraft.extras import need
from fastdraft.progress import Bar
from fastdraft.recipe import TokenizePart
from fastdraft.run import write_json

Step = Callable[..., Any]

# datatrove tells standard error about each task; what goes wrong in one is raised again in any case.
logger.disable("datatrove")


def run_tasks(first: Callable[..., Iterable[Any]], *others: Step, what: str, how: TokenizePart, folder: Path) -> None:
    """Run those tasks of a pipeline that are not finished (its log is in `folder`); all are when this returns.

    What a task raises for the user to mend is raised here, wherever the task ran; RunError for any other failure.
    """
    log = folder.absolute() / "log"
    executor = EXECUTORS[how.executor]([partial(_telling, first, log), *others], how, log)
    try:
        with _shown(what, executor):
            executor.run()
    except (RunError, subprocess.CalledProcessError) as error:
        _raise_told(log)
        raise _unfinished(executor, log, str(error)) from error
    _raise_told(log)
    if executor.get_incomplete_ranks():
        raise _unfinished(executor, log, "some of them failed")


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


def _telling(step: Step, log: Path, data: Any, rank: int, of: int) -> Iterator[Any]:
    """A pipeline's first step, which leaves word of an error for the user to mend: not every executor passes it on."""
    told = log / "told" / f"{rank:05d}.json"
    told.unlink(missing_ok=True)
    try:
        yield from step(data, rank, of)
    except UserError as error:
        write_json(told, [type(error).__name__, str(error)])
        raise


def _raise_told(log: Path) -> None:
    for told in sorted(log.glob("told/*.json")):
        name, text = json.loads(told.read_text(encoding="utf-8"))
        raise getattr(errors, name)(text)


def _unfinished(executor: PipelineExecutor, log: Path, why: str) -> RunError:
    ranks = executor.get_incomplete_ranks()
    return RunError(
        f"{len(ranks)} of {executor.world_size} tasks are not finished ({why}), the first is {ranks[0]}\n"
        f"  do: read {log}/logs/task_{ranks[0]:05d}.log, then run the same command: it goes on with these tasks"
    )


class LocalTasks(LocalPipelineExecutor):  # type: ignore[misc]  # datatrove has no types
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
        """RunError as soon as a task fails, since the others may take hours; none is left running."""
        new_process = multiprocessing.get_context("forkserver").Process
        waiting, running = deque(ranks), dict[Any, BaseProcess]()
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    process = new_process(target=_one_task, args=(self, waiting.popleft()), daemon=True)
                    process.start()
                    running[process.sentinel] = process
                for sentinel in wait(list(running)):
                    ended = running.pop(sentinel)
                    ended.join()
                    if ended.exitcode:
                        raise RunError(f"one of them ended with {ended.exitcode}")
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
    except UserError as error:
        sys.exit(error.exit_code)  # told already


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a task's process has a parent"
    parent.join()
    os._exit(1)


class SlurmTasks(SlurmPipelineExecutor):  # type: ignore[misc]
    """A job array on a Slurm cluster; `run` returns when it has ended (sbatch --wait)."""

    def launch_merge_stats(self) -> None:
        """No second job for a sum of statistics that nobody reads."""


class RayTasks(RayPipelineExecutor):  # type: ignore[misc]
    """The Ray cluster at RAY_ADDRESS; otherwise one of this process alone, on this machine."""

    def run(self) -> None:
        """Run what is not finished; a cluster that was started for it is gone afterwards."""
        with _ray(self.workers):
            super().run()


@contextmanager
def _ray(workers: int) -> Iterator[None]:
    # Read as Ray is imported. 0: what is started here listens on the loopback address alone, and reports to nobody.
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_USAGE_STATS_ENABLED"):
        os.environ.setdefault(name, "0")
    ray = need("ray", "ray")
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, warnings.catch_warnings():
        # datatrove asks for its workers in a way that Ray would have otherwise; an error there would hang its `run`.
        warnings.filterwarnings("ignore", "placement_group", DeprecationWarning)
        alone = {} if os.environ.get("RAY_ADDRESS") else _own_cluster(workers, folder)
        ray.init(**alone, log_to_driver=False, logging_level="ERROR")
        try:
            yield
        finally:
            ray.shutdown()


def _own_cluster(workers: int, folder: str) -> dict[str, Any]:
    """What `ray.init` takes for a cluster on this machine; tasks hand nothing over, so that its store stays small."""
    store_bytes = 2**27  # else a third of the memory
    return {
        "address": "local",
        "num_cpus": workers,
        "object_store_memory": store_bytes,
        "include_dashboard": False,
        "_temp_dir": folder,
    }


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
