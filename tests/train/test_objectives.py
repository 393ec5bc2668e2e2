"""Every objective equals its brute-force float64 sum, alone and with others; records belong to their sequences."""

from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fastdraft.config import DISTRIBUTION_OBJECTIVES, OBJECTIVES, SAMPLE_OBJECTIVES, TrainPart
from fastdraft.config.resolve import resolve
from fastdraft.data.order import IGNORED, Batch, TeacherLogprobs, unknown_logprobs
from fastdraft.system.errors import RecipeError
from fastdraft.train.learner import Learner
from fastdraft.train.objectives import objective
from fastdraft.train.sampling_rng import uniform_draws

B, T, V = 3, 11, 31
RECIPES = Path(__file__).parents[2] / "recipes"


def part(objective: object, **more: object) -> TrainPart:
    fixed = {"mix": {"synthetic": 1.0}, "train_tokens": 1, "precision": "fp32", "head_chunk_tokens": 5}
    return TrainPart.model_validate(fixed | {"objective": objective} | more)


@pytest.fixture
def batch() -> Batch:
    """Completions that begin at positions 2, 5 and 0, at temperatures 1, 0.6 and greedy, with random log p."""
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(V, (B, T + 1), generator=generator)
    labels_BT = text[:, 1:].clone()
    empty = unknown_logprobs(T, 4)
    teacher = TeacherLogprobs(*[torch.stack([tensor] * B) for tensor in empty])
    for row, (start, end, temperature) in enumerate([(2, 11, 1.0), (5, 9, 0.6), (0, 7, 0.0)]):
        labels_BT[row, :start] = labels_BT[row, end:] = IGNORED
        teacher.temperature_BT[row, start:end] = temperature
        logp = torch.rand(end - start, generator=generator).log() if temperature else torch.zeros(end - start)
        teacher.logp_BT[row, start:end] = logp
        top = torch.randn(end - start, V, generator=generator).log_softmax(-1).topk(4)
        teacher.top_logp_BTK[row, start:end], teacher.top_ids_BTK[row, start:end] = top
    return Batch(text[:, :-1], labels_BT, (), teacher)


def loss_and_gradients(train_part: TrainPart, draft: nn.Module, batch: Batch, target: nn.Module | None = None):
    """As in a training step, with the head in chunks."""
    loss = Learner(draft, train_part, torch.float32).train()(batch, objective(train_part, target))
    return loss, torch.autograd.grad(loss, list(draft.parameters()))


def logq_of(draft: nn.Module, batch: Batch, temperature: Tensor | float = 1.0) -> Tensor:
    """(B,T,V) float64"""
    return (draft.double()(input_ids=batch.inputs_BT).logits / temperature).log_softmax(-1)


def label_temperature(batch: Batch) -> Tensor:
    """(B,T,1) the sampling temperature; 1 if greedy"""
    temperature_BT1 = batch.teacher.temperature_BT[..., None].double()
    return torch.where(temperature_BT1 > 0, temperature_BT1, 1.0)


def of_labels(probs_BTV: Tensor, batch: Batch) -> Tensor:
    return probs_BTV.gather(-1, batch.labels_BT.clamp(min=0)[..., None])[..., 0]


def brute_forwards(accept: list[Tensor], gamma: int, decay: float = 1.0) -> Tensor:
    """Expected target forwards over one text, by definition; `decay` weighs the gradient by position in the block."""
    opens = [torch.zeros((), dtype=torch.float64) for _ in range(len(accept) + gamma + 2)]
    opens[0] = torch.ones((), dtype=torch.float64)
    for start in range(len(accept)):
        reached = opens[start]
        for drafted in range(gamma + 1):
            position = start + drafted
            if position >= len(accept):
                break
            if drafted == gamma:
                opens[position + 1] = opens[position + 1] + reached
            else:
                weighed = decay**drafted * accept[position]
                weighed = weighed + (accept[position] - weighed).detach()
                opens[position + 1] = opens[position + 1] + reached * (1 - weighed)
                reached = reached * weighed
    return torch.stack(opens[: len(accept)]).sum()


