"""Every objective is its brute-force float64 sum, chunk by chunk, alone and with others; records go with their rows."""

from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fastdraft.config import DISTRIBUTION_OBJECTIVES, OBJECTIVES, SAMPLE_OBJECTIVES, TrainPart
from fastdraft.config.resolve import resolve
from fastdraft.data.order import IGNORED, Batch, Record, unknown
from fastdraft.system.errors import RecipeError
from fastdraft.train.learner import Learner
from fastdraft.train.objectives import objective
from fastdraft.train.sampling_rng import coins

B, T, V = 3, 11, 31
RECIPES = Path(__file__).parents[2] / "recipes"


def part(objective: object, **more: object) -> TrainPart:
    fixed = {"mix": {"synthetic": 1.0}, "train_tokens": 1, "precision": "fp32", "head_chunk_tokens": 5}
    return TrainPart.model_validate(fixed | {"objective": objective} | more)


@pytest.fixture
def batch() -> Batch:
    """Continuations that begin at places 2, 5 and 0 of their rows, at temperatures 1, 0.6 and greedy; p as drawn."""
    draw = torch.Generator().manual_seed(3)
    text = torch.randint(V, (B, T + 1), generator=draw)
    labels_BT = text[:, 1:].clone()
    empty = unknown(T, 4)
    record = Record(*[torch.stack([tensor] * B) for tensor in empty])
    for row, (start, end, temperature) in enumerate([(2, 11, 1.0), (5, 9, 0.6), (0, 7, 0.0)]):
        labels_BT[row, :start] = labels_BT[row, end:] = IGNORED
        record.temperature_BT[row, start:end] = temperature
        logp = torch.rand(end - start, generator=draw).log() if temperature else torch.zeros(end - start)
        record.logp_BT[row, start:end] = logp
        top = torch.randn(end - start, V, generator=draw).log_softmax(-1).topk(4)
        record.top_logp_BTK[row, start:end], record.top_ids_BTK[row, start:end] = top
    return Batch(text[:, :-1], labels_BT, (), record)


def loss_and_gradients(how: TrainPart, draft: nn.Module, batch: Batch, target: nn.Module | None = None):
    """As a step takes them: through the head that sees a chunk at a time."""
    loss = Learner(draft, how, torch.float32).train()(batch, objective(how, target))
    return loss, torch.autograd.grad(loss, list(draft.parameters()))


def logq_of(draft: nn.Module, batch: Batch, temperature: Tensor | float = 1.0) -> Tensor:
    """(B,T,V) float64"""
    return (draft.double()(input_ids=batch.inputs_BT).logits / temperature).log_softmax(-1)


def served(batch: Batch) -> Tensor:
    """(B,T,1) 1 where greedy"""
    temperature_BT1 = batch.record.temperature_BT[..., None].double()
    return torch.where(temperature_BT1 > 0, temperature_BT1, 1.0)


def of_labels(probs_BTV: Tensor, batch: Batch) -> Tensor:
    return probs_BTV.gather(-1, batch.labels_BT.clamp(min=0)[..., None])[..., 0]


def brute_forwards(accept: list[Tensor], gamma: int, decay: float = 1.0) -> Tensor:
    """Expected target forwards over one text, block by block, from the definition; slopes weighed by place in it."""
    opens = [torch.zeros((), dtype=torch.float64) for _ in range(len(accept) + gamma + 2)]
    opens[0] = torch.ones((), dtype=torch.float64)
    for start in range(len(accept)):
        reached = opens[start]
        for drafted in range(gamma + 1):
            place = start + drafted
            if place >= len(accept):
                break
            if drafted == gamma:
                opens[place + 1] = opens[place + 1] + reached
            else:
                weighed = decay**drafted * accept[place]
                weighed = weighed + (accept[place] - weighed).detach()
                opens[place + 1] = opens[place + 1] + reached * (1 - weighed)
                reached = reached * weighed
    return torch.stack(opens[: len(accept)]).sum()


