"""The engine `transformers`: distribution, recorded log-probabilities, independence of the batch, resuming.

Dimensions: B rows, N tokens, V vocabulary.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from fastdraft.maths.sampling import warp
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Completion, Request, SamplingParams
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_transformers import complete
from fastdraft.synthesize.generate import Generated, generate
from fastdraft.system.errors import TargetError

PROMPTS = [np.arange(length) * 7 % 131 for length in (3, 11, 5, 7, 2)]
SAMPLING_SETTINGS = [SamplingParams(0), SamplingParams(1.0), SamplingParams(0.7, 13, 0.9)]
NO_EOS: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def target(tiny_llama: Callable[..., LlamaForCausalLM]) -> LlamaForCausalLM:
    return tiny_llama(7)


def coins(rows: int, tokens: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(7).random((rows, tokens)))


def recomputed(target: LlamaForCausalLM, prompt: np.ndarray, written: Generated, sampling: SamplingParams) -> Tensor:
    """(n) log p of the tokens from one forward over the whole text."""
    text = torch.from_numpy(np.concatenate([prompt, written.tokens]))
    with torch.no_grad():
        logits_NV = target(text[None]).logits[0, len(prompt) - 1 : -1]
    if sampling.greedy:
        return torch.where(logits_NV.argmax(-1) == text[len(prompt) :], 0.0, -torch.inf)
    return warp(logits_NV, *sampling).gather(1, text[len(prompt) :, None])[:, 0]


@pytest.mark.parametrize("sampling", SAMPLING_SETTINGS)
def test_a_row_is_the_same_alone_and_in_a_batch(target: LlamaForCausalLM, sampling: SamplingParams) -> None:
    coins_BN = coins(5, 13)
    together = generate(target, PROMPTS, sampling, 13, NO_EOS, coins_BN)
    for i, prompt in enumerate(PROMPTS):
        (alone,) = generate(target, [prompt], sampling, 13, NO_EOS, coins_BN[i : i + 1])
        np.testing.assert_array_equal(alone.tokens, together[i].tokens)
        np.testing.assert_allclose(alone.logp, together[i].logp, atol=1e-4)


@pytest.mark.parametrize("sampling", SAMPLING_SETTINGS)
def test_recorded_log_probabilities_equal_those_of_one_forward(
    target: LlamaForCausalLM, sampling: SamplingParams
) -> None:
    for prompt, written in zip(PROMPTS, generate(target, PROMPTS, sampling, 13, NO_EOS, coins(5, 13)), strict=True):
        assert written.logp.dtype == np.float32
        assert len(written.tokens) == 13
        expected_N = recomputed(target, prompt, written, sampling)
        np.testing.assert_allclose(written.logp, expected_N.numpy(), atol=1e-4)


def test_a_row_ends_with_the_first_end_of_text(target: LlamaForCausalLM) -> None:
    whole = generate(target, PROMPTS, SamplingParams(1.0), 13, NO_EOS, coins(5, 13))
    eos = frozenset({int(whole[0].tokens[4]), int(whole[1].tokens[9])})
    for full, ended in zip(whole, generate(target, PROMPTS, SamplingParams(1.0), 13, eos, coins(5, 13)), strict=True):
        ends = [i + 1 for i, token in enumerate(full.tokens.tolist()) if token in eos]
        assert len(ended.tokens) == min([*ends, 13])
        np.testing.assert_array_equal(ended.tokens, full.tokens[: len(ended.tokens)])
        np.testing.assert_allclose(
            ended.logp, full.logp[: len(ended.tokens)], atol=1e-5
        )  # with fewer rows other kernels run


@pytest.mark.parametrize("sampling", [SamplingParams(0.7), SamplingParams(1.0, 5), SamplingParams(1.0, 0, 0.8)])
def test_sampled_tokens_follow_the_distribution(
    tiny_llama: Callable[..., LlamaForCausalLM], sampling: SamplingParams
) -> None:
    target, rows = tiny_llama(11, vocabulary=7), 3000
    written = generate(target, [np.array([2, 3])] * rows, sampling, 1, NO_EOS, coins(rows, 1))
    with torch.no_grad():
        p_V = warp(target(torch.tensor([[2, 3]])).logits[0, -1], *sampling).exp().double().numpy()
    counts_V = np.bincount([int(row.tokens[0]) for row in written], minlength=7)
    assert counts_V[p_V == 0].sum() == 0
    kept = p_V > 0
    chi_square = float(((counts_V - rows * p_V)[kept] ** 2 / (rows * p_V[kept])).sum())
    assert chi_square < 22.5  # p = 0.001 with 6 degrees of freedom


def test_a_text_longer_than_the_context_is_an_error(target: LlamaForCausalLM) -> None:
    generate(target, PROMPTS[:1], SamplingParams(0), 94, NO_EOS, coins(1, 94))
    with pytest.raises(TargetError, match=r"98 tokens, .* 97\n  do: "):
        generate(target, PROMPTS[:1], SamplingParams(0), 95, NO_EOS, coins(1, 95))


@pytest.mark.parametrize("sampling", [SamplingParams(0), SamplingParams(1.0), SamplingParams(0.7, 13, 0.9)])
def test_nan_logits_are_an_error(tiny_llama: Callable[..., LlamaForCausalLM], sampling: SamplingParams) -> None:
    broken = tiny_llama(7)
    torch.nn.init.constant_(broken.lm_head.weight, torch.nan)
    with pytest.raises(TargetError, match="logits are NaN"):
        generate(broken, PROMPTS, sampling, 3, NO_EOS, coins(5, 3))


# --- complete: requests, batches, the store

DECODING = DecodingParams(max_new_tokens=11, eos=frozenset({0}), seed=7, target_revision="r", batch_size=3)
REQUESTS = [
    Request(prompt, sampling, i)
    for sampling in SAMPLING_SETTINGS
    for prompt in PROMPTS
    for i in range(1 if sampling.greedy else 3)
]


def same(left: Sequence[Completion], right: Sequence[Completion]) -> bool:
    return len(left) == len(right) and all(
        (a.key, a.sampling, a.index) == (b.key, b.sampling, b.index)
        and np.array_equal(a.prompt, b.prompt)
        and np.array_equal(a.tokens, b.tokens)
        and np.array_equal(a.logp, b.logp)
        for a, b in zip(left, right, strict=True)
    )


class Killed(Exception):
    """Stands in for a kill of the process."""


class DyingStore(CompletionStore):
    """A store whose process is killed at the third shard."""

    def write(self, completions: Sequence[Completion]) -> None:
        if len(list(self.folder.glob("*.parquet"))) == 2:
            raise Killed
        super().write(completions)


def test_completions_come_in_the_order_of_requests(target: LlamaForCausalLM, tmp_path: Path) -> None:
    completions = complete(target, REQUESTS, DECODING, CompletionStore(tmp_path), "test")
    assert [(row.sampling, row.index) for row in completions] == [(r.sampling, r.index) for r in REQUESTS]
    for row, request in zip(completions, REQUESTS, strict=True):
        np.testing.assert_array_equal(row.prompt, request.prompt)
    texts = Counter(tuple(row.tokens.tolist()) for row in completions if row.sampling == SamplingParams(1.0))
    assert max(texts.values()) == 1, "samples of one prompt have different random numbers"


def test_a_killed_run_resumes_to_the_same_rows(target: LlamaForCausalLM, tmp_path: Path) -> None:
    undisturbed = complete(target, REQUESTS, DECODING, CompletionStore(tmp_path / "undisturbed"), "test")
    with pytest.raises(Killed):
        complete(target, REQUESTS, DECODING, DyingStore(tmp_path / "killed"), "test")
    assert len(CompletionStore(tmp_path / "killed").stored_keys()) == 24, (
        "one shard of 12 rows for each of the sampled distributions"
    )
    assert same(complete(target, REQUESTS, DECODING, CompletionStore(tmp_path / "killed"), "test"), undisturbed)


def test_completions_do_not_depend_on_the_batch_size(target: LlamaForCausalLM, tmp_path: Path) -> None:
    few = complete(target, REQUESTS, DECODING._replace(batch_size=2), CompletionStore(tmp_path / "few"), "test")
    many = complete(target, REQUESTS, DECODING._replace(batch_size=64), CompletionStore(tmp_path / "many"), "test")
    for left, right in zip(few, many, strict=True):
        assert left.key == right.key
        np.testing.assert_array_equal(left.tokens, right.tokens)
        np.testing.assert_allclose(left.logp, right.logp, atol=1e-4)


def test_stored_completions_are_not_generated_again(
    target: LlamaForCausalLM, tiny_llama: Callable[..., LlamaForCausalLM], tmp_path: Path
) -> None:
    store = CompletionStore(tmp_path)
    first = complete(target, REQUESTS, DECODING, store, "test")
    shards = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert same(complete(tiny_llama(8), REQUESTS, DECODING, store, "test"), first), "the second target is not used"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == shards


def test_two_equal_requests_are_an_error(target: LlamaForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two requests have one key"):
        complete(target, [REQUESTS[0], REQUESTS[0]], DECODING, CompletionStore(tmp_path), "test")


def test_a_target_that_writes_only_end_of_text_is_an_error(target: LlamaForCausalLM, tmp_path: Path) -> None:
    store, everything = CompletionStore(tmp_path), frozenset(range(131))
    with pytest.raises(TargetError, match=r"first 12 prompts with the end-of-text token alone\n  do: "):
        complete(target, REQUESTS, DECODING._replace(eos=everything), store, "test")
    assert len(store.stored_keys()) == 0


def test_a_real_target_tells_a_story(stories260k: Path) -> None:
    target = AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float32)
    prompts = [np.array([1, 403, 407]), np.array([1, 403])]
    rows = generate(target, prompts, SamplingParams(0.6), 31, frozenset({2}), coins(2, 31))
    for prompt, written in zip(prompts, rows, strict=True):
        expected_N = recomputed(target, prompt, written, SamplingParams(0.6))
        np.testing.assert_allclose(written.logp, expected_N.numpy(), atol=1e-4)
        assert written.logp.mean() > -2, "a trained target is confident"


@pytest.mark.parametrize("sampling", SAMPLING_SETTINGS)
@pytest.mark.parametrize("k", [1, 5, 131])
def test_top_tokens_equal_those_of_one_forward_at_temperature_1(
    target: LlamaForCausalLM, sampling: SamplingParams, k: int
) -> None:
    without_top = generate(target, PROMPTS, sampling, 13, NO_EOS, coins(5, 13), 2)
    with_top = generate(target, PROMPTS, sampling, 13, NO_EOS, coins(5, 13), 2, top_logprobs=k)
    for prompt, written, before in zip(PROMPTS, with_top, without_top, strict=True):
        np.testing.assert_array_equal(written.tokens, before.tokens)
        text = torch.from_numpy(np.concatenate([prompt, written.tokens]))
        with torch.no_grad():
            logp_NV = target(text[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        best_NK = logp_NV.topk(k).values
        assert written.top is not None
        assert written.top.ids.shape == (13, k)
        np.testing.assert_allclose(written.top.logp, best_NK.half(), rtol=2e-3, atol=2e-3)
        of_ids_NK = logp_NV.gather(1, torch.from_numpy(written.top.ids.astype(np.int64)))
        np.testing.assert_allclose(of_ids_NK, best_NK, atol=1e-4)  # near ties may be in another order


def test_rows_generated_again_have_the_same_top_tokens(
    target: LlamaForCausalLM, tmp_path: Path, one_thread: None
) -> None:
    decoding = DecodingParams(7, NO_EOS, 7, "r", 1, top_logprobs=3)
    requests = [Request(prompt, SAMPLING_SETTINGS[i % 2], i) for i, prompt in enumerate(PROMPTS * 3)]
    store = CompletionStore(tmp_path)
    before = complete(target, requests, decoding, store, "whole")
    for shard in sorted(tmp_path.glob("*.parquet"))[::2]:
        shard.unlink()
    after = complete(target, requests, decoding, store, "resumed")
    assert len(list(tmp_path.glob("*.parquet"))) > 2
    for row, again in zip(before, after, strict=True):
        assert row.top is not None
        assert again.top is not None
        np.testing.assert_array_equal(row.top.ids, again.top.ids)
        np.testing.assert_array_equal(row.top.logp, again.top.logp)