def brute_force(train_part: TrainPart, draft: nn.Module, batch: Batch, target: nn.Module | None) -> Tensor:
    """The weighted sum over all trained tokens, in float64 and with plain logits."""
    trained, known = batch.labels_BT != IGNORED, ~batch.teacher.logp_BT.isnan()
    text = -of_labels(logq_of(draft, batch), batch)
    ratio = (
        (of_labels(logq_of(draft, batch, label_temperature(batch)), batch) - batch.teacher.logp_BT.double())
        .clamp(max=0)
        .exp()
    )
    total = torch.zeros((), dtype=torch.float64)
    for name, weight in train_part.objectives.items():
        if name == "cross_entropy":
            total = total + weight * text[trained].sum()
        elif name == "sampled_total_variation":
            total = total - weight * ratio[known].sum()
        elif name == "block_length":
            rows = [ratio[row][known[row]] for row in range(B) if known[row].any()]
            total = total + weight * sum(
                brute_forwards(list(row), train_part.block_gamma, train_part.block_decay) for row in rows
            )
        else:
            temperature = (
                label_temperature(batch) if train_part.temperature == "per_sequence" else train_part.temperature
            )
            with torch.no_grad():
                p = (target.double()(input_ids=batch.inputs_BT).logits / temperature).softmax(-1)
            q = logq_of(draft, batch, temperature).exp()
            m = (p + q) / 2
            by_token = {
                "forward_kl": p * (p / q).log(),
                "reverse_kl": q * (q / p).log(),
                "jensen_shannon": (p * (p / m).log() + q * (q / m).log()) / 2,
                "total_variation": (p - q).abs() / 2,
            }[name].sum(-1)
            total = total + weight * by_token[trained].sum()
        if name in SAMPLE_OBJECTIVES:
            total = total + weight * text[trained & ~known].sum()
    return total


CASES = [
    *({name: 1.0} for name in OBJECTIVES),
    {"forward_kl": 0.5, "total_variation": 0.5},
    {"block_length": 2.0, "sampled_total_variation": 0.3, "cross_entropy": 0.7, "jensen_shannon": 0.1},
]


@pytest.mark.parametrize("weights", CASES, ids=lambda weights: "+".join(weights))
@pytest.mark.parametrize("temperature", [1.0, 0.7, "per_sequence"])
@pytest.mark.parametrize("recorded", ["all", "some"])
def test_loss_and_gradients_equal_brute_force(make_model, batch, weights, temperature, recorded):
    if recorded == "some":
        batch.teacher.logp_BT[0] = torch.nan
    train_part = part(weights, temperature=temperature, block_gamma=2)
    draft, target = make_model(5), make_model(7)
    for weight in (*draft.parameters(), *target.parameters()):
        weight.data *= 4
    loss, gradients = loss_and_gradients(train_part, draft, batch, target)
    expected = brute_force(train_part, draft, batch, target)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-5, atol=1e-5)
    for gradient, exact in zip(gradients, torch.autograd.grad(expected, list(draft.parameters())), strict=True):
        # Rounding errors in fp32 are proportional to the largest gradient of a matrix: here 9e-6 of it.
        torch.testing.assert_close(gradient.double(), exact, rtol=0, atol=3e-5 * exact.abs().max().item())


@pytest.mark.parametrize("decay", [0.5, 0.01])
def test_block_decay_weighs_the_gradient_by_position_in_the_block(make_model, batch, decay):
    weighed, plain = (part("block_length", block_gamma=3, block_decay=by) for by in (decay, 1.0))
    draft = make_model(5)
    for weight in draft.parameters():
        weight.data *= 4
    loss, gradients = loss_and_gradients(weighed, draft, batch)
    plain_loss, plain_gradients = loss_and_gradients(plain, draft, batch)
    assert torch.equal(loss, plain_loss)
    assert not all(map(torch.allclose, gradients, plain_gradients))
    expected = torch.autograd.grad(brute_force(weighed, draft, batch, None), list(draft.parameters()))
    for gradient, exact in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-3, atol=2e-5)


def test_all_terms_use_one_forward_of_the_target(make_model, batch):
    target, forwards = make_model(7), []
    target.model.register_forward_hook(lambda *_: forwards.append(1))
    loss_and_gradients(part(dict.fromkeys(DISTRIBUTION_OBJECTIVES, 1.0)), make_model(5), batch, target)
    assert len(forwards) == 1


# The teacher's distribution, and the sequences that the teacher reads.

WEIGHTS = {"forward_kl": 0.5, "total_variation": 0.3, "cross_entropy": 0.2}


