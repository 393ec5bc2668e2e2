"""The head that computes logits in chunks gives the losses and gradients of plain logits and autograd."""

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from fastdraft.config import TrainPart
from fastdraft.data.order import IGNORED, Batch
from fastdraft.maths.divergence import DISTRIBUTION_LOSSES
from fastdraft.train.head import CrossEntropy, cross_entropy_in_place, on_scaled_logits, scale_logits, summed_loss
from fastdraft.train.objectives import cross_entropy, objective

N, E, V = 13, 5, 11


def objective_against(name: str, target: object):
    return objective(TrainPart(mix={"a": 1.0}, train_tokens=1, objective=name, precision="fp32"), target)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def labels_with_gaps(generator: torch.Generator, size: tuple[int, ...], vocabulary: int = V) -> Tensor:
    labels = torch.randint(vocabulary, size, generator=generator)
    return labels.masked_fill(torch.rand(size, generator=generator) < 0.3, IGNORED)


@pytest.mark.parametrize("chunk", [1, 2, 5, 13, 97])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-5), (torch.bfloat16, 3e-2)])
def test_loss_and_gradients_equal_those_of_plain_logits(generator, chunk, dtype, close):
    hidden_NE = torch.randn(N, E, generator=generator).to(dtype).requires_grad_()
    weight_VE = torch.randn(V, E, generator=generator, dtype=torch.float32).requires_grad_()
    labels_N = labels_with_gaps(generator, (N,))
    total = summed_loss(hidden_NE, weight_VE, cross_entropy(Batch(labels_N, labels_N)), chunk)
    (total * 0.7).backward()
    plain_hidden, plain_weight = (x.detach().double().requires_grad_() for x in (hidden_NE, weight_VE))
    expected = torch.nn.functional.cross_entropy(
        plain_hidden @ plain_weight.T, labels_N, ignore_index=IGNORED, reduction="sum"
    )
    (expected * 0.7).backward()
    torch.testing.assert_close(total.double(), expected, rtol=close, atol=close)
    torch.testing.assert_close(hidden_NE.grad.double(), plain_hidden.grad, rtol=close, atol=close)
    torch.testing.assert_close(weight_VE.grad.double(), plain_weight.grad, rtol=close, atol=4 * close)


@pytest.mark.parametrize("largest", [3.0, 300.0])
@pytest.mark.parametrize("method", ["in_cache", "eager", "compiled"])
def test_the_closed_form_gradient_equals_that_of_autograd(generator, monkeypatch, method, largest):
    """Also where the label is so unlikely that its probability is 0 in fp32, as in a draft that diverges."""
    monkeypatch.setattr("fastdraft.train.head.CACHED_BYTES", 4 * V * 3)  # pieces of three rows, the last of one
    labels_N, positions = labels_with_gaps(generator, (N + 5,)), torch.arange(2, N + 2)
    logits_NV = (torch.randn(N, V, generator=generator) * largest).requires_grad_()
    expected = torch.nn.functional.cross_entropy(logits_NV, labels_N[positions], ignore_index=IGNORED, reduction="sum")
    (expected_gradient,) = torch.autograd.grad(expected, logits_NV)
    gradient_NV = logits_NV.detach().clone()
    if method == "in_cache":
        loss = CrossEntropy(labels_N).gradient_in_place(gradient_NV, positions, compiled=False)
    elif method == "eager":
        loss = cross_entropy_in_place(gradient_NV, labels_N[positions])
    else:
        compiled = torch.compile(cross_entropy_in_place, backend="aot_eager", fullgraph=True, dynamic=False)
        loss = compiled(gradient_NV, labels_N[positions])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient_NV, expected_gradient, rtol=1e-4, atol=1e-6)


