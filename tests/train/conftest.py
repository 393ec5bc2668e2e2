"""A phase that trains in less than a second: a random Llama on random tokens of two sources."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from fastdraft.config import TrainPart
from fastdraft.data.document import WHOLE, Portion
from fastdraft.data.order import IGNORED, Batch, Mixture
from fastdraft.pipeline.validation import Validation
from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.system import processes
from fastdraft.train.loop import Phase, train
from fastdraft.train.objectives import objective

VOCABULARY, TOKENS = 31, 7


class RandomSequences:
    """Sequences of random tokens; some labels of every third sequence are masked, unevenly."""

    def __init__(self, source: int, rows: int) -> None:
        self.labels = rows * TOKENS  # including the labels that __getitem__ masks
        self._tokens = torch.randint(VOCABULARY, (rows, TOKENS + 1), generator=torch.Generator().manual_seed(source))

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        labels_T = self._tokens[index, 1:].clone()
        if index % 3 == 0:
            labels_T[: 1 + index % TOKENS] = IGNORED
        return self._tokens[index, :-1], labels_T


def small_model(seed: int = 5, dropout: float = 0.0, tied: bool = True) -> LlamaForCausalLM:
    """A random Llama. With dropout the state of the random generator matters."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        attention_dropout=dropout,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def small_teacher() -> LlamaForCausalLM:
    """Another random model, with weights four times as large, so that its distributions are not uniform."""
    model = small_model(seed=7).eval()
    for weight in model.parameters():
        weight.data *= 4
    return model


def small_phase(folder: Path, model: LlamaForCausalLM | None = None, **fields: object) -> Phase:
    """A phase of 11 steps of 5 sequences, with `small_teacher` as the online teacher. `fields` override the part."""
    settings: dict[str, object] = {
        "mix": {"a": 2.0, "b": 1.0},
        "train_tokens": 11 * 5 * TOKENS,
        "batch_size": 5,
        "sequence_tokens": TOKENS,
        "precision": "fp32",
        "warmup_steps": 2,
        "head_chunk_tokens": 13,
        "checkpoint_seconds": 10_000,
        "held_out_every_tokens": 3 * 5 * TOKENS,
    }
    held = [RandomSequences(9, 3)[i] for i in range(3)]
    part = TrainPart.model_validate(settings | fields)
    return Phase(
        name="pretrain",
        model=model or small_model(),
        part=part,
        mixture=Mixture({"a": RandomSequences(1, 17), "b": RandomSequences(2, 5)}, {"a": 2.0, "b": 1.0}, seed=7),
        held_out={"a": [Batch(torch.stack([r[0] for r in held]), torch.stack([r[1] for r in held]))], "b": []},
        objective=objective(part, small_teacher() if part.needs_teacher else None),
        folder=folder,
        device=torch.device("cpu"),
        dtype=torch.bfloat16 if part.precision == "bf16" else torch.float32,
    )


def small_measure() -> Validation:
    """Validation on five random completions of one task and two of another, split over the processes."""
    generator = np.random.default_rng(3)

    def completion(number: int) -> Completion:
        prompt, tokens = generator.integers(VOCABULARY, size=3), generator.integers(VOCABULARY, size=4 + number)
        logp = np.full(len(tokens), -np.log(VOCABULARY), np.float32)
        return Completion(f"{number:016x}", prompt, tokens, logp, SamplingParams(1.0))

    completions = {task: [completion(number) for number in range(count)] for task, count in (("a", 5), ("b", 2))}
    own = slice(processes.rank(), None, processes.world_size())
    return Validation({task: of_task[own] for task, of_task in completions.items()}, gamma=2)


class MixtureWithCallback:
    """A mixture that calls `before_step(step)` before it returns the batch of a step."""

    def __init__(self, mixture: Mixture, before_step: Callable[[int], None]) -> None:
        self._mixture, self._before_step = mixture, before_step

    def __getattr__(self, name: str) -> object:
        return getattr(self._mixture, name)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value) if name.startswith("_") else setattr(self._mixture, name, value)

    def next_batch(self, sequences: int, portion: Portion = WHOLE) -> Batch:
        self._before_step(sum(self._mixture.position) // sequences + 1)
        return self._mixture.next_batch(sequences, portion)


def interrupt(phase: Phase, checkpoints: set[int], step: int, action: Callable[[], object]) -> Phase:
    """The phase with a checkpoint after each step of `checkpoints` only, and `action` called before `step`."""
    phase.part = phase.part.model_copy()

    def before_step(next_step: int) -> None:
        vars(phase.part)["checkpoint_seconds"] = 0 if next_step in checkpoints else 10_000
        if next_step == step:
            action()

    phase.mixture = MixtureWithCallback(phase.mixture, before_step)
    return phase


class Interruption(Exception):
    """Raised by `train_until_step`."""


def train_until_step(phase: Phase, step: int, checkpoints: set[int]) -> None:
    """Train, and raise an exception before `step`."""

    def stop() -> None:
        raise Interruption

    with pytest.raises(Interruption):
        train(interrupt(phase, checkpoints, step, stop))


@pytest.fixture
def make_model() -> Callable[..., LlamaForCausalLM]:
    return small_model


@pytest.fixture
def make_phase() -> Callable[..., Phase]:
    return small_phase


@pytest.fixture
def make_measure() -> Callable[[], Validation]:
    return small_measure


@pytest.fixture
def interrupted() -> Callable[..., Phase]:
    return interrupt


@pytest.fixture
def train_until() -> Callable[..., None]:
    return train_until_step


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """More threads would add numbers in another order; tests here compare bit for bit."""
