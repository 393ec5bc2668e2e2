"""Batched decoding: every row is the same alone and in a batch whose rows come and go."""

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from fastdraft.synthesize.completions import SamplingParams
from fastdraft.synthesize.generate import generate

PROMPTS = [np.arange(length) * 7 % 131 for length in (1, 11, 5, 1, 7, 2, 29, 3)]
NO_EOS: frozenset[int] = frozenset()


def coins(rows, tokens):
    return torch.from_numpy(np.random.default_rng(7).random((rows, tokens)))


@pytest.mark.parametrize("sampling", [SamplingParams(0), SamplingParams(1.0), SamplingParams(0.7, 13, 0.9)])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_reused_place_has_no_trace_of_the_row_before(target, sampling, batch_size):
    eos = frozenset(range(0, 131, 9))  # rows end at different lengths
    together = generate(target, PROMPTS, sampling, 17, eos, coins(8, 17), batch_size)
    assert len({len(row.tokens) for row in together}) >= 3
    for i, prompt in enumerate(PROMPTS):
        (alone,) = generate(target, [prompt], sampling, 17, eos, coins(8, 17)[i : i + 1])
        np.testing.assert_array_equal(alone.tokens, together[i].tokens)
        np.testing.assert_allclose(alone.logp, together[i].logp, atol=1e-4)


def test_the_attention_of_the_target_is_restored(target):
    before = target.config._attn_implementation
    generate(target, PROMPTS, SamplingParams(0), 3, NO_EOS, coins(8, 3))
    assert target.config._attn_implementation == before == "sdpa"


@pytest.mark.parametrize("sampling", [SamplingParams(0), SamplingParams(1.0)])
def test_a_target_with_sliding_window_uses_its_own_cache(sampling):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = MistralConfig(
            vocab_size=131,
            hidden_size=32,
            intermediate_size=61,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=97,
            sliding_window=6,
            initializer_range=0.3,
        )
        model = MistralForCausalLM(config).eval()
    together = generate(model, PROMPTS, sampling, 13, frozenset({3, 5, 7}), coins(8, 13), 3)
    for i, (prompt, written) in enumerate(zip(PROMPTS, together, strict=True)):
        (alone,) = generate(model, [prompt], sampling, 13, frozenset({3, 5, 7}), coins(8, 13)[i : i + 1])
        np.testing.assert_array_equal(alone.tokens, written.tokens)
        text = torch.from_numpy(np.concatenate([prompt, written.tokens]))
        with torch.no_grad():
            logits_NV = model(text[None]).logits[0, len(prompt) - 1 : -1]
        if sampling.greedy:
            np.testing.assert_array_equal(logits_NV.argmax(-1).numpy(), written.tokens)
        else:
            logp_N = logits_NV.log_softmax(-1).gather(1, text[len(prompt) :, None])[:, 0]
            np.testing.assert_allclose(written.logp, logp_N.numpy(), atol=1e-4)
