"""Verification accepts correct completions, and has been seen to refuse wrong ones."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from fastdraft.evaluation.verification import LARGEST_Z, Verifier, verify, z_score
from fastdraft.maths import acceptance
from fastdraft.models.pretrained import cache_name
from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.synthesize.rescore import completion_logits, sampled_logp
from fastdraft.system.errors import VerificationError

PROMPTS = [np.arange(length) * 7 % 131 for length in (3, 11, 5, 7, 2, 13)]
EOS = frozenset({118, 30})  # tokens that the target generates often, so some texts end early


@pytest.fixture(scope="module")
def pair(tiny_llama: Callable[..., LlamaForCausalLM], perturbed: Callable[..., LlamaForCausalLM]) -> Verifier:
    target = tiny_llama(7)
    return Verifier(target, perturbed(target, 0.1, 3), 3, 23, EOS, resamples=200, seed=7)


@pytest.fixture(scope="module")
def greedy(pair: Verifier, completed: Callable) -> list[Completion]:
    return completed(pair.target, PROMPTS, SamplingParams(0), 23, EOS)


@pytest.mark.parametrize("gamma", [1, 3, 5])
def test_greedy_decoding_agrees_exactly(pair: Verifier, greedy: list[Completion], gamma: int) -> None:
    assert len({len(row.tokens) for row in greedy}) > 1, "some texts end early, with end-of-text"
    result = verify(replace(pair, gamma=gamma), greedy)
    assert (result.prompts, result.compared, result.near_ties) == (6, 6, ())
    assert (result.gamma, result.temperature) == (gamma, 0)
    assert result.tokens == sum(len(row.tokens) for row in greedy)
    assert result.real == result.one_pass
    assert 1.05 < result.real.value < gamma + 1


@pytest.mark.parametrize("sampling", [SamplingParams(1.0), SamplingParams(0.7, 20, 0.9)])
def test_sampled_runs_agree(pair: Verifier, completed: Callable, sampling: SamplingParams) -> None:
    prompts = [(np.arange(5) + i) % 131 for i in range(24)]
    result = verify(pair, completed(pair.target, prompts, sampling, 23, EOS))
    assert (result.prompts, result.compared, result.temperature) == (24, 24, sampling.temperature)
    assert result.disagreements == ()
    assert result.real.value == pytest.approx(result.one_pass.value, rel=0.1)
    assert max(abs(result.forwards_z), abs(result.recorded_z)) < 2.5


def test_models_and_random_state_are_restored(pair: Verifier, completed: Callable) -> None:
    config = GenerationConfig(repetition_penalty=1.5, no_repeat_ngram_size=2)
    pair.target.generation_config, before = config, pair.target.generation_config
    state = torch.random.get_rng_state()
    try:
        assert verify(pair, completed(pair.target, PROMPTS, SamplingParams(0), 23, EOS)).compared == 6, (
            "the target's own settings have no effect"
        )
        verify(pair, completed(pair.target, PROMPTS, SamplingParams(1.0), 23, EOS))
        assert pair.target.generation_config is config
    finally:
        pair.target.generation_config = before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not pair.target._forward_hooks


def test_a_changed_completion_is_refused(pair: Verifier, greedy: list[Completion]) -> None:
    tokens = greedy[2].tokens.copy()
    tokens[4] = (tokens[4] + 1) % 131
    forged = [*greedy[:2], replace(greedy[2], tokens=tokens), *greedy[3:]]
    result = verify(pair, forged)
    assert re.match(r"prompt 2: plain and recorded .* at token 4 ", "".join(result.disagreements))
    assert (result.compared, result.real.value > 1) == (6, True), "the other results are kept"


def test_completions_of_another_length_are_refused(pair: Verifier, greedy: list[Completion]) -> None:
    result = verify(replace(pair, max_new_tokens=29, eos=frozenset()), greedy)
    assert len(result.disagreements) == 6
    assert all("plain and recorded greedy decoding differ" in line for line in result.disagreements)


def test_a_near_tie_is_reported_and_left_out(pair: Verifier, tiny_llama: Callable[..., LlamaForCausalLM]) -> None:
    """Two tokens with equal output rows tie exactly: the recording has one of them, decoding the other."""
    target = tiny_llama(7)
    plain = decoded(target, PROMPTS[1])
    twin, place = max(set(range(131)) - set(plain.tolist())), 9
    with torch.no_grad():
        target.lm_head.weight[twin] = target.lm_head.weight[int(plain[place])]
    recorded = plain.copy()
    recorded[place] = twin
    rows = [
        Completion(str(i), prompt, tokens, np.zeros(len(tokens), np.float32), SamplingParams(0))
        for i, (prompt, tokens) in enumerate([(PROMPTS[0], decoded(target, PROMPTS[0])), (PROMPTS[1], recorded)])
    ]
    result = verify(replace(pair, target=target, eos=frozenset()), rows)
    assert (result.prompts, result.compared) == (2, 1)
    (tie,) = result.near_ties
    assert (tie.prompt, tie.position) == (1, place)
    assert tie.gap < 1e-4
    assert result.disagreements == ()
    nothing = verify(replace(pair, target=target, eos=frozenset()), rows[1:])
    assert (nothing.compared, len(nothing.disagreements)) == (0, 1)
    assert "all 1 prompts end in near ties" in nothing.disagreements[0]


def test_a_draft_that_differs_with_its_kv_cache_is_refused(
    pair: Verifier, perturbed: Callable[..., LlamaForCausalLM], greedy: list[Completion]
) -> None:
    draft = perturbed(pair.target, 0.1, 3)

    def wrong_with_a_cache(_model: object, _inputs: object, output: CausalLMOutputWithPast) -> None:
        if output.get(cache_name(draft)) is not None:
            output.logits = output.logits.roll(1, -1)

    draft.register_forward_hook(wrong_with_a_cache)
    for line in verify(replace(pair, draft=draft), greedy).disagreements:
        assert re.search(r"target forwards for \d+ equal tokens at gamma 3, one-pass", line)
    assert verify(replace(pair, draft=draft), greedy).disagreements


def decoded(target: LlamaForCausalLM, prompt: np.ndarray) -> np.ndarray:
    """23 tokens of plain greedy decoding."""
    text = torch.from_numpy(prompt)
    with torch.no_grad():
        for _ in range(23):
            text = torch.cat([text, target(text[None]).logits[0, -1].argmax()[None]])
    return text[len(prompt) :].numpy()


def test_log_probabilities_of_another_distribution_are_refused(pair: Verifier, completed: Callable) -> None:
    prompts = [(np.arange(5) + i) % 131 for i in range(24)]
    completions = completed(pair.target, prompts, SamplingParams(1.0), 23, EOS)
    wrong = [replace(row, logp=row.logp - 3) for row in completions]
    (line,) = verify(pair, wrong).disagreements
    assert "belong to another distribution" in line


def test_texts_of_another_temperature_are_refused(pair: Verifier, completed: Callable) -> None:
    """Their log-probabilities are right, and nothing else tells that they are no samples of the distribution."""
    prompts = [(np.arange(5) + i) % 131 for i in range(24)]
    cold = completed(pair.target, prompts, SamplingParams(0.5), 23, EOS)
    rows = [replace(row, sampling=SamplingParams(1.0)) for row in cold]
    with torch.no_grad():
        for index, logits_NV in completion_logits(pair.target, list(rows)):
            rows[index] = replace(rows[index], logp=sampled_logp(rows[index], logits_NV))
    (line,) = verify(pair, rows).disagreements
    assert "belong to another distribution" in line


def test_a_sampled_draft_that_differs_with_its_kv_cache_is_refused(
    pair: Verifier, perturbed: Callable[..., LlamaForCausalLM], completed: Callable
) -> None:
    """Three in ten of the draft's cached predictions are wrong, which costs a tenth of block efficiency."""
    draft = perturbed(pair.target, 0.1, 3)
    rng = np.random.default_rng(5)

    def sometimes_wrong_with_a_cache(_model: object, _inputs: object, output: CausalLMOutputWithPast) -> None:
        if output.get(cache_name(draft)) is not None and rng.random() < 0.3:
            output.logits = output.logits.roll(1, -1)

    draft.register_forward_hook(sometimes_wrong_with_a_cache)
    prompts = [(np.arange(5) + i) % 131 for i in range(61)]
    rows = completed(pair.target, prompts, SamplingParams(1.0), 23, EOS)
    assert verify(replace(pair, draft=draft), rows).disagreements