def test_sequences_that_the_teacher_does_not_read_use_cross_entropy(make_model, batch):
    """With the same total weight, and independently of the other sequences of the batch."""
    draft, teacher = make_model(5), make_model(7)
    rows = [batch.map_tensors(itemgetter(slice(row, row + 1))) for row in range(B)]
    mixed = part(WEIGHTS, teacher_fraction=0.6)
    by_teacher, by_label, losses = (
        torch.stack([loss_and_gradients(train_part, draft, row, teacher)[0] for row in rows]).detach()
        for train_part in (part(WEIGHTS), part({"cross_entropy": 1.0}), mixed)
    )
    read = uniform_draws(batch)[0] < 0.6
    assert 0 < read.sum() < B
    torch.testing.assert_close(losses, torch.where(read, by_teacher, by_label))
    whole, gradients = loss_and_gradients(mixed, draft, batch, teacher)
    torch.testing.assert_close(whole, losses.sum())
    by_row = [loss_and_gradients(mixed, draft, row, teacher)[1] for row in rows]
    for expected, *parts in zip(gradients, *by_row, strict=True):
        torch.testing.assert_close(sum(parts), expected, rtol=0, atol=3e-5 * expected.abs().max().item())


def test_the_teacher_reads_only_its_fraction_of_the_sequences(make_model):
    draft, teacher, read = make_model(5), make_model(7), []
    teacher.model.register_forward_pre_hook(lambda _, __, kwargs: read.append(kwargs["input_ids"]), with_kwargs=True)
    inputs_BT = torch.randint(V, (501, 3), generator=torch.Generator().manual_seed(3))
    for fraction in (1.0, 0.3):
        train_part = part("forward_kl", teacher_fraction=fraction)
        loss_and_gradients(train_part, draft, Batch(inputs_BT, inputs_BT.clone()), teacher)
    all_, some = map(len, read)
    assert all_ == 501
    assert 0.2 < some / 501 < 0.4


def test_a_batch_that_the_teacher_does_not_read_uses_cross_entropy(make_model, batch):
    draft = make_model(5)
    unread = loss_and_gradients(part("forward_kl", teacher_fraction=1e-9), draft, batch, make_model(7))
    torch.testing.assert_close(unread, loss_and_gradients(part("cross_entropy"), draft, batch))


