"""A phase small enough to train in the blink of an eye: a random Llama on random tokens, two sources."""

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
from fastdraft.pipeline.validation import Measure
from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.system import processes
from fastdraft.train.loop import Phase
from fastdraft.train.objectives import objective

VOCABULARY, TOKENS = 31, 7
MakePhase = Callable[..., Phase]


class RandomRows:
    """Rows of random tokens; from every third row some labels are taken away, unevenly."""

    def __init__(self, source: int, rows: int) -> None:
        self.rows, self.labels = rows, rows * TOKENS  # the labels that row() takes away are not counted
        self._tokens = torch.randint(VOCABULARY, (rows, TOKENS + 1), generator=torch.Generator().manual_seed(source))

    def row(self, index: int) -> tuple[Tensor, Tensor]:
        labels_T = self._tokens[index, 1:].clone()
        if index % 3 == 0:
            labels_T[: 1 + index % TOKENS] = IGNORED
        return self._tokens[index, :-1], labels_T


def small_model(seed: int = 5, dropout: float = 0.0, tied: bool = True) -> LlamaForCausalLM:
    """A Llama whose attention may drop out, so that the generator's state matters."""
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
    """A model with distributions of its own: random weights four times as large."""
    model = small_model(seed=7).eval()
    for weight in model.parameters():
        weight.data *= 4
    return model


def small_phase(folder: Path, model: LlamaForCausalLM | None = None, **fields: object) -> Phase:
    """11 steps of 5 sequences; a part's fields may be given by name. A online distribution is that of
    `small_teacher`.
    """
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
    held = [RandomRows(9, 3).row(i) for i in range(3)]
    part = TrainPart.model_validate(settings | fields)
    return Phase(
        name="pretrain",
        model=model or small_model(),
        part=part,
        mixture=Mixture({"a": RandomRows(1, 17), "b": RandomRows(2, 5)}, {"a": 2.0, "b": 1.0}, seed=7),
        held_out={"a": [Batch(torch.stack([r[0] for r in held]), torch.stack([r[1] for r in held]))], "b": []},
        objective=objective(part, small_teacher() if part.needs_teacher else None),
        folder=folder,
        device=torch.device("cpu"),
        dtype=torch.bfloat16 if part.precision == "bf16" else torch.float32,
    )


def small_measure() -> Measure:
    """This process's portion of five random completions of one task and two of another, sampled at random."""
    dice = np.random.default_rng(3)

    def row(number: int) -> Completion:
        prompt, tokens = dice.integers(VOCABULARY, size=3), dice.integers(VOCABULARY, size=4 + number)
        logp = np.full(len(tokens), -np.log(VOCABULARY), np.float32)
        return Completion(f"{number:016x}", prompt, tokens, logp, SamplingParams(1.0))

    rows = {task: [row(number) for number in range(count)] for task, count in (("a", 5), ("b", 2))}
    mine = slice(processes.rank(), None, processes.count())
    return Measure({task: found[mine] for task, found in rows.items()}, gamma=2)


class Interrupted:
    """A mixture that says, before each step's batch, which step it is."""

    def __init__(self, mixture: Mixture, before: Callable[[int], None]) -> None:
        self._mixture, self._before = mixture, before

    def __getattr__(self, name: str) -> object:
        return getattr(self._mixture, name)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value) if name.startswith("_") else setattr(self._mixture, name, value)

    def next_batch(self, sequences: int, portion: Portion = WHOLE) -> Batch:
        self._before(sum(self._mixture.position) // sequences + 1)
        return self._mixture.next_batch(sequences, portion)


def interrupt(phase: Phase, due: set[int], last: int, act: Callable[[], object]) -> Phase:
    """The phase with a checkpoint after each step of `due` and no other; `act` is called before step `last`."""
    phase.part = phase.part.model_copy()

    def before(step: int) -> None:
        vars(phase.part)["checkpoint_seconds"] = 0 if step in due else 10_000
        if step == last:
            act()

    phase.mixture = Interrupted(phase.mixture, before)
    return phase


@pytest.fixture
def make_model() -> Callable[..., LlamaForCausalLM]:
    return small_model


@pytest.fixture
def make_phase() -> MakePhase:
    return small_phase


@pytest.fixture
def make_measure() -> Callable[[], Measure]:
    return small_measure


@pytest.fixture
def interrupted() -> Callable[..., Phase]:
    return interrupt


@pytest.fixture(autouse=True)
def _one_order(one_thread):
    """Sums in one order: what is compared bit for bit must not depend on how work was shared out."""