def simulated_scores(accept_BN: torch.Tensor, factor: float, rng: torch.Generator) -> torch.Tensor:
    """z-scores of 2,000 simulated runs at gamma 4, in which tokens are accepted with `factor` times the probability."""
    texts, tokens = accept_BN.shape
    lengths_B = torch.full((texts,), tokens)
    mean = float(acceptance.chain(accept_BN, lengths_B, 4).forwards_B.sum())
    variance = float(acceptance.forwards_variance(accept_BN, lengths_B, 4).sum())
    accepted_RBN = torch.rand(2000, texts, tokens, generator=rng, dtype=torch.float64) < factor * accept_BN
    state_RB, forwards_R = torch.zeros(2000, texts, dtype=torch.long), torch.zeros(2000)
    for accepted_RB in accepted_RBN.unbind(2):
        forwards_R += (state_RB == 0).sum(1)
        state_RB = torch.where(accepted_RB & (state_RB < 4), state_RB + 1, 0)
    return torch.tensor([z_score(forwards, mean, variance, texts * tokens) for forwards in forwards_R.tolist()])


@pytest.mark.parametrize(("factor", "least", "most"), [(1.0, 0, 0.01), (0.9, 0.95, 1)])
def test_the_level_and_the_power_of_the_test_of_forwards(factor: float, least: float, most: float) -> None:
    """Simulated texts of 16 prompts with 64 tokens; half of the level of 1 % belongs to this test."""
    rng = torch.Generator().manual_seed(11)
    accept_BN = torch.rand(16, 64, generator=rng, dtype=torch.float64) ** 0.5
    refused = simulated_scores(accept_BN, factor, rng).abs() > LARGEST_Z
    assert least <= float(refused.float().mean()) <= most


