"""What a target wrote is kept: asked for once, found by task and distribution, and only of one target."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from fastdraft.evaluate.recording import Target, record, recorded, vocabulary_digest
from fastdraft.evaluate.tasks import LeftOut, TaskPrompts
from fastdraft.models.target import TargetCard
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.system.cards import Cost
from fastdraft.system.errors import RecordingError, ShardError
from fastdraft.system.precision import Precision

SAMPLING_SETTINGS = [SamplingParams(0.0), SamplingParams(0.7)]

FP32 = Precision(name="fp32", reason="by name")


def task(name: str, prompts: int, tokens: int = 11) -> TaskPrompts:
    found = tuple((np.arange(5) * 3 + i) % 131 for i in range(prompts))
    return TaskPrompts(name, 1, "here", found, tokens, {"rows that are no rows": LeftOut(3, "here:2")})


class Opened:
    """A target that counts how often its weights are loaded."""

    def __init__(self, model: LlamaForCausalLM, digest: str = "d1") -> None:
        self.times = 0
        self._model = model
        card = TargetCard(
            **{"key": "", "cost": Cost(seconds=0), "name": "T", "family": "llama", "parameters": 5, "vocab_rows": 131},
            **{"tokenizer_tokens": 131, "context_tokens": 97, "bos_id": None, "eos_ids": (0,), "adds_bos": False},
            digest=digest,
        )
        self.target = Target(card, FP32, None, "v", self._open)

    def _open(self, dtype: torch.dtype) -> LlamaForCausalLM:
        assert dtype == torch.float32
        self.times += 1
        return self._model


@pytest.fixture
def model(tiny_llama: Callable[..., LlamaForCausalLM]) -> LlamaForCausalLM:
    return tiny_llama(7)


def test_what_is_kept_is_not_written_again(model: LlamaForCausalLM, tmp_path: Path) -> None:
    first = Opened(model)
    made = record(tmp_path, first.target, [task("a", 5), task("b", 3)], SAMPLING_SETTINGS, 7, 4)
    assert first.times == 1
    assert [(part.written.task, part.written.sampling, len(part.completions)) for part in made.parts] == [
        *(("a", sampling, 5) for sampling in SAMPLING_SETTINGS),
        *(("b", sampling, 3) for sampling in SAMPLING_SETTINGS),
    ]
    assert made.parts[0].written.left_out == {"rows that are no rows": 3}
    again = Opened(model)
    found = record(tmp_path, again.target, [task("a", 5)], SAMPLING_SETTINGS, 7, 4)
    assert again.times == 0
    assert texts(found.parts) == texts(made.parts[:2])
    more = record(tmp_path, again.target, [task("a", 7)], SAMPLING_SETTINGS, 7, 4)
    assert again.times == 1
    assert [len(part.completions) for part in more.parts] == [7, 7]
    assert {w.task for w in more.card.written} == {"a", "b"}, "what other calls asked for is still there"


def texts(parts: list) -> list:
    return [[row.tokens.tolist() for row in part.completions] for part in parts]


def test_any_part_is_read_without_the_target(model: LlamaForCausalLM, tmp_path: Path) -> None:
    made = record(tmp_path, Opened(model).target, [task("a", 5), task("b", 3)], SAMPLING_SETTINGS, 7, 4)
    assert texts(recorded(tmp_path).parts) == texts(made.parts)
    assert texts(recorded(tmp_path, ["b"], [SamplingParams(0.7)]).parts) == texts(made.parts[3:])
    sampled = recorded(tmp_path, ["b"], [SamplingParams(0.7)]).parts[0].completions
    assert all(len(row.logp) == len(row.tokens) and (row.logp < 0).any() for row in sampled)
    with pytest.raises(RecordingError, match=r"has no completions of c, temperature 1; it has a at temperature 0"):
        recorded(tmp_path, ["a", "c"], [SamplingParams(0.7), SamplingParams(1.0)])
    with pytest.raises(RecordingError, match=r"no recorded completions at [^\0]*\n  do: make them with `fastdraft"):
        recorded(tmp_path / "nowhere")


def test_tasks_are_named_as_when_they_were_asked_for(model: LlamaForCausalLM, tmp_path: Path) -> None:
    """With commas, and all groups of a task by its name; what is not there is said with its whole distribution."""
    asked = [task("a", 2), task("s:one", 2), task("s:two", 2)]
    record(tmp_path, Opened(model).target, asked, [SamplingParams(0.7, 5, 0.9)], 7, 4)
    for named, found in ((["a, s:two"], ["a", "s:two"]), (["s"], ["s:one", "s:two"]), (["s:one"], ["s:one"])):
        assert [part.written.task for part in recorded(tmp_path, named).parts] == found
    said = r"has no completions of temperature 0.7; it has a at temperature 0.7, top-k 5, top-p 0.9; s:one"
    with pytest.raises(RecordingError, match=said):
        recorded(tmp_path, sampling_settings=[SamplingParams(0.7)])
    with pytest.raises(RecordingError, match=r"has no completions of b, s:six; it has a"):
        recorded(tmp_path, ["a,b", "s:six"])


def test_a_folder_is_of_one_target(model: LlamaForCausalLM, tmp_path: Path) -> None:
    record(tmp_path, Opened(model).target, [task("a", 2)], SAMPLING_SETTINGS[:1], 7, 4)
    with pytest.raises(
        RecordingError, match=r"digest d1\), the target is T \(d2\)\n  do: choose another folder with --keep"
    ):
        record(tmp_path, Opened(model, "d2").target, [task("a", 2)], SAMPLING_SETTINGS[:1], 7, 4)


def test_a_lost_shard_is_reported(model: LlamaForCausalLM, tmp_path: Path) -> None:
    record(tmp_path, Opened(model).target, [task("a", 2)], SAMPLING_SETTINGS[:1], 7, 4)
    for shard in (tmp_path / "completions").iterdir():
        shard.unlink()
    with pytest.raises(ShardError, match=r"lacks 2 of 2 completions"):
        recorded(tmp_path)


def test_the_bytes_after_ids_make_the_vocabulary() -> None:
    assert vocabulary_digest({0: b"a", 1: b"b"}) == vocabulary_digest({1: b"b", 0: b"a"})
    assert vocabulary_digest({0: b"a", 1: b"b"}) != vocabulary_digest({0: b"b", 1: b"a"})
    assert vocabulary_digest({0: b"a"}) != vocabulary_digest({0: b"a", 1: b""})
