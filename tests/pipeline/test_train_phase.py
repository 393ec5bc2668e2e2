"""A phase of training resumes only on the shards that it started with."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

RUN = Path("runs/tiny")
UNTIL = ["pretrain.train_tokens=30_000", "pretrain.checkpoint_seconds=0.2", "--until", "pretrain"]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss_nats"] for line in (run / "pretrain/metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def stopped(tiny, fastdraft):
    """The folder of a run that was stopped in its first phase, after a checkpoint."""
    running = fastdraft.start("run", "recipe.yaml", *UNTIL)
    fastdraft.await_checkpoint("pretrain")
    os.kill(running.process.pid, signal.SIGTERM)
    assert running.end().code == 0
    return tiny


@pytest.mark.slow
def test_changed_shards_are_refused_and_the_original_ones_resume(stopped, fastdraft):
    assert fastdraft("run", "recipe.yaml", *UNTIL, "--folder", "runs/alone").code == 0
    (shard,) = (stopped / RUN / "tokenize/text/train/shards").glob("*.ds")
    content = shard.read_bytes()
    shard.write_bytes(content[::-1])
    ended = fastdraft("run", "recipe.yaml", *UNTIL)
    assert ended.code == 2
    assert str(shard.relative_to(stopped / RUN / "tokenize")) in ended.err
    shard.write_bytes(content)
    assert fastdraft("run", "recipe.yaml", *UNTIL).code == 0
    assert losses(stopped / RUN) == losses(stopped / "runs/alone")


@pytest.mark.slow
def test_shards_of_other_files_are_refused(stopped, fastdraft):
    """The recipe and the keys of the stages are the same."""
    assert fastdraft("run", "recipe.yaml", *UNTIL, "--folder", "runs/alone").code == 0
    kept, text = stopped / "kept", stopped / "text/0.txt"
    (stopped / RUN / "tokenize").rename(kept)
    text.write_text(text.read_text()[::-1])
    ended = fastdraft("run", "recipe.yaml", *UNTIL)
    assert ended.code == 2
    assert f"the shards of text have changed since {RUN}/pretrain was begun" in ended.err
    shutil.rmtree(stopped / RUN / "tokenize")
    kept.rename(stopped / RUN / "tokenize")
    assert fastdraft("run", "recipe.yaml", *UNTIL).code == 0
    assert losses(stopped / RUN) == losses(stopped / "runs/alone")
