"""Every parameter has exactly one optimizer: Muon for matrices between hidden states, AdamW for the rest."""

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoConfig, AutoModelForCausalLM

from fastdraft.config import TrainPart
from fastdraft.maths.schedule import SCHEDULES
from fastdraft.train import optimizers
from fastdraft.train.loop import train


def part(**keys: object) -> TrainPart:
    return TrainPart(mix={"a": 1.0}, train_tokens=1, weight_decay=0.25, **keys)


SIZES = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"tie_word_embeddings": False}),
    ("qwen2", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    ("phi3", {"pad_token_id": 0}),
    ("phi", {"pad_token_id": 0}),  # its output layer has a bias
]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize(("family", "values"), MODELS)
def test_every_parameter_has_one_optimizer(family, values, optimizer):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **values))
    by_name = optimizers.build(model, part(optimizer=optimizer), torch.bfloat16)
    groups = [(name, group) for name, built in by_name.items() for group in built.param_groups]
    owners = {id(p): (name, group["weight_decay"]) for name, group in groups for p in group["params"]}
    assert sum(len(group["params"]) for _, group in groups) == len(owners)
    assert owners.keys() == {id(p) for p in model.parameters()}
    outer = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    for parameter in model.parameters():
        hidden = parameter.ndim == 2 and id(parameter) not in outer
        decay = 0.25 if parameter.ndim == 2 else 0.0
        assert owners[id(parameter)] == ("muon" if hidden and optimizer == "muon" else "adamw", decay)
    assert by_name.keys() <= optimizers.peaks(part()).keys()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_step_uses_its_fraction_of_each_peak_learning_rate(make_phase, tmp_path, schedule):
    phase = make_phase(tmp_path, schedule=schedule, learning_rate=0.004, muon_learning_rate=0.03, decay_fraction=0.5)
    used: dict[str, list[float]] = {"adamw": [], "muon": []}

    def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
        name = "muon" if isinstance(optimizer, torch.optim.Muon) else "adamw"
        used[name].append({group["lr"] for group in optimizer.param_groups}.pop())

    handle = register_optimizer_step_pre_hook(record)
    try:
        train(phase)
    finally:
        handle.remove()
    factors = [SCHEDULES[schedule](step, 11, 2, 0.5) for step in range(11)]
    assert used == {"adamw": [0.004 * f for f in factors], "muon": [0.03 * f for f in factors]}


@pytest.mark.parametrize("shape", [(13, 7), (7, 13), (11, 11)])
def test_muon_in_fp32_takes_the_steps_of_torch_muon(shape):
    """Up to the rounding of torch's, which iterates in bf16."""
    generator = torch.Generator().manual_seed(3)
    initial, *gradients = (torch.randn(shape, generator=generator) for _ in range(4))
    updates = {}
    for kind in (torch.optim.Muon, optimizers.Muon):
        weight = torch.nn.Parameter(initial.clone())
        optimizer = kind([weight], lr=0.3, weight_decay=0.25)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        updates[kind] = weight.detach() - initial
        assert optimizer.state[weight].keys() == {"momentum_buffer"}
    expected, update = updates.values()
    assert 0 < (update - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("shape", [(13, 7), (7, 13), (11, 11)])
def test_orthogonalisation_in_fp32_equals_that_in_float64(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = optimizers.orthogonal(matrix, 1e-7)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    assert (left @ right * expected).sum() / len(values) == pytest.approx(1, abs=0.3)
    assert torch.linalg.svdvals(expected).sub(1).abs().max() < 0.5
    torch.testing.assert_close(optimizers.orthogonal(matrix.float(), 1e-7).double(), expected, rtol=1e-4, atol=1e-4)


def test_the_iteration_runs_in_the_precision_of_the_phase():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))
    kinds = {torch.bfloat16: torch.optim.Muon, torch.float32: optimizers.Muon}
    for dtype, kind in kinds.items():
        assert type(optimizers.build(model, part(optimizer="muon"), dtype)["muon"]) is kind
