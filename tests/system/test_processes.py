"""The pipeline in several processes: only the main one writes, and any number of processes can resume a run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = Path("runs/tiny")
PHASES = ("pretrain", "continue", "align")
# Muon amplifies differences in rounding: see tests/train/test_processes.py.
ADAMW = [*(f"{phase}.optimizer=adamw" for phase in PHASES), "evaluate.verify_prompts=0"]
# Long enough for several checkpoints, so that one exists before the end even on an idle machine.
LONG = ["pretrain.train_tokens=30_000", "pretrain.checkpoint_seconds=0.2", *ADAMW]


def losses(run: Path) -> dict[str, list[float]]:
    """The loss of each step, by phase."""
    by_phase = {}
    for path in sorted(run.glob("*/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        by_phase[path.parent.name] = [row["loss_nats"] for row in rows]
    return by_phase


def commands(run: Path) -> list[dict[str, object]]:
    return json.loads((run / "manifest.json").read_text())["commands"]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_the_same_drafts_as_one(tiny, fastdraft, parallel):
    alone, both = tiny / "runs/alone", tiny / RUN
    assert fastdraft("run", "recipe.yaml", *ADAMW, "--folder", alone).code == 0
    main, second = (
        running.end() for running in fastdraft.start_several(2, "run", "recipe.yaml", *ADAMW, f"parallel={parallel}")
    )
    assert (main.code, second.code) == (0, 0), main.err + second.err
    assert "evaluate: done" in main.err
    assert (second.out, second.err) == ("", "")
    actual, expected = losses(both), losses(alone)
    assert actual.keys() == expected.keys() == set(PHASES)
    assert actual["pretrain"] == pytest.approx(expected["pretrain"], rel=1e-4)
    assert actual["continue"] == pytest.approx(expected["continue"], rel=1e-4)
    (entry,) = commands(both)
    assert (entry["processes"], entry["outcome"]) == (2, "finished")
    assert not [*both.rglob("*.fastdraft-part"), *both.rglob("checkpoint-*"), *both.glob("stale")]
    assert fastdraft("run", "recipe.yaml", *ADAMW).code == 0  # one process accepts the results of two
    assert set(commands(both)[1]["stages"].values()) == {"already done"}


@pytest.mark.slow
def test_one_process_resumes_after_sigterm_to_the_launcher(tiny, fastdraft):
    """With the launcher that a user starts, torchrun."""
    assert fastdraft("run", "recipe.yaml", *LONG, "--until", "pretrain", "--folder", "runs/alone").code == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "fastdraft"]
    arguments = ["run", "recipe.yaml", *LONG, "--until", "pretrain"]
    with (tiny / "err").open("w") as err:
        launcher = subprocess.Popen(
            [*command, *arguments], cwd=tiny, stderr=err, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    fastdraft.await_checkpoint("pretrain")
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 1  # the exit code of torchrun after a signal; its processes exit with 0
    stderr = (tiny / "err").read_text()
    assert stderr.count("stopped: ") == 1, stderr
    assert commands(tiny / RUN)[0]["outcome"] == "interrupted"
    steps = len((tiny / RUN / "pretrain/metrics.jsonl").read_text().splitlines())
    assert (tiny / RUN / f"pretrain/checkpoint-{steps:08d}").is_dir()
    assert fastdraft(*arguments).code == 0
    assert losses(tiny / RUN)["pretrain"] == pytest.approx(losses(tiny / "runs/alone")["pretrain"], rel=1e-4)


@pytest.mark.slow
def test_a_single_process_resumes_after_sigterm(tiny, fastdraft):
    arguments = ["run", "recipe.yaml", *LONG, "--until", "pretrain"]
    assert fastdraft(*arguments, "--folder", "runs/alone").code == 0
    running = fastdraft.start(*arguments)
    fastdraft.await_checkpoint("pretrain")
    os.kill(running.process.pid, signal.SIGTERM)
    ended = running.end()
    assert ended.code == 0
    assert ended.err.splitlines()[-1].startswith("stopped: ")
    assert fastdraft(*arguments).code == 0
    assert losses(tiny / RUN) == losses(tiny / "runs/alone")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenize", "synthesize"])
def test_sigterm_outside_training_stops_immediately(tiny, fastdraft, stage):
    """Both processes stop, although one of them only waits for the main one."""
    arguments = ["run", "recipe.yaml", *ADAMW, "--until", "synthesize"]
    both = fastdraft.start_several(2, *arguments)
    while not (tiny / RUN / stage / "key").exists():
        time.sleep(0.01)
    for running in both:
        os.kill(running.process.pid, signal.SIGTERM)
    main, second = (running.end() for running in both)
    assert (main.code, second.code, second.err) == (0, 0, ""), main.err
    assert main.err.splitlines()[-1].startswith("stopped: ")
    assert not (tiny / RUN / stage / "card.json").exists()
    assert fastdraft(*arguments).code == 0
    assert (tiny / RUN / stage / "card.json").exists()


def test_a_failure_of_the_main_process_ends_all_processes(tiny, fastdraft):
    (tiny / "empty").mkdir()
    main, second = (
        running.end() for running in fastdraft.start_several(2, "run", "recipe.yaml", "corpus.text.path=empty")
    )
    assert (main.code, second.code) == (2, 0), "a launcher must report the main process as the failure"
    assert "error: " in main.err
    assert second.err == ""
    assert commands(tiny / RUN)[0]["outcome"].startswith("CorpusError")


def test_only_the_main_process_locks_the_run_folder(tiny, fastdraft):
    """Otherwise the second process would be refused."""
    for running in fastdraft.start_several(2, "target", "recipe.yaml"):
        assert running.end().code == 0
    assert [entry["processes"] for entry in commands(tiny / RUN)] == [2]