def brute(how: TrainPart, draft: nn.Module, batch: Batch, target: nn.Module | None) -> Tensor:
    """The weighted sum over all trained tokens, in float64 and with plain logits."""
    trained, known = batch.labels_BT != IGNORED, ~batch.record.logp_BT.isnan()
    text = -of_labels(logq_of(draft, batch), batch)
    ratio = (of_labels(logq_of(draft, batch, served(batch)), batch) - batch.record.logp_BT.double()).clamp(max=0).exp()
    total = torch.zeros((), dtype=torch.float64)
    for name, weight in how.objectives.items():
        if name == "cross_entropy":
            total = total + weight * text[trained].sum()
        elif name == "sampled_total_variation":
            total = total - weight * ratio[known].sum()
        elif name == "block_length":
            rows = [ratio[row][known[row]] for row in range(B) if known[row].any()]
            total = total + weight * sum(brute_forwards(list(row), how.block_gamma, how.block_decay) for row in rows)
        else:
            temperature = served(batch) if how.temperature == "per_sequence" else how.temperature
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
def test_loss_and_gradients_are_the_brute_force_ones(make_model, batch, weights, temperature, recorded):
    if recorded == "some":
        batch.record.logp_BT[0] = torch.nan
    how, draft, target = part(weights, temperature=temperature, block_gamma=2), make_model(5), make_model(7)
    for weight in (*draft.parameters(), *target.parameters()):
        weight.data *= 4
    loss, gradients = loss_and_gradients(how, draft, batch, target)
    wanted = brute(how, draft, batch, target)
    torch.testing.assert_close(loss.double(), wanted, rtol=2e-5, atol=1e-5)
    for found, true in zip(gradients, torch.autograd.grad(wanted, list(draft.parameters())), strict=True):
        # What fp32 rounds goes with the largest slope of a matrix: here it comes to 9e-6 of that.
        torch.testing.assert_close(found.double(), true, rtol=0, atol=3e-5 * true.abs().max().item())


@pytest.mark.parametrize("decay", [0.5, 0.01])
def test_slopes_of_block_length_are_weighed_by_place_in_the_block(make_model, batch, decay):
    weighed, plain = (part("block_length", block_gamma=3, block_decay=by) for by in (decay, 1.0))
    draft = make_model(5)
    for weight in draft.parameters():
        weight.data *= 4
    (loss, gradients), (as_before, others) = (
        loss_and_gradients(weighed, draft, batch),
        loss_and_gradients(plain, draft, batch),
    )
    assert torch.equal(loss, as_before)
    assert not all(map(torch.allclose, gradients, others))
    wanted = torch.autograd.grad(brute(weighed, draft, batch, None), list(draft.parameters()))
    for found, true in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(found.double(), true, rtol=1e-3, atol=2e-5)


def test_the_target_reads_a_batch_once_for_all_terms(make_model, batch):
    target, reads = make_model(7), []
    target.model.register_forward_hook(lambda *_: reads.append(1))
    loss_and_gradients(part(dict.fromkeys(DISTRIBUTION_OBJECTIVES, 1.0)), make_model(5), batch, target)
    assert len(reads) == 1


# Whose distribution it is, and in which rows.

SAMPLING_SETTINGS = {"forward_kl": 0.5, "total_variation": 0.3, "cross_entropy": 0.2}


def test_of_rows_that_the_teacher_does_not_read_the_text_is_learned(make_model, batch):
    """Each row is wholly of the distribution or wholly of the text, with the same weight, whichever rows it is given
    with.
    """
    draft, teacher = make_model(5), make_model(7)
    rows = [batch.each(itemgetter(slice(row, row + 1))) for row in range(B)]
    of_law, of_text, found = (
        torch.stack([loss_and_gradients(how, draft, row, teacher)[0] for row in rows]).detach()
        for how in (
            part(SAMPLING_SETTINGS),
            part({"cross_entropy": 1.0}),
            part(SAMPLING_SETTINGS, teacher_fraction=0.6),
        )
    )
    read = coins(batch)[0] < 0.6
    assert 0 < read.sum() < B
    torch.testing.assert_close(found, torch.where(read, of_law, of_text))
    whole, gradients = loss_and_gradients(part(SAMPLING_SETTINGS, teacher_fraction=0.6), draft, batch, teacher)
    torch.testing.assert_close(whole, found.sum())
    apart = [loss_and_gradients(part(SAMPLING_SETTINGS, teacher_fraction=0.6), draft, row, teacher)[1] for row in rows]
    for wanted, *shares in zip(gradients, *apart, strict=True):
        torch.testing.assert_close(sum(shares), wanted, rtol=0, atol=3e-5 * wanted.abs().max().item())


