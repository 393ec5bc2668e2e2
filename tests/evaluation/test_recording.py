"""Recorded completions: generated once, selected by task and sampling parameters, of one target per folder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from fastdraft.evaluation.recording import RecordingTarget, read_recording, record, vocabulary_digest
from fastdraft.evaluation.tasks import LeftOut, TaskPrompts
from fastdraft.models.target import TargetCard
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.system.cards import Cost
from fastdraft.system.errors import CardError, RecordingError
from fastdraft.system.precision import Precision

SAMPLING_SETTINGS = [SamplingParams(0.0), SamplingParams(0.7)]

FP32 = Precision(name="fp32", reason="by name")


def task(name: str, prompts: int, tokens: int = 11) -> TaskPrompts:
    ids = tuple((np.arange(5) * 3 + i) % 131 for i in range(prompts))
    return TaskPrompts(name, 1, "here", ids, tokens, {"unreadable rows": LeftOut(3, "here:2")})


class CountedTarget:
    """A recording target that counts how often its weights are loaded."""

    def __init__(self, model: LlamaForCausalLM, digest: str = "d1") -> None:
        self.loads = 0
        self._model = model
        card = TargetCard(
            **{"key": "", "cost": Cost(seconds=0), "name": "T", "family": "llama", "parameters": 5, "vocab_rows": 131},
            **{"tokenizer_tokens": 131, "context_tokens": 97, "bos_id": None, "eos_ids": (0,), "adds_bos": False},
            digest=digest,
        )
        self.target = RecordingTarget(card, FP32, None, "v", self._open)

    def _open(self, dtype: torch.dtype) -> LlamaForCausalLM:
        assert dtype == torch.float32
        self.loads += 1
        return self._model


@pytest.fixture
def model(tiny_llama: Callable[..., LlamaForCausalLM]) -> LlamaForCausalLM:
    return tiny_llama(7)


def test_recorded_completions_are_not_generated_again(model: LlamaForCausalLM, tmp_path: Path) -> None:
    first = CountedTarget(model)
    recording = record(tmp_path, first.target, [task("a", 5), task("b", 3)], SAMPLING_SETTINGS, seed=7, batch_size=4)
    assert first.loads == 1
    assert [(part.recorded.task, part.recorded.sampling, len(part.completions)) for part in recording.tasks] == [
        *(("a", sampling, 5) for sampling in SAMPLING_SETTINGS),
        *(("b", sampling, 3) for sampling in SAMPLING_SETTINGS),
    ]
    assert recording.tasks[0].recorded.left_out == {"unreadable rows": 3}
    second = CountedTarget(model)
    again = record(tmp_path, second.target, [task("a", 5)], SAMPLING_SETTINGS, seed=7, batch_size=4)
    assert second.loads == 0
    assert texts(again.tasks) == texts(recording.tasks[:2])
    more = record(tmp_path, second.target, [task("a", 7)], SAMPLING_SETTINGS, seed=7, batch_size=4)
    assert second.loads == 1
    assert [len(part.completions) for part in more.tasks] == [7, 7]
    assert {w.task for w in more.card.written} == {"a", "b"}, "tasks of earlier calls are kept"


def texts(tasks: list) -> list:
    return [[row.tokens.tolist() for row in task.completions] for task in tasks]


def test_recordings_are_read_without_the_target(model: LlamaForCausalLM, tmp_path: Path) -> None:
    recording = record(
        tmp_path, CountedTarget(model).target, [task("a", 5), task("b", 3)], SAMPLING_SETTINGS, seed=7, batch_size=4
    )
    assert texts(read_recording(tmp_path).tasks) == texts(recording.tasks)
    assert texts(read_recording(tmp_path, ["b"], [SamplingParams(0.7)]).tasks) == texts(recording.tasks[3:])
    sampled = read_recording(tmp_path, ["b"], [SamplingParams(0.7)]).tasks[0].completions
    assert all(len(row.logp) == len(row.tokens) and (row.logp < 0).any() for row in sampled)
    with pytest.raises(RecordingError, match=r"has no completions of T = 1, c; it has a, greedy"):
        read_recording(tmp_path, ["a", "c"], [SamplingParams(0.7), SamplingParams(1.0)])
    with pytest.raises(RecordingError, match=r"no recorded completions at .*nowhere"):
        read_recording(tmp_path / "nowhere")


def test_tasks_are_selected_by_the_names_of_tasks_of(model: LlamaForCausalLM, tmp_path: Path) -> None:
    """Commas separate names, and a task's name selects all its groups; errors name all sampling parameters."""
    tasks = [task("a", 2), task("s:one", 2), task("s:two", 2)]
    record(tmp_path, CountedTarget(model).target, tasks, [SamplingParams(0.7, 5, 0.9)], seed=7, batch_size=4)
    for arguments, names in ((["a, s:two"], ["a", "s:two"]), (["s"], ["s:one", "s:two"]), (["s:one"], ["s:one"])):
        assert [part.recorded.task for part in read_recording(tmp_path, arguments).tasks] == names
    with pytest.raises(
        RecordingError, match=r"no completions of T = 0.7; it has a, T = 0.7, top-k 5, top-p 0.9; s:one"
    ):
        read_recording(tmp_path, sampling_settings=[SamplingParams(0.7)])
    with pytest.raises(RecordingError, match=r"has no completions of b, s:six; it has a"):
        read_recording(tmp_path, ["a,b", "s:six"])


def test_a_folder_belongs_to_one_target(model: LlamaForCausalLM, tmp_path: Path) -> None:
    record(tmp_path, CountedTarget(model).target, [task("a", 2)], SAMPLING_SETTINGS[:1], seed=7, batch_size=4)
    with pytest.raises(RecordingError, match=r"digest d1\), the target is T \(d2\)[^\0]*--keep"):
        record(tmp_path, CountedTarget(model, "d2").target, [task("a", 2)], SAMPLING_SETTINGS[:1], seed=7, batch_size=4)


def test_a_lost_shard_is_reported(model: LlamaForCausalLM, tmp_path: Path) -> None:
    record(tmp_path, CountedTarget(model).target, [task("a", 2)], SAMPLING_SETTINGS[:1], seed=7, batch_size=4)
    for shard in (tmp_path / "completions").iterdir():
        shard.unlink()
    with pytest.raises(CardError, match=f"(?s){shard.name} is missing.*remove these files and {tmp_path}/card.json"):
        read_recording(tmp_path)


def test_the_vocabulary_digest_depends_on_ids_and_bytes() -> None:
    assert vocabulary_digest({0: b"a", 1: b"b"}) == vocabulary_digest({1: b"b", 0: b"a"})
    assert vocabulary_digest({0: b"a", 1: b"b"}) != vocabulary_digest({0: b"b", 1: b"a"})
    assert vocabulary_digest({0: b"a"}) != vocabulary_digest({0: b"a", 1: b""})