@pytest.mark.parametrize("fraction", [1.0, 0.6])
@pytest.mark.parametrize("rows", [V - 2, V, V + 3])
def test_a_teacher_may_have_another_number_of_padding_rows(make_model, batch, rows, fraction):
    """Its additional rows are left out of its distribution, and rows that it lacks get probability 0."""
    draft, target, teacher = make_model(5), make_model(7), make_model(7)
    weight_VE, kept = target.get_output_embeddings().weight.detach(), min(rows, V)
    head = nn.Linear(weight_VE.shape[1], rows, bias=False)
    head.weight.data = torch.cat([weight_VE[:kept], torch.ones(rows - kept, weight_VE.shape[1])])
    teacher.set_output_embeddings(head)
    # A logit so low that the probability is 0.
    target_logits = target.get_output_embeddings().register_forward_hook(
        lambda _, __, logits: torch.cat([logits[..., :kept], torch.full_like(logits[..., kept:], -1e9)], -1)
    )
    train_part = part({"forward_kl": 0.5, "total_variation": 0.5}, teacher_fraction=fraction)
    loss, _ = loss_and_gradients(train_part, draft, batch, teacher)
    read = (uniform_draws(batch)[0] < fraction)[:, None] & (batch.labels_BT != IGNORED)
    p, q = target(input_ids=batch.inputs_BT).logits.double().softmax(-1), logq_of(draft, batch).exp()
    target_logits.remove()
    divergence = 0.5 * (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(-1) + 0.25 * (p - q).abs().sum(-1)
    text = -of_labels(q.log(), batch)
    expected = divergence[read].sum() + text[~read & (batch.labels_BT != IGNORED)].sum()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_block_length_per_token_is_one_over_block_efficiency(make_model, batch):
    """The block efficiency is pooled as in the evaluation."""
    from fastdraft.maths.acceptance import block_efficiency, chain

    draft = make_model(5)
    loss, _ = loss_and_gradients(part("block_length", block_gamma=3), draft, batch)
    logq_BT = of_labels(logq_of(draft, batch, label_temperature(batch)), batch)
    known = ~batch.teacher.logp_BT.isnan()
    accept = torch.zeros(B, T, dtype=torch.float64)
    for row in range(B):
        ratio = (logq_BT[row] - batch.teacher.logp_BT[row]).clamp(max=0).exp()[known[row]]
        accept[row, : len(ratio)] = ratio.detach()
    tau = block_efficiency(chain(accept, known.sum(1), 3))
    torch.testing.assert_close(known.sum() / loss.double(), tau, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", sorted(DISTRIBUTION_OBJECTIVES))
def test_a_stored_distribution_of_all_tokens_equals_the_online_one(make_model, batch, name):
    draft, target = make_model(5), make_model(7)
    logp, ids = target(input_ids=batch.inputs_BT).logits.detach().log_softmax(-1).topk(V)
    known = ~batch.teacher.logp_BT.isnan()
    logp[~known] = torch.nan
    full = Batch(batch.inputs_BT, batch.labels_BT, (), batch.teacher._replace(top_ids_BTK=ids, top_logp_BTK=logp))
    offline, online = part({name: 0.7}, teacher_logits="offline"), part({name: 0.7})
    expected = loss_and_gradients(online, draft, batch, target)
    torch.testing.assert_close(loss_and_gradients(offline, draft, full), expected)


def test_a_stored_distribution_of_some_tokens_is_bucketed(make_model, batch):
    train_part, draft = part({"total_variation": 0.7}, teacher_logits="offline"), make_model(5)
    batch.teacher.top_logp_BTK[0] = torch.nan  # a sequence of text
    loss, gradients = loss_and_gradients(train_part, draft, batch)
    trained, q = batch.labels_BT != IGNORED, logq_of(draft, batch).exp()
    expected = -of_labels(q.log(), batch)[0][trained[0]].sum()
    for row, position in trained.nonzero().tolist():
        if row:
            top_p = batch.teacher.top_logp_BTK[row, position].double().exp()
            top_q = q[row, position][batch.teacher.top_ids_BTK[row, position]]
            expected = expected + ((top_p - top_q).abs().sum() + (top_p.sum() - top_q.sum()).abs()) / 2
    expected = 0.7 * expected
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for gradient, exact in zip(gradients, torch.autograd.grad(expected, list(draft.parameters())), strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("weights", CASES, ids=lambda weights: "+".join(weights))
@pytest.mark.parametrize("count", [2, 3])
def test_the_loss_of_a_step_does_not_depend_on_how_it_is_split(make_model, batch, monkeypatch, weights, count):
    """Over micro-batches or processes, chunks of the head and pieces in the cache."""
    draft, target = make_model(5), make_model(7)
    batch.teacher.logp_BT[2] = torch.nan
    options = {"block_gamma": 2, "temperature": "per_sequence"}
    whole, gradients = loss_and_gradients(part(weights, **options), draft, batch, target)
    monkeypatch.setattr("fastdraft.train.divergence_kernels.CACHED_BYTES", 1)  # one token at a time
    small_chunks = part(weights, **options, head_chunk_tokens=3)
    pieces = [batch.map_tensors(itemgetter(slice(rank, None, count))) for rank in range(count)]
    assert sum(len(piece.teacher.logp_BT) for piece in pieces) == B
    losses, by_piece = zip(*(loss_and_gradients(small_chunks, draft, piece, target) for piece in pieces), strict=True)
    torch.testing.assert_close(sum(losses), whole)
    for expected, *parts in zip(gradients, *by_piece, strict=True):
        torch.testing.assert_close(sum(parts), expected, rtol=0, atol=3e-5 * expected.abs().max().item())


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_twenty_steps_on_block_length_make_blocks_longer(make_model, batch, decay):
    train_part, draft = part("block_length", block_gamma=3, block_decay=decay), make_model(5)
    optimizer, losses = torch.optim.Adam(draft.parameters(), lr=0.01), []
    for _ in range(20):
        loss = Learner(draft, train_part, torch.float32).train()(batch, objective(train_part, None))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


# The objectives that a recipe may have.


@pytest.mark.parametrize(
    "value",
    ["kl", {}, {"kl": 1.0}, {"forward_kl": 0.0}, {"forward_kl": -1.0}, {"forward_kl": True}, 7, ["forward_kl"], None],
)
def test_unknown_names_and_weights_that_are_not_positive_are_refused(value):
    with pytest.raises(ValidationError, match=r"wanted one of cross_entropy, .*, block_length, or positive weights"):
        part(value)


@pytest.mark.parametrize("value", [0, -1.0, "row", True, float("nan"), float("inf"), None])
def test_a_temperature_is_a_number_above_zero_or_per_sequence(value):
    with pytest.raises(ValidationError, match=r"1 validation error[^\0]*wanted a number above 0, or per_sequence"):
        part("forward_kl", temperature=value)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["pretrain.objective=block_length"], "pretrain has objective block_length"),
        (["pretrain.objective={sampled_total_variation: 1, forward_kl: 1}"], "objective sampled_total_variation"),
        (
            ["align.objective=forward_kl", "align.teacher_logits=offline", "synthesize.top_logprobs=0"],
            r"align has teacher_logits offline; give synthesize.top",
        ),
        (
            ["align.objective=cross_entropy", "align.teacher_logits=offline"],
            "teacher_logits is offline, which needs one of the objectives",
        ),
        (
            ["align.objective=forward_kl", "align.teacher_logits=offline", "align.temperature=0.6"],
            "teacher_logits offline needs temperature 1, found 0.6",
        ),
        (
            ["align.objective=cross_entropy", "align.teacher_logits=online", "align.teacher=demo"],
            "teacher needs an online teacher",
        ),
        (
            ["align.teacher_fraction=0.5"],
            "teacher_fraction needs an online teacher; found teacher_logits offline, objective forward_kl, total",
        ),
        (
            ["align.teacher_logits=online", "align.on_policy=0.3", "align.teacher_fraction=0.5"],
            "on_policy needs teacher_fraction 1",
        ),
        (["align.teacher_logits=online", "align.teacher_fraction=0"], r"align.teacher_fraction[^\0]*more than 0"),
    ],
)
def test_a_recipe_with_an_objective_that_lacks_its_data_is_refused(overrides, problem):
    with pytest.raises(RecipeError, match=rf"{problem}[^\0]*\n  do: "):
        resolve(RECIPES / "demo.yaml", overrides)


