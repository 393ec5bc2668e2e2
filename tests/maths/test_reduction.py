"""A loss per token does not depend on how its tokens were grouped."""

from functools import reduce

import pytest
import torch

from fastdraft.maths.reduction import TokenSum, add, masked_sum, mean

B, T = 5, 7
LOSS_BT = torch.randn(B, T, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
MASK_BT = torch.rand(B, T, generator=torch.Generator().manual_seed(5)) < 0.4


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_the_mean_does_not_depend_on_how_the_batch_is_split(rows: int) -> None:
    parts = [masked_sum(*pair) for pair in zip(LOSS_BT.split(rows), MASK_BT.split(rows), strict=True)]
    torch.testing.assert_close(mean(reduce(add, parts)), LOSS_BT[MASK_BT].mean())


def test_the_mean_of_means_is_another_number() -> None:
    means = [mean(masked_sum(*pair)) for pair in zip(LOSS_BT.split(2), MASK_BT.split(2), strict=True)]
    assert torch.stack(means).mean().item() != pytest.approx(LOSS_BT[MASK_BT].mean().item(), rel=1e-3)


def test_what_is_masked_does_not_enter_not_even_nan() -> None:
    loss_BT = LOSS_BT.masked_fill(~MASK_BT, torch.nan).requires_grad_()
    summed = masked_sum(loss_BT, MASK_BT)
    summed.total.backward()
    assert summed.tokens.item() == MASK_BT.sum().item()
    torch.testing.assert_close(summed.total, LOSS_BT[MASK_BT].sum())
    assert loss_BT.grad is not None
    assert torch.equal(loss_BT.grad, MASK_BT.double())


def test_a_group_without_tokens_adds_nothing() -> None:
    empty = masked_sum(LOSS_BT, torch.zeros_like(MASK_BT))
    whole = masked_sum(LOSS_BT, MASK_BT)
    assert add(whole, empty) == whole


def test_a_mean_over_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="a mean over 0 tokens"):
        mean(TokenSum(torch.tensor(0.0), torch.tensor(0)))
