"""Blockwise attention equals causal attention for all block sizes; other attention is left to torch."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from fastdraft.config import TrainPart
from fastdraft.data.order import Batch
from fastdraft.train import attention
from fastdraft.train.learner import Learner
from fastdraft.train.objectives import cross_entropy

B, H, T, D = 3, 4, 13, 6


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def states(generator: torch.Generator, heads: int) -> torch.Tensor:
    """(B,H,T,D), transposed from (B,T,H,D) as in models."""
    return torch.randn(B, T, heads, D, generator=generator).bfloat16().transpose(1, 2).requires_grad_()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("block", [1, 5, 13, 97])
@pytest.mark.parametrize("cached", [1, 400])
def test_values_and_gradients_equal_those_of_causal_attention(generator, monkeypatch, kv_heads, block, cached):
    monkeypatch.setattr(attention, "BLOCK_TOKENS", block)
    monkeypatch.setattr(attention, "CACHED_BYTES", cached)
    inputs = states(generator, H), states(generator, kv_heads), states(generator, kv_heads)
    out_BTHD, _ = attention.attend(nn.Module(), *inputs, None, scaling=0.3)
    out = out_BTHD.transpose(1, 2)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = nn.functional.scaled_dot_product_attention(*exact, is_causal=True, scale=0.3, enable_gqa=True)
    grad_out = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(out.double(), expected, rtol=3e-2, atol=2e-2)
    gradients = torch.autograd.grad(out, inputs, grad_out.bfloat16())
    for gradient, expected_gradient in zip(gradients, torch.autograd.grad(expected, exact, grad_out), strict=True):
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=3e-2, atol=4e-2)


def test_other_attention_is_left_to_torch(generator, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("blockwise")

    monkeypatch.setattr(attention._BlockwiseAttention, "apply", never)
    module, query, key, value = nn.Module(), states(generator, H), states(generator, H), states(generator, H)
    mask = torch.ones(B, 1, T, T, dtype=torch.bool).tril(-1)
    mask[..., 0] = True
    attention.attend(module, query, key, value, mask)
    attention.attend(module, query, key, value, None, is_causal=False)
    attention.attend(module, query[:, :, -1:], key, value, None)
    attention.attend(module, query.float(), key.float(), value.float(), None)
    with pytest.raises(AssertionError, match="blockwise"):
        attention.attend(module, query, key, value, None)


def test_a_step_in_bf16_has_the_loss_and_gradient_of_attention_by_torch(monkeypatch):
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    model, calls = LlamaForCausalLM(config), []
    assert config._attn_implementation == "sdpa"
    tokens_BT = torch.randint(31, (3, 14), generator=torch.Generator().manual_seed(2))
    batch = Batch(tokens_BT[:, :-1], tokens_BT[:, 1:])
    results = {}
    blockwise = attention._BlockwiseAttention.apply
    monkeypatch.setattr(attention._BlockwiseAttention, "apply", lambda *args: calls.append(1) or blockwise(*args))
    for name, keys in {"blockwise": {}, "torch": {"activation_checkpointing": True}}.items():
        learner = Learner(model, TrainPart(mix={"a": 1.0}, train_tokens=1, **keys), torch.bfloat16).train()
        loss = learner(batch, cross_entropy) / batch.labels_BT.numel()
        results[name] = loss.detach(), torch.autograd.grad(loss, model.parameters())
        assert config._attn_implementation == "sdpa"
    assert len(calls) == 2, "once per layer, in the first of the two steps"
    (loss, gradients), (expected_loss, expected_gradients) = results["blockwise"], results["torch"]
    torch.testing.assert_close(loss, expected_loss, rtol=3e-3, atol=0)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert (gradient - expected).norm() <= 0.05 * expected.norm()
