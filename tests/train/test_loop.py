"""The training loop: the gradient of the whole batch, one metrics line per step, a stop before a non-finite step."""

import json
import math
from dataclasses import replace

import pytest
import torch

from fastdraft.data.order import IGNORED
from fastdraft.system.errors import NonFiniteLoss
from fastdraft.train import loop
from fastdraft.train.loop import begin, held_out_loss, train


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def gradient_step(phase):
    """The gradients of one step: the change of the weights under SGD at learning rate 1."""
    before = [p.detach().clone() for p in phase.model.parameters()]
    sgd = torch.optim.SGD(phase.model.parameters(), lr=1.0)
    loop._step(replace(begin(phase), optimizers={"adamw": sgd}), 0)
    return [old - new.detach() for old, new in zip(before, phase.model.parameters(), strict=True)]


@pytest.mark.parametrize(
    ("every_steps", "validated"),
    [(0.01, range(1, 12)), (1, range(1, 12)), (1.01, [2, 4, 6, 8, 10, 11]), (3, [3, 6, 9, 11]), (40, [11])],
)
def test_validations_are_whole_steps_apart_and_never_closer_than_asked(make_phase, tmp_path, every_steps, validated):
    """At most one per step, however large a step is, and one at the end."""
    part = make_phase(tmp_path).part
    step_tokens = part.batch_size * part.sequence_tokens
    train(make_phase(tmp_path, held_out_every_tokens=math.ceil(every_steps * step_tokens)))
    assert [line["step"] for line in lines(tmp_path) if "held_out_a_nats" in line] == [*validated]


@pytest.mark.parametrize("micro", [1, 2, 3, 5, 7])
def test_the_gradient_does_not_depend_on_the_micro_batch_size(make_phase, make_model, tmp_path, micro):
    settings = {"learning_rate": 1.0, "gradient_clip": 1e9, "warmup_steps": 0}
    phase = make_phase(tmp_path, micro_batch_size=micro, **settings)
    batch = make_phase(tmp_path).mixture.next_batch(5)
    masked = (batch.labels_BT == IGNORED).sum(-1)
    assert masked.min() == 0 < masked.max(), "the test needs unevenly masked labels"
    model = make_model()
    logits = model(input_ids=batch.inputs_BT).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels_BT.flatten(), ignore_index=IGNORED).backward()
    for gradient, weight in zip(gradient_step(phase), model.parameters(), strict=True):
        torch.testing.assert_close(gradient, weight.grad, rtol=1e-3, atol=1e-6)


def test_metrics_have_one_line_per_step(make_phase, tmp_path):
    phase = make_phase(tmp_path)
    progress = train(phase)
    metrics = lines(tmp_path)
    assert [line["step"] for line in metrics] == list(range(1, 12))
    assert progress.step == phase.total_steps == 11
    assert metrics[-1]["tokens"] == progress.tokens < 11 * 5 * 7, "masked labels are not counted"
    assert metrics[-1]["loss_nats"] < metrics[0]["loss_nats"]
    measured = [line["step"] for line in metrics if "held_out_a_nats" in line]
    assert measured[-1] == 11
    assert 3 <= len(measured) <= 5
    assert not any("held_out_b_nats" in line for line in metrics), "source b has no held-out sequences"


def test_train_tokens_are_rounded_up_to_whole_steps(make_phase, tmp_path):
    assert make_phase(tmp_path, train_tokens=1).total_steps == 1
    assert make_phase(tmp_path, train_tokens=36).total_steps == 2


def test_held_out_loss_is_nats_per_token_and_does_not_change_the_state(make_phase, make_model, tmp_path):
    phase = make_phase(tmp_path, make_model(dropout=0.5))
    (batch,) = phase.held_out["a"]
    state = torch.get_rng_state()
    losses = held_out_loss(begin(phase))
    assert torch.equal(state, torch.get_rng_state())
    assert phase.model.training
    assert all(p.grad is None for p in phase.model.parameters())
    logits = phase.model.eval()(input_ids=batch.inputs_BT).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels_BT.flatten(), ignore_index=IGNORED)
    assert losses == {"held_out_a_nats": pytest.approx(expected.item(), rel=1e-5)}


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_nonfinite_loss_stops_the_training(make_phase, interrupted, tmp_path, value):
    phase = make_phase(tmp_path)
    weight = phase.model.model.norm.weight
    interrupted(phase, {3, 4}, 5, lambda: weight.data.fill_(value))
    with pytest.raises(NonFiniteLoss, match=f"loss (nan|inf) at step 5, .*\n  kept: .*{tmp_path}.*\n  do: lower"):
        train(phase)
    assert len(lines(tmp_path)) == 4
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-00000003", "checkpoint-00000004"]


def test_an_infinite_gradient_stops_before_the_optimizer_steps_on_it(make_phase, interrupted, tmp_path):
    """A finite loss can have an infinite gradient; a step on it makes every weight NaN."""
    phase = make_phase(tmp_path)
    weights = {}

    def disturb():
        weights.update({name: p.detach().clone() for name, p in phase.model.named_parameters()})
        phase.model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))

    interrupted(phase, {3, 4}, 5, disturb)
    with pytest.raises(NonFiniteLoss, match=r"gradient_norm (nan|inf) at step 5, .*\n  kept: .*\n  do: lower"):
        train(phase)
    assert all(torch.equal(weights[name], p) for name, p in phase.model.named_parameters())
    assert len(lines(tmp_path)) == 4
    resumed = make_phase(tmp_path)
    train(resumed)
    whole = make_phase(tmp_path / "whole")
    train(whole)
    assert all(map(torch.equal, resumed.model.parameters(), whole.model.parameters()))


def test_training_against_itself_keeps_the_weights(make_phase, make_model, tmp_path):
    from fastdraft.train.objectives import objective

    phase = make_phase(tmp_path, make_model(), objective="forward_kl", optimizer="adamw")
    phase.objective = objective(phase.part, make_model())
    sgd = torch.optim.SGD(phase.model.parameters())
    row = loop._step(replace(begin(phase), optimizers={"adamw": sgd}), 0)
    assert abs(row["loss_nats"]) < 1e-6
    assert row["gradient_norm"] < 1e-5
