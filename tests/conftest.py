"""Small models that several rooms are tested with: random ones, built here, and a real one where it is at hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

STORIES = Path(__file__).parents[2] / "shared" / "targets" / "stories260k"
TinyLlama = Callable[..., LlamaForCausalLM]


@pytest.fixture(scope="session")
def stories260k() -> Path:
    """The folder of a small target trained on stories; the test is skipped where it is absent."""
    if not (STORIES / "model.safetensors").is_file():
        pytest.skip("the target stories260k is not at ../shared/targets/stories260k, beside the repository")
    return STORIES


@pytest.fixture(scope="session")
def tiny_llama() -> TinyLlama:
    """A random fp32 Llama: width 32, 2 layers. Large weights, so that its best tokens are no near ties."""

    def build(seed: int, vocabulary: int = 131, context: int = 97) -> LlamaForCausalLM:
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=61,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(config).eval()

    return build


@pytest.fixture(scope="session")
def perturbed() -> Callable[[LlamaForCausalLM, float, int], LlamaForCausalLM]:
    """A copy of a model with noise on every weight, a share of its own spread: a draft that half agrees."""

    def build(model: LlamaForCausalLM, share: float, seed: int) -> LlamaForCausalLM:
        generator = torch.Generator().manual_seed(seed)
        copy = LlamaForCausalLM(model.config).eval()
        weights = {
            name: weight + share * weight.std() * torch.randn(weight.shape, generator=generator)
            for name, weight in model.state_dict().items()
            if name != "lm_head.weight" or not model.config.tie_word_embeddings
        }
        copy.load_state_dict(weights, strict=False)
        copy.tie_weights()
        return copy

    return build