@pytest.mark.parametrize("rejections", [0.01, 0.1, 1, 5])
def test_a_draft_that_is_nearly_its_target_is_not_refused(rejections: float) -> None:
    """Without the variance of rare events 10 % of the runs with 0.1 expected rejections were refused."""
    accept_BN = torch.full((4, 32), 1 - rejections / 128, dtype=torch.float64)
    scores_R = simulated_scores(accept_BN, 1.0, torch.Generator().manual_seed(13))
    assert float((scores_R.abs() > LARGEST_Z).float().mean()) < 0.01


def test_models_other_than_fp32_are_refused(pair: Verifier, greedy: list[Completion], tiny_llama: Callable) -> None:
    with pytest.raises(VerificationError, match=r"torch.bfloat16.*, wanted fp32"):
        verify(replace(pair, draft=tiny_llama(7).bfloat16()), greedy)


STORIES = [
    "Once upon a time, there was a little girl named Lily.",
    "Tom and Ben went to the park.",
    "The dog was very sad because",
    "One day, a big bear",
    "Mom said, \"Let's go",
    "In a small house lived an old man.",
    "Lily saw a red ball and",
    "There was a boy who liked to",
]


@pytest.mark.parametrize("sampling", [SamplingParams(0), pytest.param(SamplingParams(0.8), marks=pytest.mark.slow)])
def test_a_real_target_and_a_perturbed_draft(
    stories260k: Path, perturbed: Callable[..., LlamaForCausalLM], completed: Callable, sampling: SamplingParams
) -> None:
    target = AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    stories = STORIES[:4] if sampling.greedy else [f"{story} {more}" for story in STORIES for more in ("", "She", "He")]
    prompts = [np.array(tokenizer(story).input_ids) for story in stories]
    pair = Verifier(target, perturbed(target, 0.1, 3), 4, 48, frozenset({2}), resamples=500, seed=7)
    result = verify(pair, completed(target, prompts, sampling, 48, pair.eos))
    assert result.compared == len(prompts)
    assert 1.5 < result.real.value < 4.9, "the draft agrees sometimes"
    if sampling.greedy:
        assert result.real == result.one_pass
