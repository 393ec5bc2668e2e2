"""A run killed eleven times at random moments has every row exactly once, with the bits of an undisturbed run."""

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

# A fork server, as the command uses: importing everything takes seconds.
PROCESSES = multiprocessing.get_context("forkserver")
ROWS, KILLS = 701, 11
DECODING = DecodingParams(11, frozenset({0}), seed=7, target_revision="r", batch_size=3, end=0)
SAMPLING_SETTINGS = [SamplingParams(0), SamplingParams(1.0), SamplingParams(0.7, 13, 0.9)]


def requests(rows: int) -> Any:
    return (Request(np.arange(1 + i % 7) * 5 % 300 + 1, SAMPLING_SETTINGS[i % 3], i) for i in range(rows))


def write_all(target: Any, requests: Any, store: CompletionStore) -> None:
    """As the stage does."""
    with Bar("test", 97, "rows") as bar:
        engine = TransformersEngine(target, DECODING)
        write_completions(engine, with_keys(requests, DECODING), store, DECODING, bar, keep_as_is)


def run_child(path: str, folder: Path, ready: Any) -> None:
    """In a child process."""
    torch.set_num_threads(1)
    target = open_model(TargetPart(path=path), torch.device("cpu"))
    ready.set()
    write_all(target, requests(ROWS), CompletionStore(folder))


def shards(folder: Path) -> int:
    return len(list(folder.glob("*.parquet")))


@pytest.mark.slow
def test_kills_lose_nothing_and_repeat_nothing(tiny_files, tmp_path, one_thread):
    PROCESSES.set_forkserver_preload(["fastdraft.pipeline.run_stages"])
    path, rng, killed = str(tiny_files / "target"), random.Random(3), tmp_path / "killed"
    for _ in range(KILLS):
        ready, kill_at = PROCESSES.Event(), shards(killed) + rng.randint(0, 2)
        process = PROCESSES.Process(target=exec, args=(CHILD, {"path": path, "folder": str(killed), "ready": ready}))
        process.start()
        assert ready.wait(240)
        while shards(killed) < kill_at:
            assert process.is_alive()
            process.join(0.005)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -9, "it had not ended before the kill"
    before = CompletionStore(killed).stored_keys()
    assert 0 < len(before) < ROWS
    target = open_model(TargetPart(path=path), torch.device("cpu"))
    write_all(target, requests(ROWS), CompletionStore(killed))
    write_all(target, requests(ROWS), CompletionStore(tmp_path / "undisturbed"))
    stored = [row for shard in CompletionStore(killed).shards() for row in shard]
    undisturbed = {row.key: row for row in CompletionStore(tmp_path / "undisturbed").read()}
    assert len(stored) == len({row.key for row in stored}) == len(undisturbed) == ROWS
    for row in stored:
        np.testing.assert_array_equal(row.tokens, undisturbed[row.key].tokens)
        np.testing.assert_array_equal(row.logp, undisturbed[row.key].logp)
    assert [*killed.glob("*.fastdraft-part"), *killed.glob("*.fastdraft-old")] == []


CHILD = f"""
import sys, importlib.util
spec = importlib.util.spec_from_file_location("exactly_once", {str(Path(__file__))!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from pathlib import Path
module.run_child(path, Path(folder), ready)
"""


class FullStore(CompletionStore):
    """A store whose disk is full at the third shard."""

    def write(self, completions: Any) -> None:
        if len(list(self.folder.glob("*.parquet"))) == 2:
            with disk_full_explained(self.folder):
                raise OSError(28, "No space left on device")
        super().write(completions)


def test_a_full_disk_is_an_error_and_written_shards_stay(target, tmp_path):
    with pytest.raises(DiskFull, match=r"no space left[^\0]*\n  do: "):
        write_all(target, small(97), FullStore(tmp_path))
    assert len(CompletionStore(tmp_path).stored_keys()) == 24
    write_all(target, small(97), CompletionStore(tmp_path))
    assert len(CompletionStore(tmp_path).read()) == 97


def small(rows: int) -> Any:
    return (Request(np.arange(1 + i % 7) * 5 % 131, SAMPLING_SETTINGS[i % 3], i) for i in range(rows))


def test_a_row_stored_twice_is_refused(target, tmp_path):
    store = CompletionStore(tmp_path)
    write_all(target, small(29), store)
    store.write([store.read()[3], store.read()[5]])
    with pytest.raises(ShardError, match=r"2 of its rows are in other shards[^\0]*\n  do: "):
        store.stored_keys()


def test_requests_are_taken_as_they_are_needed(target, tmp_path):
    """Before the first shard, at most one group per distribution has been taken."""
    taken = 0

    def counted() -> Any:
        nonlocal taken
        for request in small(997):
            taken += 1
            yield request

    next(
        TransformersEngine(target, DECODING).shards(
            with_keys(counted(), DECODING), CompletionStore(tmp_path).stored_keys()
        )
    )
    assert taken <= 3 * DECODING.shard_prompts
