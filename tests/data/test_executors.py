"""The same pipeline on this machine, on Ray and on a simulated Slurm cluster: the same files and errors.

Finished tasks are not run again, and no process is left running.
"""

import importlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import ValidationError

from fastdraft.config import SlurmPart, SourcePart, TokenizePart
from fastdraft.data.attempts import new_attempt
from fastdraft.data.executors import EXECUTORS, run_tasks
from fastdraft.data.tokenize import write_source
from fastdraft.system.errors import CorpusError, RunError

TASKS = 3
PARALLEL = TokenizePart(tasks=TASKS, workers=2)
RAY = TokenizePart(tasks=TASKS, workers=2, executor="ray")
SLURM = TokenizePart(
    tasks=TASKS,
    workers=2,
    executor="slurm",
    slurm=SlurmPart(partition="night", hours=2.51, gigabytes=3, options={"account": "owls"}),
)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# A cluster without machines: sbatch runs the tasks of the array one after the other and then exits, as with --wait.
SBATCH = """#!{python}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
with open({log!r}, "a") as log:
    print(*sys.argv[1:-1], file=log)
first, last = map(int, re.search(r"--array=(\\d+)-(\\d+)", script).groups())
codes = []
for task in range(first, last + 1):
    job = os.environ | {{"SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "here", "RUN_OFFSET": "0"}}
    codes.append(subprocess.run(["bash", sys.argv[-1]], env=job, capture_output=True).returncode)
print("Submitted batch job 7")
sys.exit(max(codes))
"""
SRUN = '#!/bin/bash\nwhile [ "$1" != launch_pickled_pipeline ]; do shift; done\nexec "$@"\n'
SCONTROL = "#!/bin/bash\necho here\n"


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    """Puts the commands of Slurm on the PATH; returns the file to which sbatch appends its arguments."""
    commands, log = tmp_path / "slurm", tmp_path / "sbatch.log"
    commands.mkdir()
    scripts = {"sbatch": SBATCH.format(python=sys.executable, log=str(log)), "srun": SRUN, "scontrol": SCONTROL}
    for name, script in scripts.items():
        (commands / name).write_text(script)
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    return log


@pytest.fixture
def alone(tales, tokenizer, tmp_path) -> dict[str, bytes]:
    """The files that one process writes."""
    write_source("tales", tales, TokenizePart(tasks=TASKS), tokenizer, tmp_path / "alone", seed=7)
    written = files(tmp_path / "alone")
    assert sum(name.startswith("train") and name.endswith(".ds") for name in written) == TASKS
    return written