def test_a_second_backward_pass_raises_an_error(generator):
    hidden_NE = torch.randn(N, E, generator=generator).requires_grad_()
    labels_N = labels_with_gaps(generator, (N,))
    loss = summed_loss(hidden_NE, torch.randn(V, E, generator=generator), CrossEntropy(labels_N), 5) * 0.7
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("chunk", [1, 3, 97])
def test_tokens_without_a_label_are_not_computed_and_change_nothing(generator, chunk):
    labels_N = labels_with_gaps(generator, (N,))
    labelled_M = (labels_N != IGNORED).nonzero()[:, 0]
    assert 1 < len(labelled_M) < N
    computed = []

    def recorded_loss(logits_NV, positions):
        computed.extend(positions.tolist())
        return cross_entropy(Batch(labels_N, labels_N))(logits_NV, positions)

    results = []
    for positions_M in (None, labelled_M):
        hidden_NE = torch.randn(N, E, generator=torch.Generator().manual_seed(1)).requires_grad_()
        weight_VE = torch.randn(V, E, generator=torch.Generator().manual_seed(2)).requires_grad_()
        computed.clear()
        loss = summed_loss(hidden_NE, weight_VE, recorded_loss, chunk, positions_M=positions_M)
        loss.backward()
        results.append((loss.detach(), hidden_NE.grad, weight_VE.grad))
    assert computed == labelled_M.tolist()
    torch.testing.assert_close(results[1], results[0])


def test_a_batch_without_a_label_has_no_loss_and_no_gradient(generator):
    hidden_NE = torch.randn(N, E, generator=generator).requires_grad_()
    weight_VE = torch.randn(V, E, generator=generator).requires_grad_()
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
    ("name", "options"),
    [
        ("llama", {}),
        ("qwen3", {}),
        ("phi3", {}),
        ("gemma2", {"final_logit_softcapping": 2.0}),
        ("gemma3_text", {}),
        ("granite", {"logits_scaling": 3.0}),
    ],
)
def test_the_logits_equal_those_of_the_model(name, options):
    """Gemma 2 caps its logits and Granite divides them: the raw product would give another loss."""
    model = family(name, **options)
    tokens_BT = torch.tensor([[1, 4, 2, 7, 3], [5, 5, 9, 10, 6]])
    with torch.no_grad():
        expected = model(input_ids=tokens_BT).logits
        hidden = model.base_model(input_ids=tokens_BT).last_hidden_state
    raw = hidden @ model.get_output_embeddings().weight.T
    torch.testing.assert_close(scale_logits(raw, model.config), expected)
    if options:
        assert not torch.allclose(raw, expected, atol=1e-3)


@pytest.mark.parametrize("name", ["forward_kl", "total_variation"])
@pytest.mark.parametrize("target_family", ["llama", "gemma2"])
def test_a_loss_against_the_target_equals_brute_force(generator, make_model, name, target_family):
    draft, target = make_model(5), family(target_family)
    inputs_BT = torch.randint(V, (3, 7), generator=generator)
    batch = Batch(inputs_BT, labels_with_gaps(generator, (3, 7)))
    hidden_NE = torch.randn(21, 16, generator=generator).requires_grad_()
    weight_VE = draft.get_input_embeddings().weight[:V]
    loss = on_scaled_logits(objective_against(name, target)(batch), draft.config)
    total = summed_loss(hidden_NE, weight_VE, loss, 5)
    with torch.no_grad():
        logp = target(input_ids=inputs_BT).logits.double().log_softmax(-1).flatten(0, 1)
    logq = (hidden_NE @ weight_VE.T).double().log_softmax(-1)
    by_token = {
        "forward_kl": (logp.exp() * (logp - logq)).sum(-1),
        "total_variation": (logp.exp() - logq.exp()).abs().sum(-1) / 2,
    }[name]
    expected = by_token[batch.labels_BT.flatten() != IGNORED].sum()
    torch.testing.assert_close(total.double(), expected, rtol=1e-4, atol=1e-5)
    (gradient,), (expected_gradient,) = (torch.autograd.grad(loss, hidden_NE) for loss in (total, expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", DISTRIBUTION_LOSSES)
def test_a_model_against_itself_has_no_loss_and_no_gradient(generator, make_model, name):
    model = make_model(5)
    inputs_BT = torch.randint(31, (3, 7), generator=generator)
    loss = objective_against(name, model)(Batch(inputs_BT, labels_with_gaps(generator, (3, 7), 31)))
    hidden_NE = model.base_model(input_ids=inputs_BT).last_hidden_state.flatten(0, 1)
    total = summed_loss(hidden_NE, model.get_output_embeddings().weight, loss, 5)
    total.backward()
    assert total.abs() < 1e-5
    assert max(p.grad.abs().max() for p in model.parameters()) < 1e-5
