"""Fixtures of the tests of `evaluate`."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.synthesize.generate import generate

Complete = Callable[..., list[Completion]]


@pytest.fixture(scope="session")
def completed() -> Complete:
    """Generate completions with a target, without a store."""

    def run(
        target: PreTrainedModel,
        prompts: Sequence[np.ndarray],
        sampling: SamplingParams,
        tokens: int,
        eos: frozenset[int] = frozenset(),
    ) -> list[Completion]:
        uniform_BN = torch.from_numpy(np.random.default_rng(7).random((len(prompts), tokens)))
        rows = generate(target, prompts, sampling, tokens, eos, uniform_BN)
        return [
            Completion(f"{i:016x}", prompt, row.tokens, row.logp, sampling)
            for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
        ]

    return run
