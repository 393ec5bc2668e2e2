"""Attention by blocks of queries is causal attention, whatever the blocks; what is not plain is left to torch."""

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
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def states(draw: torch.Generator, heads: int) -> torch.Tensor:
    """As models give them: (B,H,T,D) seen through (B,T,H,D)."""
    return torch.randn(B, T, heads, D, generator=draw).bfloat16().transpose(1, 2).requires_grad_()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("block", [1, 5, 13, 97])
@pytest.mark.parametrize("cached", [1, 400])
def test_values_and_gradients_are_those_of_causal_attention(draw, monkeypatch, kv_heads, block, cached):
    monkeypatch.setattr(attention, "BLOCK_TOKENS", block)
    monkeypatch.setattr(attention, "CACHED_BYTES", cached)
    given = states(draw, H), states(draw, kv_heads), states(draw, kv_heads)
    found, _ = attention.attend(nn.Module(), *given, None, scaling=0.3)
    exact = [x.detach().double().requires_grad_() for x in given]
    wanted = nn.functional.scaled_dot_product_attention(*exact, is_causal=True, scale=0.3, enable_gqa=True)
    slope = torch.randn(wanted.shape, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(found.transpose(1, 2).double(), wanted, rtol=3e-2, atol=2e-2)
    gradients = torch.autograd.grad(found.transpose(1, 2), given, slope.bfloat16())
    for ours, theirs in zip(gradients, torch.autograd.grad(wanted, exact, slope), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=3e-2, atol=4e-2)


def test_what_is_not_plain_is_left_to_torch(draw, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("by blocks")

    monkeypatch.setattr(attention._ByBlocks, "apply", never)
    module, query, key, value = nn.Module(), states(draw, H), states(draw, H), states(draw, H)
    mask = torch.ones(B, 1, T, T, dtype=torch.bool).tril(-1)
    mask[..., 0] = True
    attention.attend(module, query, key, value, mask)
    attention.attend(module, query, key, value, None, is_causal=False)
    attention.attend(module, query[:, :, -1:], key, value, None)
    attention.attend(module, query.float(), key.float(), value.float(), None)
    with pytest.raises(AssertionError, match="by blocks"):
        attention.attend(module, query, key, value, None)


def test_a_step_in_bf16_has_the_loss_and_gradient_of_torch_s_attention(monkeypatch):
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
    model, asked = LlamaForCausalLM(config), []
    assert config._attn_implementation == "sdpa"
    tokens_BT = torch.randint(31, (3, 14), generator=torch.Generator().manual_seed(2))
    batch = Batch(tokens_BT[:, :-1], tokens_BT[:, 1:])
    found = {}
    by_blocks = attention._ByBlocks.apply
    monkeypatch.setattr(attention._ByBlocks, "apply", lambda *given: asked.append(1) or by_blocks(*given))
    for ways, keys in {"blocks": {}, "torch": {"activation_checkpointing": True}}.items():
        learner = Learner(model, TrainPart(mix={"a": 1.0}, train_tokens=1, **keys), torch.bfloat16).train()
        loss = learner(batch, cross_entropy) / batch.labels_BT.numel()
        found[ways] = loss.detach(), torch.autograd.grad(loss, model.parameters())
        assert config._attn_implementation == "sdpa"
    assert len(asked) == 2, "once a layer, in one of the two ways"
    torch.testing.assert_close(found["blocks"][0], found["torch"][0], rtol=3e-3, atol=0)
    for ours, theirs in zip(found["blocks"][1], found["torch"][1], strict=True):
        assert (ours - theirs).norm() <= 0.05 * theirs.norm()
