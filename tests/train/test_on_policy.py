"""On-policy sequences continue the prompt with samples of the draft, which are the same each time."""

from dataclasses import replace
from operator import itemgetter

import pytest
import torch
from pydantic import ValidationError

from fastdraft.config import TrainPart
from fastdraft.data.order import IGNORED, Batch, Place
from fastdraft.system.errors import RecipeError
from fastdraft.train.learner import Learner
from fastdraft.train.objectives import objective
from fastdraft.train.on_policy import continue_on_policy

B, T, V = 5, 13, 31


@pytest.fixture
def batch() -> Batch:
    """Prompts of 4 tokens, and texts that end at different positions."""
    text = torch.randint(V, (B, T + 1), generator=torch.Generator().manual_seed(3))
    labels_BT = text[:, 1:].clone()
    labels_BT[:, :3] = IGNORED
    labels_BT[1, 9:] = IGNORED
    return Batch(text[:, :-1], labels_BT)


def part(**more: object) -> TrainPart:
    fixed = {"mix": {"a": 1.0}, "train_tokens": 1, "precision": "fp32", "head_chunk_tokens": 7}
    return TrainPart.model_validate(fixed | {"objective": "forward_kl"} | more)


def test_prompts_and_trained_positions_stay_and_labels_follow_inputs(make_model, batch):
    result = continue_on_policy(make_model(5), batch, 1.0)
    assert torch.equal(result.inputs_BT[:, :4], batch.inputs_BT[:, :4])
    assert torch.equal(result.labels_BT == IGNORED, batch.labels_BT == IGNORED)
    trained = result.labels_BT[:, :-1] != IGNORED
    assert torch.equal(result.labels_BT[:, :-1][trained], result.inputs_BT[:, 1:][trained])
    assert not torch.equal(result.inputs_BT, batch.inputs_BT)


def test_samples_depend_only_on_sequences_and_weights(make_model, batch):
    model = make_model(5)
    first = continue_on_policy(model, batch, 1.0)
    torch.rand(7)
    again, other = continue_on_policy(model, batch, 1.0), continue_on_policy(make_model(7), batch, 1.0)
    assert torch.equal(first.inputs_BT, again.inputs_BT)
    assert not torch.equal(first.inputs_BT, other.inputs_BT)
    assert model.training == make_model(5).training


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_sequence_is_continued_alike_in_any_part_of_its_step(make_model, batch, count):
    """In any micro-batch and process, next to prompts of any length."""
    batch = replace(batch, labels_BT=batch.labels_BT.clone(), places=tuple(Place("a", row) for row in range(B)))
    batch.labels_BT[2, :7] = IGNORED
    model = make_model(5)
    whole = continue_on_policy(model, batch, 0.5)
    changed = (whole.inputs_BT != batch.inputs_BT).any(1)
    assert 1 < changed.sum() < B
    for own in (slice(rank, None, count) for rank in range(count)):
        piece = continue_on_policy(model, batch.map_tensors(itemgetter(own)), 0.5)
        assert torch.equal(piece.inputs_BT, whole.inputs_BT[own])
        assert torch.equal(piece.labels_BT, whole.labels_BT[own])


def test_another_step_has_other_samples(make_model, batch):
    model, (here, there) = make_model(5), (replace(batch, places=(Place("a", row),)) for row in (1, 2))
    assert not torch.equal(
        continue_on_policy(model, here, 1.0).inputs_BT, continue_on_policy(model, there, 1.0).inputs_BT
    )


def test_samples_follow_the_distribution_of_the_draft(make_model):
    """One position, many copies of one prompt: token frequencies within four standard errors."""
    model, rows = make_model(5), 4001
    for weight in model.parameters():
        weight.data *= 4
    inputs_BT = torch.randint(V, (rows, 7), generator=torch.Generator().manual_seed(3))
    inputs_BT[:, 0] = 3
    batch = Batch(inputs_BT, inputs_BT.clone())
    sampled_B = continue_on_policy(model, batch, 1.0).inputs_BT[:, 1]  # the first quarter is the prompt
    probs_V = model(input_ids=inputs_BT[:1, :1]).logits[0, -1].softmax(-1).detach()
    frequency_V = torch.bincount(sampled_B, minlength=V) / rows
    assert ((frequency_V - probs_V).abs() < 4 * (probs_V * (1 - probs_V) / rows).sqrt() + 1e-4).all()


def test_about_the_given_fraction_of_the_sequences_is_continue_on_policy(make_model):
    inputs_BT = torch.randint(V, (501, 4), generator=torch.Generator().manual_seed(3))
    result = continue_on_policy(make_model(5), Batch(inputs_BT, inputs_BT.clone()), 0.3)
    changed = (result.inputs_BT != inputs_BT).any(1).float().mean()
    assert 0.2 < changed < 0.4


def test_training_uses_the_continued_sequences_and_evaluation_does_not(make_model, batch):
    draft, target = make_model(5), make_model(7)
    on_policy, off_policy = part(on_policy=1.0), part()
    learner, reference = (Learner(draft, train_part, torch.float32) for train_part in (on_policy, off_policy))
    loss = learner.train()(batch, objective(on_policy, target))
    expected = reference.train()(continue_on_policy(draft, batch, 1.0), objective(off_policy, target))
    torch.testing.assert_close(loss, expected)
    loss = learner.eval()(batch, objective(on_policy, target))
    torch.testing.assert_close(loss, reference.eval()(batch, objective(off_policy, target)))


@pytest.mark.parametrize("more", [{"objective": "cross_entropy"}, {"objective": {"forward_kl": 1, "cross_entropy": 1}}])
def test_on_policy_with_losses_on_labels_is_refused(more):
    with pytest.raises(ValidationError, match="on_policy needs an online teacher"):
        part(on_policy=0.3, **more)


def test_on_policy_with_fsdp_is_refused():
    from pathlib import Path

    from fastdraft.config.resolve import resolve

    demo = Path(__file__).parents[2] / "recipes" / "demo.yaml"
    with pytest.raises(RecipeError, match=r"align.on_policy needs the whole draft[^\0]*\n  do: "):
        resolve(demo, ["align.teacher_logits=online", "align.on_policy=0.3", "parallel=fsdp"])