def test_weights_from_the_command_line_are_kept_in_the_resolved_file(tmp_path):
    from fastdraft.config.resolve import resolved_yaml

    resolved = resolve(RECIPES / "demo.yaml", ["align.objective={forward_kl: 0.5, block_length: 2}"])
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(resolved))
    again = resolve(tmp_path / "resolved.yaml").recipe
    assert again == resolved.recipe
    assert again.align.objectives == {"forward_kl": 0.5, "block_length": 2.0}


def test_log_probabilities_of_sequences_are_those_of_their_completions(tmp_path):
    from fastdraft.data.order import Mixture, Portion
    from fastdraft.synthesize.completions import Completion, SamplingParams, TopTokens
    from fastdraft.synthesize.training_sequences import TeacherCompletionSequences

    def completion(prompt: int, tokens: int, temperature: float) -> Completion:
        top = TopTokens(np.arange(tokens * 2, dtype=np.uint32).reshape(-1, 2), -np.ones((tokens, 2), np.float16))
        logp = -np.arange(1, tokens + 1, dtype=np.float32)
        return Completion(
            f"{prompt}", np.arange(prompt) + 1, np.arange(tokens) + 9, logp, SamplingParams(temperature), 0, top
        )

    completions = [completion(2, 3, 0.6), completion(1, 9, 1.0), completion(3, 2, 0.0)]
    sequences = TeacherCompletionSequences([completions], 5, tmp_path)
    mixture = Mixture({"synthetic": sequences}, {"synthetic": 1.0}, 7)
    batches = [mixture.next_batch(3, Portion(rank, 2)) for rank in (0, 1)]
    for batch in batches:
        trained = batch.labels_BT != IGNORED
        assert torch.equal(trained, ~batch.teacher.logp_BT.isnan())
        assert torch.equal(trained, ~batch.teacher.top_logp_BTK[..., 1].isnan())
        assert batch.teacher.logp_BT[trained].tolist() == [8.0 - label for label in batch.labels_BT[trained].tolist()]
        assert len(batch.inputs_BT) == len(batch.teacher.logp_BT) == 2
