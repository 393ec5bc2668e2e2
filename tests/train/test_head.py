"""The head that never holds all logits computes what plain logits and autograd compute."""

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from fastdraft.config import TrainPart
from fastdraft.data.order import IGNORED, Batch
from fastdraft.maths.divergence import DISTRIBUTION_LOSSES
from fastdraft.train.head import CrossEntropy, finished, loss_with_gradient, on_finished_logits, summed_loss
from fastdraft.train.objectives import cross_entropy, objective

N, E, V = 13, 5, 11


def against(name: str, target: object):
    return objective(TrainPart(mix={"a": 1.0}, train_tokens=1, objective=name, precision="fp32"), target)


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def labels_with_gaps(draw: torch.Generator, size: tuple[int, ...], vocabulary: int = V) -> Tensor:
    labels = torch.randint(vocabulary, size, generator=draw)
    return labels.masked_fill(torch.rand(size, generator=draw) < 0.3, IGNORED)


@pytest.mark.parametrize("chunk", [1, 2, 5, 13, 97])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-5), (torch.bfloat16, 3e-2)])
def test_loss_and_gradients_are_those_of_plain_logits(draw, chunk, dtype, close):
    hidden_NE = torch.randn(N, E, generator=draw).to(dtype).requires_grad_()
    weight_VE = torch.randn(V, E, generator=draw, dtype=torch.float32).requires_grad_()
    labels_N = labels_with_gaps(draw, (N,))
    loss_of = cross_entropy(Batch(labels_N, labels_N))
    found = summed_loss(hidden_NE, weight_VE, loss_of, chunk)
    (found * 0.7).backward()
    plain_hidden, plain_weight = (x.detach().double().requires_grad_() for x in (hidden_NE, weight_VE))
    wanted = torch.nn.functional.cross_entropy(
        plain_hidden @ plain_weight.T, labels_N, ignore_index=IGNORED, reduction="sum"
    )
    (wanted * 0.7).backward()
    torch.testing.assert_close(found.double(), wanted, rtol=close, atol=close)
    torch.testing.assert_close(hidden_NE.grad.double(), plain_hidden.grad, rtol=close, atol=close)
    torch.testing.assert_close(weight_VE.grad.double(), plain_weight.grad, rtol=close, atol=4 * close)


@pytest.mark.parametrize("largest", [3.0, 300.0])
@pytest.mark.parametrize("way", ["in_cache", "at_once", "traced"])
def test_a_known_gradient_is_that_of_autograd(draw, monkeypatch, way, largest):
    """Also where the label is so unlikely that its probability is 0 in fp32: a draft that diverges is to be noticed."""
    monkeypatch.setattr("fastdraft.train.head.CACHED_BYTES", 4 * V * 3)  # three rows at a time, and one that is left
    labels_N, place = labels_with_gaps(draw, (N + 5,)), torch.arange(2, N + 2)
    logits_NV = (torch.randn(N, V, generator=draw) * largest).requires_grad_()
    wanted = torch.nn.functional.cross_entropy(logits_NV, labels_N[place], ignore_index=IGNORED, reduction="sum")
    (gradient,) = torch.autograd.grad(wanted, logits_NV)
    found_NV = logits_NV.detach().clone()
    if way == "in_cache":
        found = CrossEntropy(labels_N).graded(found_NV, place, compiled=False)
    else:
        traced = torch.compile(loss_with_gradient, backend="aot_eager", fullgraph=True, dynamic=False)
        found = (traced if way == "traced" else loss_with_gradient)(found_NV, labels_N[place])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_NV, gradient, rtol=1e-4, atol=1e-6)


def test_a_second_walk_over_a_graph_whose_gradients_are_given_away_is_noticed(draw):
    hidden_NE = torch.randn(N, E, generator=draw).requires_grad_()
    labels_N = labels_with_gaps(draw, (N,))
    loss = summed_loss(hidden_NE, torch.randn(V, E, generator=draw), CrossEntropy(labels_N), 5) * 0.7
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("chunk", [1, 3, 97])
def test_tokens_that_are_not_asked_cost_nothing_and_change_nothing(draw, chunk):
    labels_N = labels_with_gaps(draw, (N,))
    asked_M = (labels_N != IGNORED).nonzero()[:, 0]
    assert 1 < len(asked_M) < N
    seen = []

    def loss_of(logits_NV, place):
        seen.extend(place.tolist())
        return cross_entropy(Batch(labels_N, labels_N))(logits_NV, place)

    found = []
    for given in (None, asked_M):
        hidden_NE = torch.randn(N, E, generator=torch.Generator().manual_seed(1)).requires_grad_()
        weight_VE = torch.randn(V, E, generator=torch.Generator().manual_seed(2)).requires_grad_()
        seen.clear()
        loss = summed_loss(hidden_NE, weight_VE, loss_of, chunk, asked_M=given)
        loss.backward()
        found.append((loss.detach(), hidden_NE.grad, weight_VE.grad))
    assert seen == asked_M.tolist()
    torch.testing.assert_close(found[1], found[0])