def test_the_teacher_reads_its_fraction_of_the_rows_and_no_more(make_model):
    draft, teacher, read = make_model(5), make_model(7), []
    teacher.model.register_forward_pre_hook(lambda _, __, given: read.append(given["input_ids"]), with_kwargs=True)
    inputs_BT = torch.randint(V, (501, 3), generator=torch.Generator().manual_seed(3))
    for fraction in (1.0, 0.3):
        how = part("forward_kl", teacher_fraction=fraction)
        loss_and_gradients(how, draft, Batch(inputs_BT, inputs_BT.clone()), teacher)
    everything, some = map(len, read)
    assert everything == 501
    assert 0.2 < some / 501 < 0.4


def test_a_batch_of_which_the_teacher_reads_nothing_is_text(make_model, batch):
    draft = make_model(5)
    little = loss_and_gradients(part("forward_kl", teacher_fraction=1e-9), draft, batch, make_model(7))
    torch.testing.assert_close(little, loss_and_gradients(part("cross_entropy"), draft, batch))


@pytest.mark.parametrize("fraction", [1.0, 0.6])
@pytest.mark.parametrize("rows", [V - 2, V, V + 3])
def test_a_teacher_may_have_other_rows_for_no_token(make_model, batch, rows, fraction):
    """What it says of rows that the draft has not is left out of its distribution; of rows that it has not it says
    nothing.
    """
    draft, target, teacher = make_model(5), make_model(7), make_model(7)
    weight_VE, kept = target.get_output_embeddings().weight.detach(), min(rows, V)
    head = nn.Linear(weight_VE.shape[1], rows, bias=False)
    head.weight.data = torch.cat([weight_VE[:kept], torch.ones(rows - kept, weight_VE.shape[1])])
    teacher.set_output_embeddings(head)
    # A place without a chance: its logit is so low that nothing is left of it.
    target_logits = target.get_output_embeddings().register_forward_hook(
        lambda _, __, logits: torch.cat([logits[..., :kept], torch.full_like(logits[..., kept:], -1e9)], -1)
    )
    how = part({"forward_kl": 0.5, "total_variation": 0.5}, teacher_fraction=fraction)
    found, _ = loss_and_gradients(how, draft, batch, teacher)
    read = (coins(batch)[0] < fraction)[:, None] & (batch.labels_BT != IGNORED)
    p, q = target(input_ids=batch.inputs_BT).logits.double().softmax(-1), logq_of(draft, batch).exp()
    target_logits.remove()
    sampling = 0.5 * (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(-1) + 0.25 * (p - q).abs().sum(-1)
    text = -of_labels(q.log(), batch)
    wanted = sampling[read].sum() + text[~read & (batch.labels_BT != IGNORED)].sum()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_step_of_block_length_is_one_over_block_efficiency(make_model, batch):
    """The loss, divided by its tokens as a step does, is what evaluation pools."""
    from fastdraft.maths.acceptance import block_efficiency, chain

    draft = make_model(5)
    loss, _ = loss_and_gradients(part("block_length", block_gamma=3), draft, batch)
    logq_BT = of_labels(logq_of(draft, batch, served(batch)), batch)
    known = ~batch.record.logp_BT.isnan()
    accept = torch.zeros(B, T, dtype=torch.float64)
    for row in range(B):
        ratio = (logq_BT[row] - batch.record.logp_BT[row]).clamp(max=0).exp()[known[row]]
        accept[row, : len(ratio)] = ratio.detach()
    tau = block_efficiency(chain(accept, known.sum(1), 3))
    torch.testing.assert_close(known.sum() / loss.double(), tau, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", sorted(DISTRIBUTION_OBJECTIVES))
def test_a_stored_distribution_of_all_tokens_is_the_live_one(make_model, batch, name):
    draft, target = make_model(5), make_model(7)
    logp, ids = target(input_ids=batch.inputs_BT).logits.detach().log_softmax(-1).topk(V)
    known = ~batch.record.logp_BT.isnan()
    logp[~known] = torch.nan
    full = Batch(batch.inputs_BT, batch.labels_BT, (), batch.record._replace(top_ids_BTK=ids, top_logp_BTK=logp))
    stored, live = part({name: 0.7}, teacher_logits="offline"), part({name: 0.7})
    torch.testing.assert_close(loss_and_gradients(stored, draft, full), loss_and_gradients(live, draft, batch, target))


def test_a_stored_distribution_of_some_tokens_is_their_distribution_and_a_bucket(make_model, batch):
    how, draft = part({"total_variation": 0.7}, teacher_logits="offline"), make_model(5)
    batch.record.top_logp_BTK[0] = torch.nan  # a row of text
    loss, gradients = loss_and_gradients(how, draft, batch)
    trained, q = batch.labels_BT != IGNORED, logq_of(draft, batch).exp()
    wanted = -of_labels(q.log(), batch)[0][trained[0]].sum()
    for row, place in trained.nonzero().tolist():
        if row:
            p = batch.record.top_logp_BTK[row, place].double().exp()
            of_them = q[row, place][batch.record.top_ids_BTK[row, place]]
            wanted = wanted + ((p - of_them).abs().sum() + (p.sum() - of_them.sum()).abs()) / 2
    wanted = 0.7 * wanted
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)
    for found, true in zip(gradients, torch.autograd.grad(wanted, list(draft.parameters())), strict=True):
        torch.testing.assert_close(found.double(), true, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("weights", CASES, ids=lambda weights: "+".join(weights))
@pytest.mark.parametrize("of", [2, 3])
def test_the_loss_of_a_step_does_not_depend_on_who_takes_its_rows(make_model, batch, monkeypatch, weights, of):
    """Sums over micro-batches or processes, whatever the chunks of the head and their pieces; rows keep records."""
    draft, target = make_model(5), make_model(7)
    batch.record.logp_BT[2] = torch.nan
    whole, gradients = loss_and_gradients(
        part(weights, block_gamma=2, temperature="per_sequence"), draft, batch, target
    )
    monkeypatch.setattr("fastdraft.train.divergence_kernels.CACHED_BYTES", 1)  # a token at a time
    other = part(weights, block_gamma=2, temperature="per_sequence", head_chunk_tokens=3)
    pieces = [batch.each(itemgetter(slice(rank, None, of))) for rank in range(of)]
    assert sum(len(piece.record.logp_BT) for piece in pieces) == B
    found = [loss_and_gradients(other, draft, piece, target) for piece in pieces]
    torch.testing.assert_close(sum(loss for loss, _ in found), whole)
    for wanted, *shares in zip(gradients, *(slopes for _, slopes in found), strict=True):
        torch.testing.assert_close(sum(shares), wanted, rtol=0, atol=3e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_steps_on_block_length_make_blocks_longer(make_model, batch, decay):
    """Twenty steps of the objective on one batch raise what it measures."""
    how, draft = part("block_length", block_gamma=3, block_decay=decay), make_model(5)
    step, losses = torch.optim.Adam(draft.parameters(), lr=0.01), []
    for _ in range(20):
        loss = Learner(draft, how, torch.float32).train()(batch, objective(how, None))
        losses.append(loss.item())
        step.zero_grad()
        loss.backward()
        step.step()
    assert losses[-1] < 0.8 * losses[0]


# What a recipe may ask for.


@pytest.mark.parametrize(
    "found",
    ["kl", {}, {"kl": 1.0}, {"forward_kl": 0.0}, {"forward_kl": -1.0}, {"forward_kl": True}, 7, ["forward_kl"], None],
)
def test_unknown_names_and_weights_that_are_not_positive_are_refused(found):
    with pytest.raises(ValidationError, match=r"wanted one of cross_entropy, .*, block_length, or positive weights"):
        part(found)


@pytest.mark.parametrize("found", [0, -1.0, "row", True, float("nan"), float("inf"), None])
def test_a_temperature_is_a_number_above_zero_or_that_of_the_rows(found):
    with pytest.raises(ValidationError, match=r"1 validation error[^\0]*wanted a number above 0, or rows"):
        part("forward_kl", temperature=found)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["pretrain.objective=block_length"], "pretrain has objective block_length, which texts of a corpus have no"),
        (["pretrain.objective={sampled_total_variation: 1, forward_kl: 1}"], "objective sampled_total_variation"),
        (
            ["align.objective=forward_kl", "align.teacher_logits=offline", "synthesize.top_logprobs=0"],
            r"align has teacher_logits offline; give synthesize.top",
        ),
        (
            ["align.objective=cross_entropy", "align.teacher_logits=offline"],
            "teacher_logits is offline; give an objective of the distribution",
        ),
        (
            ["align.objective=forward_kl", "align.teacher_logits=offline", "align.temperature=0.6"],
            "teacher_logits is offline at temperature 1, temperature is 0.6",
        ),
        (
            ["align.objective=cross_entropy", "align.teacher_logits=online", "align.teacher=demo"],
            "teacher is for a online distribution",
        ),
        (
            ["align.teacher_fraction=0.5"],
            "teacher_fraction is for a online distribution; found teacher_logits offline, objective forward_kl, total",
        ),
        (
            ["align.teacher_logits=online", "align.on_policy=0.3", "align.teacher_fraction=0.5"],
            "on_policy wants the distribution of all",
        ),
        (["align.teacher_logits=online", "align.teacher_fraction=0"], r"align.teacher_fraction[^\0]*greater than 0"),
    ],
)
def test_a_loss_without_what_it_needs_is_a_problem_of_the_recipe(overrides, problem):
    with pytest.raises(RecipeError, match=rf"{problem}[^\0]*\n  do: "):
        resolve(RECIPES / "demo.yaml", overrides)


