"""What making a draft costs, against the paper's figures and files that were really written."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fastdraft.config import TrainPart
from fastdraft.planning.devices import DEVICES
from fastdraft.planning.model_size import ModelSize
from fastdraft.planning.training_cost import (
    PAPER_DEVICE,
    PAPER_DEVICES,
    checkpoint_bytes,
    generation_seconds,
    hours,
    most_sequences,
    shard_bytes,
    top_bytes,
    training_flops,
)
from fastdraft.train import checkpoint
from fastdraft.train import optimizers as optimizers_module


def test_the_papers_drafts_flops(paper):
    """120M x 10B tokens x 6 = 7.2e18 (tied, so the embedding counts once, as the output layer), attention aside."""
    without = training_flops(paper, 10e9, 0)
    assert without == pytest.approx(7.2e18)
    attention = training_flops(paper, 10e9, 2048) - without
    assert attention == pytest.approx(6 * 13 * 768 * 2048 * 10e9)
    assert 0 < attention < without / 5


def test_the_papers_draft_fits_its_day_on_its_server(paper):
    """Under 24 hours on 8 Gaudi 2 (section 4), and about five on one H200."""
    flops = training_flops(paper, 10e9, 2048)
    assert 0.5 < hours(flops, DEVICES[PAPER_DEVICE], devices=PAPER_DEVICES) < 24
    assert hours(flops, DEVICES["h200"]) == pytest.approx(5.5, rel=0.1)


def test_hours_divide_by_rate_fraction_and_devices(plain):
    assert hours(3.6e15, plain, utilisation=1.0) == pytest.approx(1)
    assert hours(3.6e15, plain, utilisation=0.5, devices=5) == pytest.approx(2 / 5)


def test_writing_a_large_batch_is_cheaper(plain, target):
    one, many = (generation_seconds(target, 1e6, plain, "bf16", n, 0) for n in (1, 8))
    assert many == pytest.approx(one / 8, rel=1e-4)
    assert generation_seconds(target, 1e6, plain, "bf16", 8, 0, devices=2) == pytest.approx(many / 2)


def test_texts_that_fit_beside_the_weights(plain, target):
    """16 GB less 7.6 GB of weights; a text of 1000 tokens holds 393 MB."""
    assert most_sequences(target, plain, "bf16", 1000) == 21
    assert most_sequences(target, plain, "int8", 1000, most=17) == 17
    assert most_sequences(target, plain.model_copy(update={"memory_bytes": 7e9}), "bf16", 1000) == 0


def test_tokens_take_two_bytes_where_the_vocabulary_allows_it():
    assert (shard_bytes(7, 1 << 16), shard_bytes(7, (1 << 16) + 1)) == (14, 28)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_checkpoint_is_as_large_as_one_that_was_written(tmp_path, optimizer):
    config = AutoConfig.for_model(
        "llama", vocab_size=1009, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=211
    )
    model = AutoModelForCausalLM.from_config(config)
    part = TrainPart(mix={"text": 1}, train_tokens=1, optimizer=optimizer)
    optimizers = optimizers_module.build(model, part, torch.float32)
    model(input_ids=model.dummy_inputs["input_ids"] % 1009).logits.sum().backward()
    for each in optimizers.values():
        each.step()
    checkpoint.save(tmp_path, model, optimizers, checkpoint.Progress(1, 1, (0,), 0.0))
    written = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    size = ModelSize.of_config(config)
    assert checkpoint_bytes(size, optimizer, kept=0) == pytest.approx(written, rel=0.05)
    assert checkpoint_bytes(size, optimizer) == 3 * checkpoint_bytes(size, optimizer, kept=0)


def test_top_tokens_take_two_bytes_each_and_their_ids():
    assert [top_bytes(*sizes) for sizes in ((16, 65_536), (16, 65_537), (0, 7))] == [64, 96, 0]
