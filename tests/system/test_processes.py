"""The pipeline by several processes: one of them writes, the others train with it and wait; any number goes on."""

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
# Under Muon a last bit in a sum grows: see tests/train/test_processes.py.
ADAMW = [*(f"{phase}.optimizer=adamw" for phase in PHASES), "evaluate.verify_prompts=0"]
# Several checkpoints: one is there before the end also on a machine that has nothing else to do.
LONG = ["pretrain.train_tokens=30_000", "pretrain.checkpoint_seconds=0.2", *ADAMW]


def losses(run: Path) -> dict[str, list[float]]:
    """Of each phase the loss of each step."""
    found = {}
    for path in sorted(run.glob("*/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        found[path.parent.name] = [row["loss_nats"] for row in rows]
    return found


def commands(run: Path) -> list[dict[str, object]]:
    return json.loads((run / "manifest.json").read_text())["commands"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_go_the_pipeline_of_one(tiny, fastdraft, how):
    alone, both = tiny / "runs/alone", tiny / RUN
    assert fastdraft("run", "recipe.yaml", *ADAMW, "--folder", alone).code == 0
    main, other = (
        running.end() for running in fastdraft.start_several(2, "run", "recipe.yaml", *ADAMW, f"parallel={how}")
    )
    assert (main.code, other.code) == (0, 0), main.err + other.err
    assert "evaluate: done" in main.err
    assert (other.out, other.err) == ("", "")
    found, wanted = losses(both), losses(alone)
    assert found.keys() == wanted.keys() == set(PHASES)
    assert found["pretrain"] == pytest.approx(wanted["pretrain"], rel=1e-4)
    assert found["continue"] == pytest.approx(wanted["continue"], rel=1e-4)
    (entry,) = commands(both)
    assert (entry["processes"], entry["outcome"]) == (2, "finished")
    assert not [*both.rglob("*.part"), *both.rglob("checkpoint-*"), *both.glob("stale")]
    assert fastdraft("run", "recipe.yaml", *ADAMW).code == 0  # one process finds what two have made
    assert set(commands(both)[1]["stages"].values()) == {"already done"}


@pytest.mark.slow
def test_sigterm_to_the_launcher_and_one_process_goes_on(tiny, fastdraft):
    """The command a user gives, from its beginning to the end of the launcher."""
    assert fastdraft("run", "recipe.yaml", *LONG, "--until", "pretrain", "--folder", "runs/alone").code == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "fastdraft"]
    arguments = ["run", "recipe.yaml", *LONG, "--until", "pretrain"]
    with (tiny / "err").open("w") as err:
        launcher = subprocess.Popen(
            [*command, *arguments], cwd=tiny, stderr=err, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    fastdraft.await_checkpoint("pretrain")
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 1  # torchrun's own word for a signal; its processes ended with 0
    said = (tiny / "err").read_text()
    assert said.count("stopped: the same command goes on from the last checkpoint") == 1, said
    assert commands(tiny / RUN)[0]["outcome"] == "interrupted"
    steps = len((tiny / RUN / "pretrain/metrics.jsonl").read_text().splitlines())
    assert (tiny / RUN / f"pretrain/checkpoint-{steps:08d}").is_dir()
    assert fastdraft(*arguments).code == 0
    assert losses(tiny / RUN)["pretrain"] == pytest.approx(losses(tiny / "runs/alone")["pretrain"], rel=1e-4)


@pytest.mark.slow
def test_sigterm_to_one_process_exits_0_and_it_goes_on(tiny, fastdraft):
    arguments = ["run", "recipe.yaml", *LONG, "--until", "pretrain"]
    assert fastdraft(*arguments, "--folder", "runs/alone").code == 0
    running = fastdraft.start(*arguments)
    fastdraft.await_checkpoint("pretrain")
    os.kill(running.process.pid, signal.SIGTERM)
    ended = running.end()
    assert (ended.code, ended.err.splitlines()[-1]) == (0, "stopped: the same command goes on from the last checkpoint")
    assert fastdraft(*arguments).code == 0
    assert losses(tiny / RUN) == losses(tiny / "runs/alone")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenize", "synthesize"])
def test_sigterm_elsewhere_stops_at_once_and_it_goes_on(tiny, fastdraft, stage):
    """In every process: the main one works, the other waits for it."""
    arguments = ["run", "recipe.yaml", *ADAMW, "--until", "synthesize"]
    both = fastdraft.start_several(2, *arguments)
    while not (tiny / RUN / stage / "key").exists():
        time.sleep(0.01)
    for running in both:
        os.kill(running.process.pid, signal.SIGTERM)
    main, other = (running.end() for running in both)
    assert (main.code, other.code, other.err) == (0, 0, ""), main.err
    assert main.err.splitlines()[-1] == "stopped: the same command goes on from the last checkpoint"
    assert not (tiny / RUN / stage / "card.json").exists()
    assert fastdraft(*arguments).code == 0
    assert (tiny / RUN / stage / "card.json").exists()


def test_what_the_main_process_cannot_do_ends_all(tiny, fastdraft):
    (tiny / "empty").mkdir()
    main, other = (
        running.end() for running in fastdraft.start_several(2, "run", "recipe.yaml", "corpus.text.path=empty")
    )
    assert (main.code, other.code) == (2, 0), "a launcher is to name the main process"
    assert "error: " in main.err
    assert other.err == ""
    assert commands(tiny / RUN)[0]["outcome"].startswith("CorpusError")


def test_a_run_folder_is_held_by_the_main_process_alone(tiny, fastdraft):
    """Both would be refused the lock if each asked for it."""
    for running in fastdraft.start_several(2, "target", "recipe.yaml"):
        assert running.end().code == 0
    assert [entry["processes"] for entry in commands(tiny / RUN)] == [2]