def test_weights_come_from_the_command_line_and_back_out_of_the_resolved_file(tmp_path):
    from fastdraft.config.resolve import resolved_yaml

    found = resolve(RECIPES / "demo.yaml", ["align.objective={forward_kl: 0.5, block_length: 2}"])
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(found))
    again = resolve(tmp_path / "resolved.yaml").recipe
    assert again == found.recipe
    assert again.align.objectives == {"forward_kl": 0.5, "block_length": 2.0}


def test_records_of_rows_are_those_of_their_completions(tmp_path):
    from fastdraft.data.order import Mixture, Portion
    from fastdraft.synthesize.completions import Completion, SamplingParams, Top
    from fastdraft.synthesize.training_sequences import RecordedCompletions

    def completion(prompt: int, tokens: int, temperature: float) -> Completion:
        top = Top(np.arange(tokens * 2, dtype=np.uint32).reshape(-1, 2), -np.ones((tokens, 2), np.float16))
        logp = -np.arange(1, tokens + 1, dtype=np.float32)
        return Completion(
            f"{prompt}", np.arange(prompt) + 1, np.arange(tokens) + 9, logp, SamplingParams(temperature), 0, top
        )

    rows = RecordedCompletions([[completion(2, 3, 0.6), completion(1, 9, 1.0), completion(3, 2, 0.0)]], 5, tmp_path)
    mixture = Mixture({"synthetic": rows}, {"synthetic": 1.0}, 7)
    batches = [mixture.next_batch(3, Portion(rank, 2)) for rank in (0, 1)]
    for batch in batches:
        trained = batch.labels_BT != IGNORED
        assert torch.equal(trained, ~batch.record.logp_BT.isnan())
        assert torch.equal(trained, ~batch.record.top_logp_BTK[..., 1].isnan())
        assert batch.record.logp_BT[trained].tolist() == [8.0 - label for label in batch.labels_BT[trained].tolist()]
        assert len(batch.inputs_BT) == len(batch.record.logp_BT) == 2