@pytest.mark.slow
def test_two_processes_write_the_files_of_one_and_report_their_progress(alone, tales, tokenizer, tmp_path, capfd):
    capfd.readouterr()
    write_source("tales", tales, PARALLEL, tokenizer, tmp_path / "out", seed=7)
    assert files(tmp_path / "out") == alone
    progress = [line.partition(",")[0] for line in capfd.readouterr().err.splitlines()]
    assert progress[-1] == "tales: train: 3 of 3 tasks"
    assert "tales: census: 3 of 3 tasks" in progress


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`")
def test_ray_writes_the_files_of_one_process_and_is_stopped_afterwards(
    alone, tales, tokenizer, tmp_path, monkeypatch, ray_processes
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = ray_processes()
    write_source("tales", tales, RAY, tokenizer, tmp_path / "out", seed=7)
    assert files(tmp_path / "out") == alone
    with pytest.raises(CorpusError, match=r"without a text in `nowhere`(.|\n)*do: "):
        changed = tales.model_copy(update={"field": "nowhere"})
        write_source("tales", changed, RAY, tokenizer, tmp_path / "changed", seed=7)
    assert ray_processes().keys() == before.keys()


@pytest.mark.slow
def test_slurm_writes_the_files_of_one_process(alone, tales, tokenizer, tmp_path, cluster):
    write_source("tales", tales, SLURM, tokenizer, tmp_path / "out", seed=7)
    assert files(tmp_path / "out") == alone
    assert cluster.read_text() == "--export=ALL,RUN_OFFSET=0\n" * 2, "one job array per pass, and no other job"


def test_options_of_the_slurm_job(tmp_path, cluster):
    executor = EXECUTORS["slurm"]([], SLURM, tmp_path / "log")
    script = executor.get_launch_file_contents(executor.get_sbatch_args(TASKS), "the command").splitlines()
    options = {line.removeprefix("#SBATCH ") for line in script if line.startswith("#SBATCH")}
    assert options >= {
        *("--partition=night", "--time=02:31:00", "--mem-per-cpu=3G", "--cpus-per-task=1", "--nodes=1"),
        *("--array=0-2%2", "--account=owls", "--wait", "--job-name=fastdraft-tokenize"),
    }
    assert not any(word.startswith(("--qos", "--mail")) for word in options)
    assert f"export PATH={Path(sys.executable).parent}:$PATH" in script
    assert script[-1] == "the command"


def test_slurm_without_a_partition():
    with pytest.raises(ValidationError, match="executor is slurm; give slurm.partition"):
        TokenizePart(executor="slurm")


def test_slurm_without_its_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match=r"sbatch is not .*\n  do: "):
        EXECUTORS["slurm"]([], SLURM, tmp_path / "log")


@pytest.mark.slow
@pytest.mark.parametrize("options", [PARALLEL, SLURM], ids=["local", "slurm"])
def test_a_user_error_is_raised_from_a_task(tales, tokenizer, tmp_path, cluster, options, capfd):
    changed = tales.model_copy(update={"path": str(tmp_path / "gone.jsonl")})
    with pytest.raises(CorpusError, match=r"no file at .*gone\.jsonl(.|\n)*  do: "):
        write_source("tales", changed, options, tokenizer, tmp_path / "out", seed=7)
    assert "Traceback" not in capfd.readouterr().err
    assert not list(tmp_path.glob("out*")), "nothing is kept of a source that must be fixed"
    write_source("tales", tales, options, tokenizer, tmp_path / "out", seed=7)


# Steps of a pipeline that processes import: task 0 ends, task 1 is killed after that, and task 2 hangs.
STEPS = """
import os, signal, time
from pathlib import Path

def note(folder, data, rank, world_size):
    with open(Path(folder) / f"{rank:05d}.note", "a") as file:
        file.write("begun\\n")
    yield rank

def work(folder, data, rank, world_size):
    assert list(data) == [rank]
    folder = Path(folder)
    if (folder / "healed").exists():
        return
    while rank == 1 and not all((folder / path).exists() for path in ("work/log/completions/00000", "00002.note")):
        time.sleep(0.01)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 2:
        time.sleep(300)

def fail(folder, data, rank, world_size):
    assert list(data) == [rank]
    if rank == 1:
        raise ValueError("a programming error")
"""


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """STEPS as a module that every process can import."""
    (tmp_path / "steps_of_test.py").write_text(STEPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sys.modules.pop("steps_of_test", None)
    return importlib.import_module("steps_of_test")


@pytest.mark.slow
def test_a_killed_task_stops_the_others_and_only_unfinished_tasks_are_run_again(tmp_path, steps):
    """As when the system runs out of memory; datatrove's own pool would wait for the process forever."""
    pipeline = [partial(step, str(tmp_path)) for step in (steps.note, steps.work)]
    begun = time.monotonic()
    with pytest.raises(RunError, match=r"2 of 3 tasks are not finished \(task 1 ended with -9\)\n  do: fix"):
        run_tasks(*pipeline, label="a test", options=TokenizePart(tasks=TASKS, workers=3), folder=tmp_path / "work")
    assert time.monotonic() - begun < 100
    (tmp_path / "healed").touch()
    run_tasks(*pipeline, label="a test", options=PARALLEL, folder=tmp_path / "work")
    notes = [(tmp_path / f"{rank:05d}.note").read_text().count("begun") for rank in range(TASKS)]
    assert notes == [1, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("options", [PARALLEL, SLURM], ids=["local", "slurm"])
def test_a_programming_error_in_a_task_reports_its_traceback(tmp_path, steps, cluster, options, capfd):
    pipeline = [partial(step, str(tmp_path)) for step in (steps.note, steps.fail)]
    with pytest.raises(RunError, match=r"task 1: ValueError\('a programming error'\); .* (/.*00001\.txt)\)") as caught:
        run_tasks(*pipeline, label="a test", options=options, folder=tmp_path / "work")
    trace = re.search(r" (/\S*00001\.txt)\)", str(caught.value))[1]
    assert 'in fail\n    raise ValueError("a programming error")' in Path(trace).read_text()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_programming_error_in_a_task_of_this_process_is_raised_unchanged(tmp_path, steps):
    pipeline = [partial(step, str(tmp_path)) for step in (steps.note, steps.fail)]
    with pytest.raises(ValueError, match="a programming error"):
        run_tasks(*pipeline, label="a test", options=TokenizePart(tasks=2), folder=tmp_path / "work")


# Finished tasks of earlier attempts.


def finished_task(attempt: Path, rank: int, content: str) -> None:
    for path in (f"read/log/completions/{rank:05d}", f"read/{rank:05d}.txt", f"read/output/{rank:05d}_00000.ds"):
        (attempt / path).parent.mkdir(parents=True, exist_ok=True)
        (attempt / path).write_text("" if "completions" in path else content)


def test_an_attempt_takes_over_only_finished_tasks(tmp_path):
    first = new_attempt(tmp_path)
    finished_task(first, 0, "zero")
    finished_task(first, 2, "two")
    finished_task(first, 10, "ten")
    (first / "read/log/completions/00002").unlink()
    second = new_attempt(tmp_path)
    assert list(tmp_path.iterdir()) == [second]
    taken_over = {name: content for name, content in files(second).items() if "completions" not in name}
    assert taken_over == {
        **dict.fromkeys(("read/00000.txt", "read/output/00000_00000.ds"), b"zero"),
        **dict.fromkeys(("read/00010.txt", "read/output/00010_00000.ds"), b"ten"),
    }
    assert sorted(os.listdir(second / "read/log/completions")) == ["00000", "00010"]


@pytest.mark.parametrize("operations", range(9))
def test_a_kill_while_taking_over_leaves_no_mark_without_its_files(tmp_path, monkeypatch, operations):
    first = new_attempt(tmp_path)
    finished_task(first, 0, "zero")
    finished_task(first, 1, "one")
    remaining = operations

    def counted(call):
        def until_killed(*arguments, **keys):
            nonlocal remaining
            remaining -= 1
            if remaining < 0:
                raise KeyboardInterrupt
            return call(*arguments, **keys)

        return until_killed

    with monkeypatch.context() as patch:
        for name in ("unlink", "rename", "touch"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        with pytest.raises(KeyboardInterrupt):
            new_attempt(tmp_path)
    last = new_attempt(tmp_path)
    for mark in last.glob("*/log/completions/*"):
        assert (last / f"read/{mark.name}.txt").exists()
        assert (last / f"read/output/{mark.name}_00000.ds").exists()


KILLED = """
import sys
from pathlib import Path
from fastdraft.data.tokenize import write_source
from fastdraft.config import SourcePart, TokenizePart

here, workers = Path(sys.argv[1]), int(sys.argv[2])
part = SourcePart.model_validate_json((here / "part.json").read_text())
if __name__ == "__main__":
    write_source("tales", part, TokenizePart(tasks=3, workers=workers), here / "tokenizer.json", here / "out", 7)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_leaves_no_process_and_is_continued_with_the_unfinished_tasks(tokenizer, tmp_path, workers):
    lines = [json.dumps({"text": f"tale {i} " * 60}) + "\n" for i in range(20_001)]
    (tmp_path / "big.jsonl").write_text("".join(lines))
    part = SourcePart(source="jsonl", path=str(tmp_path / "big.jsonl"), held_out_fraction=0.001)
    (tmp_path / "part.json").write_text(part.model_dump_json())
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, tmp_path / "killed.py", tmp_path, str(workers)]
    killed = subprocess.Popen(command, start_new_session=True)
    begun = time.monotonic()
    patterns = ("log/completions/*", "shards/*unshuffled.ds")  # one task has finished, and another is writing
    while not all(list(tmp_path.glob(f"out.attempts/*/train/{path}")) for path in patterns):
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() - begun < 120
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    check_group_ended(killed.pid)
    kept = {path.name: path.stat().st_ino for path in finished_shards(tmp_path)}
    assert 1 <= len(kept) < TASKS
    write_source("tales", part, TokenizePart(tasks=TASKS, workers=workers), tokenizer, tmp_path / "out", seed=7)
    now = {path.name: path.stat().st_ino for path in (tmp_path / "out/train/shards").glob("*.ds")}
    assert {name: now[name] for name in kept} == kept, "a finished shard is not written again"
    write_source("tales", part, TokenizePart(tasks=TASKS), tokenizer, tmp_path / "uninterrupted", seed=7)
    assert files(tmp_path / "out") == files(tmp_path / "uninterrupted")


def finished_shards(folder: Path) -> list[Path]:
    marks = folder.glob("out.attempts/*/train/log/completions/*")
    return [path for mark in marks for path in mark.parents[2].glob(f"shards/{mark.name}_*.ds")]


def check_group_ended(group: int, seconds: float = 20) -> None:
    """Fail, and kill the process group, unless all of its processes end in time."""
    begun = time.monotonic()
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        if time.monotonic() - begun > seconds:
            os.killpg(group, signal.SIGKILL)
            raise AssertionError("a process has outlived its parent")
        time.sleep(0.1)
