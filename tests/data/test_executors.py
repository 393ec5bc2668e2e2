"""One pipeline on this machine, on Ray, and on a Slurm cluster that is three shell scripts: the same files, the same
errors; what is finished stays finished, and nothing is left running.
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
AT_ONCE = TokenizePart(tasks=TASKS, workers=2)
RAY = TokenizePart(tasks=TASKS, workers=2, executor="ray")
SLURM = TokenizePart(
    tasks=TASKS,
    workers=2,
    executor="slurm",
    slurm=SlurmPart(partition="night", hours=2.51, gigabytes=3, options={"account": "owls"}),
)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# A cluster without machines: sbatch runs the tasks of the array one after the other and, asked to --wait, ends last.
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
    """Puts the commands of Slurm on the path; the file in which sbatch leaves its arguments."""
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
    """What one process writes."""
    write_source("tales", tales, TokenizePart(tasks=TASKS), tokenizer, tmp_path / "alone", seed=7)
    found = files(tmp_path / "alone")
    assert sum(name.startswith("train") and name.endswith(".ds") for name in found) == TASKS
    return found


@pytest.mark.slow
def test_two_processes_write_what_one_does_and_it_is_reported_how_far_they_are(
    alone, tales, tokenizer, tmp_path, capfd
):
    capfd.readouterr()
    write_source("tales", tales, AT_ONCE, tokenizer, tmp_path / "out", seed=7)
    assert files(tmp_path / "out") == alone
    told = [line.partition(",")[0] for line in capfd.readouterr().err.splitlines()]
    assert told[-1] == "tales: train: 3 of 3 tasks"
    assert "tales: census: 3 of 3 tasks" in told


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`")
def test_ray_writes_what_one_process_does_and_is_gone_afterwards(
    alone, tales, tokenizer, tmp_path, monkeypatch, ray_processes
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = ray_processes()
    write_source("tales", tales, RAY, tokenizer, tmp_path / "out", seed=7)
    assert files(tmp_path / "out") == alone
    with pytest.raises(CorpusError, match=r"rows without a text in `nowhere`(.|\n)*do: "):
        changed = tales.model_copy(update={"field": "nowhere"})
        write_source("tales", changed, RAY, tokenizer, tmp_path / "changed", seed=7)
    assert ray_processes().keys() == before.keys()


@pytest.mark.slow
def test_slurm_writes_what_one_process_does(alone, tales, tokenizer, tmp_path, cluster):
    write_source("tales", tales, SLURM, tokenizer, tmp_path / "out", seed=7)
    assert files(tmp_path / "out") == alone
    assert cluster.read_text() == "--export=ALL,RUN_OFFSET=0\n" * 2, "one array for each reading, no job beside it"


def test_what_slurm_is_asked_for(tmp_path, cluster):
    executor = EXECUTORS["slurm"]([], SLURM, tmp_path / "log")
    script = executor.get_launch_file_contents(executor.get_sbatch_args(TASKS), "the command").splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in script if line.startswith("#SBATCH")}
    assert asked >= {
        *("--partition=night", "--time=02:31:00", "--mem-per-cpu=3G", "--cpus-per-task=1", "--nodes=1"),
        *("--array=0-2%2", "--account=owls", "--wait", "--job-name=fastdraft-tokenize"),
    }
    assert not any(word.startswith(("--qos", "--mail")) for word in asked)
    assert f"export PATH={Path(sys.executable).parent}:$PATH" in script
    assert script[-1] == "the command"


def test_slurm_without_a_partition():
    with pytest.raises(ValidationError, match="executor is slurm; give slurm.partition"):
        TokenizePart(executor="slurm")


def test_slurm_without_its_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match=r"no sbatch here\n  do: "):
        EXECUTORS["slurm"]([], SLURM, tmp_path / "log")


@pytest.mark.slow
@pytest.mark.parametrize("how", [AT_ONCE, SLURM], ids=["local", "slurm"])
def test_an_error_of_the_user_comes_back_from_a_task(tales, tokenizer, tmp_path, cluster, how, capfd):
    changed = tales.model_copy(update={"path": str(tmp_path / "gone.jsonl")})
    with pytest.raises(CorpusError, match=r"no file at .*gone\.jsonl(.|\n)*do: correct `path`"):
        write_source("tales", changed, how, tokenizer, tmp_path / "out", seed=7)
    assert "Traceback" not in capfd.readouterr().err
    assert not list(tmp_path.glob("out*")), "what was read of a source that must be fixed is worth nothing"
    write_source("tales", tales, how, tokenizer, tmp_path / "out", seed=7)


# Steps of a pipeline, for processes that find them by import: of three tasks one ends, one dies then, one hangs.
STEPS = """
import os, signal, time
from pathlib import Path

def note(folder, data, rank, of):
    with open(Path(folder) / f"{rank:05d}.note", "a") as file:
        file.write("begun\\n")
    yield rank

def work(folder, data, rank, of):
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

def fail(folder, data, rank, of):
    assert list(data) == [rank]
    if rank == 1:
        raise ValueError("a mistake of ours")
