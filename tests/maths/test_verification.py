"""Speculative decoding emits what the target alone would emit.

Dimensions: V vocabulary, G drafted tokens (gamma), N positions of a text.
"""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastdraft.maths.verification import accept_greedy, accept_sampled, residual

# Quarters: every threshold a coin is compared with is a multiple of 1/12, so twelve midpoints integrate a coin exactly.
P_VV = torch.tensor([[1, 1, 2], [0, 3, 1], [2, 2, 0]], dtype=torch.float64) / 4
Q_VV = torch.tensor([[2, 1, 1], [1, 1, 2], [1, 3, 0]], dtype=torch.float64) / 4
COIN_12 = (torch.arange(12, dtype=torch.float64) + 0.5) / 12


@pytest.mark.parametrize("gamma", [1, 2])
def test_one_sampled_block_keeps_the_target_distribution(gamma: int) -> None:
    """Exact, over all drafted sequences and all outcomes of the coins; the target completes a short block."""
    vocabulary = range(len(P_VV))
    joint = torch.zeros([len(P_VV)] * (gamma + 1), dtype=torch.float64)
    for draft in itertools.product(vocabulary, repeat=gamma):
        context = [0, *draft]
        drawn = torch.stack([Q_VV[a, b] for a, b in itertools.pairwise(context)]).prod()
        if drawn == 0:
            continue
        for coins in itertools.product(COIN_12, repeat=gamma + 1):
            block = accept_sampled(P_VV[context], Q_VV[context[:-1]], torch.tensor(draft), torch.stack(coins))
            _complete(joint, tuple(block.emitted.tolist()), drawn / 12 ** (gamma + 1))
    torch.testing.assert_close(joint, _target_joint(gamma + 1))


def _complete(joint: Tensor, emitted: tuple[int, ...], weight: Tensor) -> None:
    """Add the weight of an emitted block, completed by the target to the length of the joint distribution."""
    joint[emitted] += weight * _target_joint(joint.dim() - len(emitted), emitted[-1])


def _target_joint(length: int, last: int = 0) -> Tensor:
    """The target's distribution of the next `length` tokens."""
    if length == 0:
        return torch.ones((), dtype=torch.float64)
    return torch.stack([P_VV[last, token] * _target_joint(length - 1, token) for token in range(len(P_VV))])


def test_long_sampled_runs_keep_the_target_distribution(speculate: Callable[..., tuple[Tensor, int, Tensor]]) -> None:
    text_N, _, _ = speculate(P_VV, Q_VV, 3, 10_000, 11)
    pairs_VV = torch.zeros_like(P_VV).index_put_((text_N[:-1], text_N[1:]), torch.tensor(1.0).double(), accumulate=True)
    seen_V1 = pairs_VV.sum(1, keepdim=True)
    deviation_VV = (P_VV * (1 - P_VV) / seen_V1).sqrt()
    assert ((pairs_VV / seen_V1 - P_VV).abs() <= 4 * deviation_VV).all()


def test_greedy_blocks_emit_the_greedy_text_of_the_target() -> None:
    generator = torch.Generator().manual_seed(5)
    for gamma in (1, 2, 3, 5):
        target_VV, draft_VV = torch.randint(7, (2, 7, 7), generator=generator)
        draft_VV = draft_VV.where(torch.rand(7, 7, generator=generator) < 0.4, target_VV)
        own, text = [0, 1], [0, 1]
        while len(own) < 60:
            own.append(int(target_VV[own[-2], own[-1]]))
        while len(text) < 60:
            drafted = text[-2:]
            for _ in range(gamma):
                drafted.append(int(draft_VV[drafted[-2], drafted[-1]]))
            block = accept_greedy(target_VV[drafted[:-1], drafted[1:]], torch.tensor(drafted[2:]))
            assert len(block.emitted) == block.accepted + 1
            text += block.emitted.tolist()
        assert text[:60] == own


def test_greedy_acceptance_ends_at_the_first_difference() -> None:
    assert accept_greedy(torch.tensor([3, 4, 6, 2]), torch.tensor([3, 5, 6])).emitted.tolist() == [3, 4]
    assert accept_greedy(torch.tensor([3, 5, 6, 2]), torch.tensor([3, 5, 6])).emitted.tolist() == [3, 5, 6, 2]
    assert accept_greedy(torch.tensor([1, 5, 6, 2]), torch.tensor([3, 5, 6])).accepted == 0


def test_a_draft_equal_to_the_target_is_always_accepted() -> None:
    p_V = torch.tensor([0.2, 0.3, 0.5])
    coin_4 = torch.tensor([0.99, 0.99, 0.99, 0.0])
    block = accept_sampled(p_V.expand(4, 3), p_V.expand(3, 3), torch.tensor([2, 0, 1]), coin_4)
    assert block.accepted == 3
    assert block.emitted.tolist() == [2, 0, 1, 0]


def test_a_token_the_target_excludes_is_never_emitted() -> None:
    p_V, q_V = torch.tensor([0.0, 0.4, 0.0, 0.6, 0.0]), torch.tensor([1.0, 0, 0, 0, 0])
    for coin in (0.0, 0.39, 0.4, 0.41, 1 - 2**-24):
        block = accept_sampled(p_V.expand(2, 5), q_V[None], torch.tensor([0]), torch.tensor([0.0, coin]))
        assert block.accepted == 0
        assert block.emitted.item() in (1, 3)


def test_the_residual_restores_the_target_distribution() -> None:
    p_V, q_V = torch.rand(2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64).softmax(-1)
    kept_V = torch.minimum(p_V, q_V)
    torch.testing.assert_close(kept_V + (1 - kept_V.sum()) * residual(p_V, q_V), p_V)


def test_the_residual_of_equal_distributions_is_the_target_distribution() -> None:
    p_V = torch.tensor([0.2, 0.3, 0.5])
    assert torch.equal(residual(p_V, p_V), p_V)
