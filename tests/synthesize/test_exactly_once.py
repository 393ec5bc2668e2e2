"""Killed eleven times at random moments: every row once, none lost, none twice, and the bits of an undisturbed run."""

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdraft.config import TargetPart
from fastdraft.models.pretrained import open_model
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Request, SamplingParams
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_interface import with_keys
from fastdraft.synthesize.engine_transformers import TransformersEngine
from fastdraft.synthesize.rescore import keep_as_is
from fastdraft.synthesize.write import write_completions
from fastdraft.system.errors import DiskFull, ShardError
from fastdraft.system.files import disk_full_explained
from fastdraft.system.progress import Bar

# The same server of forks as the command's: importing all this takes seconds.
PROCESSES = multiprocessing.get_context("forkserver")
ROWS, KILLS = 701, 11
DECODING = DecodingParams(11, frozenset({0}), seed=7, target_revision="r", batch_size=3, end=0)
SAMPLING_SETTINGS = [SamplingParams(0), SamplingParams(1.0), SamplingParams(0.7, 13, 0.9)]


def requests(rows: int) -> Any:
    return (Request(np.arange(1 + i % 7) * 5 % 300 + 1, SAMPLING_SETTINGS[i % 3], i) for i in range(rows))


def answer_all(target: Any, folder: Path, rows: int) -> None:
    """What the stage does."""
    with Bar("test", rows, "rows") as bar:
        write_completions(
            TransformersEngine(target, DECODING),
            with_keys(requests(rows), DECODING),
            CompletionStore(folder),
            DECODING,
            bar,
            keep_as_is,
        )


def started(path: str, folder: Path, ready: Any) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    target = open_model(TargetPart(path=path), torch.device("cpu"))
    ready.set()
    answer_all(target, folder, ROWS)


def shards(folder: Path) -> int:
    return len(list(folder.glob("*.parquet")))


@pytest.mark.slow
def test_kills_lose_nothing_and_repeat_nothing(tiny_files, tmp_path, one_thread):
    PROCESSES.set_forkserver_preload(["fastdraft.pipeline.stages"])
    path, dice, killed = str(tiny_files / "target"), random.Random(3), tmp_path / "killed"
    for _ in range(KILLS):
        ready, wanted = PROCESSES.Event(), shards(killed) + dice.randint(0, 2)
        process = PROCESSES.Process(target=exec, args=(CHILD, {"path": path, "folder": str(killed), "ready": ready}))
        process.start()
        assert ready.wait(240)
        while shards(killed) < wanted:
            assert process.is_alive()
            process.join(0.005)
        time.sleep(dice.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -9, "it had not ended by itself"
    before = CompletionStore(killed).stored_keys()
    assert 0 < len(before) < ROWS
    target = open_model(TargetPart(path=path), torch.device("cpu"))
    answer_all(target, killed, ROWS)
    answer_all(target, tmp_path / "calm", ROWS)
    stored = [row for shard in CompletionStore(killed).shards() for row in shard]
    calm = {row.key: row for row in CompletionStore(tmp_path / "calm").read()}
    assert len(stored) == len({row.key for row in stored}) == len(calm) == ROWS
    for row in stored:
        np.testing.assert_array_equal(row.tokens, calm[row.key].tokens)
        np.testing.assert_array_equal(row.logp, calm[row.key].logp)
    assert [*killed.glob("*.part"), *killed.glob("*.old")] == []


CHILD = f"""
import sys, importlib.util
spec = importlib.util.spec_from_file_location("exactly_once", {str(Path(__file__))!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from pathlib import Path
module.started(path, Path(folder), ready)
"""


class Full(CompletionStore):
    """A store on a disk that is full in the middle of the third shard."""

    def write(self, completions: Any) -> None:
        if len(list(self.folder.glob("*.parquet"))) == 2:
            with disk_full_explained(self.folder):
                raise OSError(28, "No space left on device")
        super().write(completions)


def test_a_full_disk_stops_and_what_is_there_stays(target, tmp_path):
    with Bar("test", 97, "rows") as bar, pytest.raises(DiskFull, match=r"no space left[^\0]*\n  do: free some space"):
        write_completions(
            TransformersEngine(target, DECODING),
            with_keys(small(97), DECODING),
            Full(tmp_path),
            DECODING,
            bar,
            keep_as_is,
        )
    assert len(CompletionStore(tmp_path).stored_keys()) == 24
    with Bar("test", 97, "rows") as bar:
        write_completions(
            TransformersEngine(target, DECODING),
            with_keys(small(97), DECODING),
            CompletionStore(tmp_path),
            DECODING,
            bar,
            keep_as_is,
        )
    assert len(CompletionStore(tmp_path).read()) == 97


def small(rows: int) -> Any:
    return (Request(np.arange(1 + i % 7) * 5 % 131, SAMPLING_SETTINGS[i % 3], i) for i in range(rows))


def test_a_row_that_stands_twice_is_refused(target, tmp_path):
    store = CompletionStore(tmp_path)
    with Bar("test", 29, "rows") as bar:
        write_completions(
            TransformersEngine(target, DECODING), with_keys(small(29), DECODING), store, DECODING, bar, keep_as_is
        )
    store.write([store.read()[3], store.read()[5]])
    with pytest.raises(ShardError, match=r"2 of its rows stand in other shards too[^\0]*\n  do: remove it"):
        store.stored_keys()


def test_requests_are_taken_as_they_are_needed(target, tmp_path):
    """Nothing but the groups in hand waits in memory: before the first shard, one group of each distribution was asked
    for.
    """
    asked = 0

    def counted() -> Any:
        nonlocal asked
        for request in small(997):
            asked += 1
            yield request

    next(
        TransformersEngine(target, DECODING).shards(with_keys(counted(), DECODING), CompletionStore(tmp_path).stored_keys())
    )
    assert asked <= 3 * DECODING.shard_prompts
