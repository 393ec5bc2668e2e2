"""Rows that the draft continues are its own words behind the prompt, drawn from its distribution, the same each
time.
"""

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
from fastdraft.train.on_policy import continued

B, T, V = 5, 13, 31


@pytest.fixture
def batch() -> Batch:
    """Prompts of 4 tokens, of which three are not trained on, and texts that end at different places."""
    text = torch.randint(V, (B, T + 1), generator=torch.Generator().manual_seed(3))
    labels_BT = text[:, 1:].clone()
    labels_BT[:, :3] = IGNORED
    labels_BT[1, 9:] = IGNORED
    return Batch(text[:, :-1], labels_BT)


def part(**more: object) -> TrainPart:
    fixed = {"mix": {"a": 1.0}, "train_tokens": 1, "precision": "fp32", "head_chunk_tokens": 7}
    return TrainPart.model_validate(fixed | {"objective": "forward_kl"} | more)


def test_prompts_and_trained_places_stay_and_labels_follow_inputs(make_model, batch):
    found = continued(make_model(5), batch, 1.0)
    assert torch.equal(found.inputs_BT[:, :4], batch.inputs_BT[:, :4])
    assert torch.equal(found.labels_BT == IGNORED, batch.labels_BT == IGNORED)
    trained = found.labels_BT[:, :-1] != IGNORED
    assert torch.equal(found.labels_BT[:, :-1][trained], found.inputs_BT[:, 1:][trained])
    assert not torch.equal(found.inputs_BT, batch.inputs_BT)


def test_what_is_drawn_follows_from_rows_and_weights_alone(make_model, batch):
    model = make_model(5)
    first = continued(model, batch, 1.0)
    torch.rand(7)
    again, other = continued(model, batch, 1.0), continued(make_model(7), batch, 1.0)
    assert torch.equal(first.inputs_BT, again.inputs_BT)
    assert not torch.equal(first.inputs_BT, other.inputs_BT)
    assert model.training == make_model(5).training


@pytest.mark.parametrize("of", [1, 2, 3, 5])
def test_a_row_goes_on_alike_in_any_part_of_its_step(make_model, batch, of):
    """In any micro-batch, on any process; its prompt is its own, however long those beside it are."""
    batch = replace(batch, labels_BT=batch.labels_BT.clone(), places=tuple(Place("a", row) for row in range(B)))
    batch.labels_BT[2, :7] = IGNORED
    model = make_model(5)
    whole = continued(model, batch, 0.5)
    changed = (whole.inputs_BT != batch.inputs_BT).any(1)
    assert 1 < changed.sum() < B
    for mine in (slice(rank, None, of) for rank in range(of)):
        part = continued(model, batch.each(itemgetter(mine)), 0.5)
        assert torch.equal(part.inputs_BT, whole.inputs_BT[mine])
        assert torch.equal(part.labels_BT, whole.labels_BT[mine])


def test_another_step_draws_anew(make_model, batch):
    model, (here, there) = make_model(5), (replace(batch, places=(Place("a", row),)) for row in (1, 2))
    assert not torch.equal(continued(model, here, 1.0).inputs_BT, continued(model, there, 1.0).inputs_BT)


def test_words_are_drawn_from_the_draft_s_distribution(make_model):
    """One place, many rows of one prompt: shares of tokens within four standard errors of the distribution."""
    model, rows = make_model(5), 4001
    for weight in model.parameters():
        weight.data *= 4
    inputs_BT = torch.randint(V, (rows, 7), generator=torch.Generator().manual_seed(3))
    inputs_BT[:, 0] = 3
    batch = Batch(inputs_BT, inputs_BT.clone())
    found = continued(model, batch, 1.0).inputs_BT[:, 1]  # the first quarter is the prompt
    probs_V = model(input_ids=inputs_BT[:1, :1]).logits[0, -1].softmax(-1).detach()
    shares_V = torch.bincount(found, minlength=V) / rows
    assert ((shares_V - probs_V).abs() < 4 * (probs_V * (1 - probs_V) / rows).sqrt() + 1e-4).all()


def test_about_a_fraction_of_the_rows_is_continued(make_model):
    inputs_BT = torch.randint(V, (501, 4), generator=torch.Generator().manual_seed(3))
    found = continued(make_model(5), Batch(inputs_BT, inputs_BT.clone()), 0.3)
    changed = (found.inputs_BT != inputs_BT).any(1).float().mean()
    assert 0.2 < changed < 0.4


def test_a_step_is_the_loss_on_the_continued_rows_and_a_measurement_is_not(make_model, batch):
    draft, target = make_model(5), make_model(7)
    how = part(on_policy=1.0)
    own = continued(draft, batch, 1.0)
    learner = Learner(draft, how, torch.float32)
    found = learner.train()(batch, objective(how, target))
    torch.testing.assert_close(found, Learner(draft, part(), torch.float32).train()(own, objective(part(), target)))
    measured = learner.eval()(batch, objective(how, target))
    torch.testing.assert_close(measured, Learner(draft, part(), torch.float32).eval()(batch, objective(part(), target)))


@pytest.mark.parametrize("more", [{"objective": "cross_entropy"}, {"objective": {"forward_kl": 1, "cross_entropy": 1}}])
def test_losses_on_the_draft_s_own_words_are_refused(more):
    with pytest.raises(ValidationError, match="on_policy is for the live target's distribution alone"):
        part(on_policy=0.3, **more)


def test_a_draft_in_shards_cannot_continue():
    from pathlib import Path

    from fastdraft.config.resolve import resolve

    demo = Path(__file__).parents[2] / "recipes" / "demo.yaml"
    with pytest.raises(RecipeError, match=r"align.on_policy needs the whole draft[^\0]*\n  do: "):
        resolve(demo, ["align.teacher_logits=online", "align.on_policy=0.3", "parallel=fsdp"])
