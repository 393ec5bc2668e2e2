"""Sampled softmax: all rows give the loss of all rows; fewer give its normaliser in expectation."""

import math

import pytest
import torch
from pydantic import ValidationError

from fastdraft.config import TrainPart
from fastdraft.data.order import IGNORED, Batch, Place, TeacherLogprobs, unknown_logprobs
from fastdraft.train.learner import Learner
from fastdraft.train.objectives import objective
from fastdraft.train.sampled_softmax import renumbered, sample_rows

B, T, V, K = 3, 11, 31, 4
OFFLINE = {"objective": {"forward_kl": 0.5, "total_variation": 0.5}, "teacher_logits": "offline"}


def part(**keys: object) -> TrainPart:
    fixed = {"mix": {"synthetic": 1.0}, "train_tokens": 1, "precision": "fp32", "head_chunk_tokens": 5}
    return TrainPart.model_validate(fixed | keys)


@pytest.fixture
def batch() -> Batch:
    """Labels and stored tokens are ids below 13, some labels are ignored; the last sequence has no stored tokens."""
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(13, (B, T + 1), generator=generator)
    labels_BT = text[:, 1:].clone()
    labels_BT[0, :5] = IGNORED
    teacher = TeacherLogprobs(*[torch.stack([tensor] * B) for tensor in unknown_logprobs(T, K)])
    top = torch.randn(2, T, 13, generator=generator).log_softmax(-1).topk(K)
    teacher.top_logp_BTK[:2], teacher.top_ids_BTK[:2] = top
    teacher.top_logp_BTK[0, :5] = torch.nan
    return Batch(text[:, :-1], labels_BT, (Place("synthetic", 0),), teacher)


@pytest.mark.parametrize("keys", [{}, OFFLINE], ids=["cross_entropy", "offline"])
def test_with_all_other_tokens_loss_and_gradients_are_those_of_the_whole_vocabulary(make_model, batch, keys):
    results = []
    for samples in (None, V):
        draft, train_part = make_model(), part(**keys, sampled_softmax=samples)
        loss = Learner(draft, train_part, torch.float32).train()(batch, objective(train_part, None))
        results.append([loss, *torch.autograd.grad(loss, list(draft.parameters()))])
    for sampled, whole in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(sampled, whole)


def test_validation_uses_the_whole_vocabulary(make_model, batch):
    draft, train_part = make_model(), part(sampled_softmax=1)
    with torch.no_grad():
        draft.get_output_embeddings().weight *= 50  # logits that differ, so that a sample's normaliser differs
        learner = Learner(draft, train_part, torch.float32)
        validation = learner.eval()(batch, objective(train_part, None))
        assert validation == Learner(draft, part(), torch.float32).eval()(batch, objective(part(), None))
        assert validation != learner.train()(batch, objective(train_part, None))


def test_the_expected_normaliser_is_that_of_the_whole_vocabulary(batch):
    batch = Batch(batch.inputs_BT, batch.labels_BT)
    logits_V, others = torch.randn(V, generator=torch.Generator().manual_seed(5)), V - 13
    draws = [Batch(batch.inputs_BT, batch.labels_BT, (Place("text", step),)) for step in range(1000)]
    samples = [sample_rows(draw, V, others // 3) for draw in draws]
    normalisers = torch.stack([(logits_V[sample.rows_R] + sample.log_weight_R).exp().sum() for sample in samples])
    error = normalisers.std() / math.sqrt(len(draws))
    assert abs(normalisers.mean() - logits_V.exp().sum()) < 4 * error
    assert len(normalisers.unique()) > len(draws) / 2


def test_renumbered_ids_name_the_same_tokens(batch):
    sample = sample_rows(batch, V, 2)
    new, trained, known = renumbered(batch, sample, V), batch.labels_BT != IGNORED, ~batch.teacher.top_logp_BTK.isnan()
    assert len(sample.rows_R) < V
    assert torch.equal(new.labels_BT == IGNORED, ~trained)
    assert torch.equal(sample.rows_R[new.labels_BT[trained]], batch.labels_BT[trained])
    assert torch.equal(sample.rows_R[new.teacher.top_ids_BTK[known]], batch.teacher.top_ids_BTK[known])
    assert torch.equal(new.inputs_BT, batch.inputs_BT)


def test_the_draw_depends_on_places_and_labels_alone(batch):
    assert torch.equal(sample_rows(batch, V, 3).rows_R, sample_rows(batch, V, 3).rows_R)
    elsewhere = Batch(batch.inputs_BT, batch.labels_BT, (Place("synthetic", 1),), batch.teacher)
    assert not torch.equal(sample_rows(batch, V, 3).rows_R, sample_rows(elsewhere, V, 3).rows_R)


@pytest.mark.parametrize(
    "keys",
    [{"objective": "forward_kl"}, {"objective": "block_length"}, {"objective": {"cross_entropy": 1, "reverse_kl": 1}}],
)
def test_losses_without_a_closed_form_over_rows_are_refused(keys):
    with pytest.raises(ValidationError, match="sampled_softmax needs"):
        part(**keys, sampled_softmax=5)
