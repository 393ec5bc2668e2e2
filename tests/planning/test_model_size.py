"""Sizes are the built model's, and of them a step reads what it multiplies with."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fastdraft.config import DraftPart
from fastdraft.models.pretrained import cache_name
from fastdraft.models.shape.derive import derive
from fastdraft.planning.model_size import BITS, ModelSize, kv_bytes, read_bytes, weight_bytes

SMALL = {"vocab_size": 131, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6}
SMALL |= {"num_key_value_heads": 2, "intermediate_size": 211, "pad_token_id": 0}
EXPERTS = {"num_local_experts": 7, "num_experts_per_tok": 2}


def small(family: str = "llama", **more: object):
    return AutoConfig.for_model(family, **(SMALL | more))


def built(config) -> tuple[int, int]:
    """Parameters, and those outside embedding and head."""
    model = AutoModelForCausalLM.from_config(config)
    outer = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    weights = list(model.parameters())
    return sum(p.numel() for p in weights), sum(p.numel() for p in weights if id(p) not in outer)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma2"])
def test_the_counts_are_the_built_models(family, tied):
    config = small(family, tie_word_embeddings=tied)
    size = ModelSize.of_config(config)
    assert (size.parameters, size.body_parameters) == built(config)
    assert size.tied == tied
    assert size.embedding_parameters == size.output_parameters == 131 * 96
    head_size = getattr(config, "head_dim", None) or 96 // 6
    assert (size.layers, size.hidden, size.attention_width, size.kv_width) == (3, 96, 6 * head_size, 2 * head_size)


def test_a_shape_has_the_size_of_its_configuration():
    shape = derive(small(), DraftPart(params_millions=0.2))
    assert ModelSize.of_shape(shape) == ModelSize.of_config(shape.open_config())
    assert ModelSize.of_shape(shape).parameters == shape.parameters


def test_a_step_reads_everything_but_rows_of_the_embedding():
    """Tied, the head is the embedding and is read whole; not tied, the embedding is left out. GPT-2 has other names."""
    for tied in (True, False):
        config = AutoConfig.for_model("gpt2", n_embd=96, n_layer=3, n_head=6, vocab_size=131, tie_word_embeddings=tied)
        size = ModelSize.of_config(config)
        unread = 0 if tied else size.embedding_parameters
        assert read_bytes(size, "int8") == size.parameters - unread == size.active_parameters


def test_of_experts_a_token_goes_through_its_own_and_many_tokens_through_all():
    config = small("mixtral", **EXPERTS)
    size, dense = ModelSize.of_config(config), ModelSize.of_config(small("llama"))
    assert (size.expert_parameters, size.expert_fraction) == (3 * 7 * 3 * 96 * 211, pytest.approx(2 / 7))
    assert size.parameters == built(config)[0]
    idle = size.expert_parameters * 5 / 7
    assert size.active_parameters == pytest.approx(size.parameters - size.embedding_parameters - idle)
    reads = [read_bytes(size, "int8", tokens) for tokens in (1, 2, 3, 500)]
    assert reads == sorted(set(reads))
    assert reads[-1] == pytest.approx(size.parameters - size.embedding_parameters)
    assert read_bytes(dense, "int8", 1) == read_bytes(dense, "int8", 500)


def test_bytes_follow_the_bits(paper, target):
    for size in (paper, target):
        whole = {weights: weight_bytes(size, weights) for weights in BITS}
        assert (whole["bf16"], whole["int8"]) == (2 * size.parameters, size.parameters)
        assert size.parameters / 2 < whole["int4"] < size.parameters
    assert read_bytes(paper, "int8") == weight_bytes(paper, "int8")
    assert weight_bytes(target, "int8") - read_bytes(target, "int8") == target.embedding_parameters


def test_keys_and_values_of_every_layer(paper):
    """Two values a dimension a layer a token, at 16 bits each: what a real cache holds."""
    config = small()
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.inference_mode():
        cache = model(input_ids=torch.arange(5)[None], use_cache=True)[cache_name(model)]
    held = sum(tensor.numel() for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert kv_bytes(ModelSize.of_config(config), 5) == 2 * held
    assert kv_bytes(paper, 0) == 0