"""


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """STEPS, as a module that every process finds."""
    (tmp_path / "steps_of_test.py").write_text(STEPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sys.modules.pop("steps_of_test", None)
    return importlib.import_module("steps_of_test")


@pytest.mark.slow
def test_a_task_that_dies_stops_the_others_and_only_what_is_unfinished_is_done_again(tmp_path, steps):
    """As the system ends a process for want of memory: datatrove's own pool would wait for it for ever."""
    pipeline = [partial(step, str(tmp_path)) for step in (steps.note, steps.work)]
    begun = time.monotonic()
    with pytest.raises(RunError, match=r"2 of 3 tasks are not finished \(task 1 ended with -9\)\n  do: fix"):
        run_tasks(*pipeline, what="a test", how=TokenizePart(tasks=TASKS, workers=3), folder=tmp_path / "work")
    assert time.monotonic() - begun < 100
    (tmp_path / "healed").touch()
    run_tasks(*pipeline, what="a test", how=AT_ONCE, folder=tmp_path / "work")
    notes = [(tmp_path / f"{rank:05d}.note").read_text().count("begun") for rank in range(TASKS)]
    assert notes == [1, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("how", [AT_ONCE, SLURM], ids=["local", "slurm"])
def test_a_mistake_of_ours_in_a_task_reports_where_it_is(tmp_path, steps, cluster, how, capfd):
    pipeline = [partial(step, str(tmp_path)) for step in (steps.note, steps.fail)]
    with pytest.raises(
        RunError, match=r"task 1: ValueError\('a mistake of ours'\); (.*00001\.txt) says where"
    ) as caught:
        run_tasks(*pipeline, what="a test", how=how, folder=tmp_path / "work")
    trace = re.search(r"; (.*00001\.txt) ", str(caught.value))[1]
    assert 'in fail\n    raise ValueError("a mistake of ours")' in Path(trace).read_text()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_mistake_of_ours_in_a_task_of_this_process_is_raised_as_it_is(tmp_path, steps):
    pipeline = [partial(step, str(tmp_path)) for step in (steps.note, steps.fail)]
    with pytest.raises(ValueError, match="a mistake of ours"):
        run_tasks(*pipeline, what="a test", how=TokenizePart(tasks=2), folder=tmp_path / "work")


# What was finished before.


def finished_task(attempt: Path, rank: int, content: str) -> None:
    for path in (f"read/log/completions/{rank:05d}", f"read/{rank:05d}.txt", f"read/made/{rank:05d}_00000.ds"):
        (attempt / path).parent.mkdir(parents=True, exist_ok=True)
        (attempt / path).write_text("" if "completions" in path else content)


def test_an_attempt_takes_over_finished_tasks_and_nothing_else(tmp_path):
    first = new_attempt(tmp_path)
    finished_task(first, 0, "zero")
    finished_task(first, 2, "two")
    finished_task(first, 10, "ten")
    (first / "read/log/completions/00002").unlink()
    second = new_attempt(tmp_path)
    assert list(tmp_path.iterdir()) == [second]
    found = {name: content for name, content in files(second).items() if "completions" not in name}
    assert found == {
        **dict.fromkeys(("read/00000.txt", "read/made/00000_00000.ds"), b"zero"),
        **dict.fromkeys(("read/00010.txt", "read/made/00010_00000.ds"), b"ten"),
    }
    assert sorted(os.listdir(second / "read/log/completions")) == ["00000", "00010"]


@pytest.mark.parametrize("operations", range(9))
def test_a_kill_while_taking_over_never_leaves_a_mark_without_its_files(tmp_path, monkeypatch, operations):
    first = new_attempt(tmp_path)
    finished_task(first, 0, "zero")
    finished_task(first, 1, "one")
    left = operations

    def counted(call):
        def until_killed(*arguments, **keys):
            nonlocal left
            left -= 1
            if left < 0:
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
        assert (last / f"read/made/{mark.name}_00000.ds").exists()


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
def test_a_killed_run_leaves_no_process_and_goes_on_with_the_tasks_not_finished(tokenizer, tmp_path, workers):
    lines = [json.dumps({"text": f"tale {i} " * 60}) + "\n" for i in range(20_001)]
    (tmp_path / "big.jsonl").write_text("".join(lines))
    part = SourcePart(source="jsonl", path=str(tmp_path / "big.jsonl"), held_out_fraction=0.001)
    (tmp_path / "part.json").write_text(part.model_dump_json())
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, tmp_path / "killed.py", tmp_path, str(workers)]
    killed = subprocess.Popen(command, start_new_session=True)
    begun = time.monotonic()
    wanted = ("log/completions/*", "shards/*unshuffled.ds")  # a task finished, and another writing
    while not all(list(tmp_path.glob(f"out.attempts/*/train/{path}")) for path in wanted):
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() - begun < 120
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    nothing_left(killed.pid)
    kept = {path.name: path.stat().st_ino for path in finished_shards(tmp_path)}
    assert 1 <= len(kept) < TASKS
    how = TokenizePart(tasks=TASKS, workers=workers)
    write_source("tales", part, how, tokenizer, tmp_path / "out", seed=7)
    now = {path.name: path.stat().st_ino for path in (tmp_path / "out/train/shards").glob("*.ds")}
    assert {name: now[name] for name in kept} == kept, "a finished shard is not written again"
    write_source("tales", part, TokenizePart(tasks=TASKS), tokenizer, tmp_path / "calm", seed=7)
    assert files(tmp_path / "out") == files(tmp_path / "calm")


def finished_shards(folder: Path) -> list[Path]:
    marks = folder.glob("out.attempts/*/train/log/completions/*")
    return [path for mark in marks for path in mark.parents[2].glob(f"shards/{mark.name}_*.ds")]


def nothing_left(group: int, seconds: float = 20) -> None:
    """Every process of a group has ended within a while."""
    begun = time.monotonic()
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        if time.monotonic() - begun > seconds:
            os.killpg(group, signal.SIGKILL)
            raise AssertionError("a process has outlived the one that started it")
        time.sleep(0.1)
