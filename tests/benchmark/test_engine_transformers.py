"""transformers, timed: what is counted is what the verification counts, and both ways to speculate write the target's
own.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastdraft.benchmark.engine import LOOKUP, NONE, Arm, BenchRequest, PairFiles
from fastdraft.benchmark.engine_transformers import Transformers, step_seconds
from fastdraft.benchmark.equality import check_near_ties, first_difference
from fastdraft.evaluation.assisted import decode
from fastdraft.synthesize.completions import Completion, SamplingParams

PROMPT, TOKENS = np.array([3, 5, 7, 3, 5]), 29


@pytest.fixture(scope="module")
def files(tiny_llama, perturbed, tmp_path_factory) -> PairFiles:
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_llama(3)
    target.save_pretrained(folder / "target")
    perturbed(target, 0.05, 1).save_pretrained(folder / "draft")
    return PairFiles(
        target=folder / "target",
        draft=folder / "draft",
        target_weights="fp32",
        draft_weights="fp32",
        device="cpu",
        longest_tokens=97,
        eos=frozenset({130}),
    )


@pytest.fixture(scope="module")
def opened(files):
    return Transformers.open(files, Transformers.exact)


def test_the_three_ways_write_the_same(opened):
    plain, *others = (
        opened.complete(BenchRequest(PROMPT, SamplingParams(0.0), TOKENS), arm)
        for arm in (NONE, LOOKUP, Arm("draft", 3))
    )
    assert plain.blocks == (1,) * TOKENS
    assert (plain.drafted, plain.drafting_seconds) == (0, 0.0)
    for found in others:
        assert found.tokens.tolist() == plain.tokens.tolist()
        assert sum(found.blocks) == TOKENS
        assert min(found.blocks) >= 1
        assert 0 < found.first_seconds < found.seconds


@pytest.mark.parametrize("gamma", [1, 3, 5])
def test_blocks_are_the_verifications_forwards(opened, files, gamma):
    found = opened.complete(BenchRequest(PROMPT, SamplingParams(0.0), TOKENS), Arm("draft", gamma))
    target, draft = Transformers.one_pass_models(files)
    row = Completion("", PROMPT, found.tokens, np.zeros(TOKENS, np.float32), SamplingParams(0.0))
    assert len(found.blocks) == decode(row, target, draft, gamma, TOKENS, frozenset({130})).forwards
    assert max(found.blocks) <= gamma + 1
    assert max(found.blocks) > 1
    assert 0 < found.drafted <= gamma * len(found.blocks)
    assert 0 < found.drafting_seconds < found.decode_seconds


def test_a_seed_is_a_sampled_text(opened):
    texts = [
        opened.complete(BenchRequest(PROMPT, SamplingParams(0.7), TOKENS, seed), NONE).tokens.tolist()
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    found = opened.complete(BenchRequest(PROMPT, SamplingParams(0.7), TOKENS, 3), Arm("draft", 3))
    assert sum(found.blocks) == len(found.tokens) == TOKENS


def test_rounded_weights_are_exact_in_fp32_arithmetic(files):
    """In bf16 arithmetic a block and a single token differ by more than a near tie; the rounded weights stay."""
    rounded = replace(files, target_weights="bf16", draft_weights="bf16")
    exact, fast = (Transformers.open(rounded, setting) for setting in (Transformers.exact, *Transformers.settings))
    reader, _ = Transformers.one_pass_models(rounded)
    assert (reader.dtype, exact._target.dtype, fast._target.dtype) == (torch.float32, torch.float32, torch.bfloat16)
    for weight, of_fast in zip(reader.parameters(), fast._target.parameters(), strict=True):
        assert torch.equal(weight, of_fast.float())
    plain = exact.complete(BenchRequest(PROMPT, SamplingParams(0.0), TOKENS), NONE).tokens
    for arm in (LOOKUP, Arm("draft", 3)):
        drafted = exact.complete(BenchRequest(PROMPT, SamplingParams(0.0), TOKENS), arm).tokens
        found = first_difference(reader, PROMPT, plain, drafted, task="t", number=0, arm=arm)
        check_near_ties(Transformers.exact.name, [found] if found else [])


def test_a_step_takes_time(files):
    target, _ = Transformers.one_pass_models(files)
    assert 0 < step_seconds(target, 3) < 1


def test_devices_are_those_that_are_here():
    assert "cpu" in Transformers.devices()
    assert Transformers.hardware("cpu").endswith("threads")
    assert len(Transformers.devices()) == 1 + torch.accelerator.device_count()