def test_a_batch_without_a_label_has_no_loss_and_no_gradient(draw):
    hidden_NE = torch.randn(N, E, generator=draw).requires_grad_()
    weight_VE = torch.randn(V, E, generator=draw).requires_grad_()
    labels_N = torch.full((N,), IGNORED)
    loss = summed_loss(hidden_NE, weight_VE, cross_entropy(Batch(labels_N, labels_N)), 5)
    loss.backward()
    assert loss == 0
    assert not hidden_NE.grad.any()
    assert not weight_VE.grad.any()


def family(name: str, **more: object):
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        name, vocab_size=V, num_key_value_heads=1, head_dim=8, pad_token_id=0, initializer_range=0.5, **sizes, **more
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("llama", {}),
        ("qwen3", {}),
        ("phi3", {}),
        ("gemma2", {"final_logit_softcapping": 2.0}),
        ("gemma3_text", {}),
        ("granite", {"logits_scaling": 3.0}),
    ],
)
def test_the_logits_are_those_that_the_family_gives_out(name, more):
    """Gemma 2 caps its logits and Granite divides them: a loss on the raw product would train another model."""
    model = family(name, **more)
    tokens_BT = torch.tensor([[1, 4, 2, 7, 3], [5, 5, 9, 10, 6]])
    with torch.no_grad():
        wanted = model(input_ids=tokens_BT).logits
        hidden = model.base_model(input_ids=tokens_BT).last_hidden_state
        found = finished(hidden @ model.get_output_embeddings().weight.T, model.config)
    torch.testing.assert_close(found, wanted)
    if more:
        assert not torch.allclose(hidden @ model.get_output_embeddings().weight.T, wanted, atol=1e-3)


@pytest.mark.parametrize("name", ["forward_kl", "total_variation"])
@pytest.mark.parametrize("target_family", ["llama", "gemma2"])
def test_a_loss_against_the_target_is_the_brute_force_one(draw, make_model, name, target_family):
    draft, target = make_model(5), family(target_family)
    inputs_BT = torch.randint(V, (3, 7), generator=draw)
    batch = Batch(inputs_BT, labels_with_gaps(draw, (3, 7)))
    hidden_NE = torch.randn(21, 16, generator=draw).requires_grad_()
    weight_VE = draft.get_input_embeddings().weight[:V]
    loss_of = on_finished_logits(against(name, target)(batch), draft.config)
    found = summed_loss(hidden_NE, weight_VE, loss_of, 5)
    with torch.no_grad():
        logp = target(input_ids=inputs_BT).logits.double().log_softmax(-1).flatten(0, 1)
    logq = (hidden_NE @ weight_VE.T).double().log_softmax(-1)
    by_token = {
        "forward_kl": (logp.exp() * (logp - logq)).sum(-1),
        "total_variation": (logp.exp() - logq.exp()).abs().sum(-1) / 2,
    }[name]
    wanted = by_token[batch.labels_BT.flatten() != IGNORED].sum()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(found, hidden_NE)[0], torch.autograd.grad(wanted, hidden_NE)[0], rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("name", DISTRIBUTION_LOSSES)
def test_a_model_against_itself_has_nothing_to_learn(draw, make_model, name):
    model = make_model(5)
    inputs_BT = torch.randint(31, (3, 7), generator=draw)
    loss_of = against(name, model)(Batch(inputs_BT, labels_with_gaps(draw, (3, 7), 31)))
    hidden_NE = model.base_model(input_ids=inputs_BT).last_hidden_state.flatten(0, 1)
    loss = summed_loss(hidden_NE, model.get_output_embeddings().weight, loss_of, 5)
    loss.backward()
    assert loss.abs() < 1e-5
    assert max(p.grad.abs().max() for p in model.parameters()) < 1e-5
