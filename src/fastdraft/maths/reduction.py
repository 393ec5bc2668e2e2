"""The one place where tokens are masked, summed and counted: sums and counts travel, the division comes once a step.

Dimensions: X any shape.
"""

from typing import NamedTuple

from torch import Tensor


class TokenSum(NamedTuple):
    """() a loss summed over tokens, and () how many tokens; add them over micro-batches and ranks before `mean`."""

    total: Tensor
    tokens: Tensor


def masked_sum(loss_X: Tensor, mask_X: Tensor) -> TokenSum:
    """The sum and the count of the tokens where the mask is true; what the others hold, even NaN, does not enter."""
    return TokenSum(loss_X.where(mask_X, 0).sum(), mask_X.sum())


def add(left: TokenSum, right: TokenSum) -> TokenSum:
    """Both sums as one."""
    return TokenSum(left.total + right.total, left.tokens + right.tokens)


def mean(summed: TokenSum) -> Tensor:
    """() loss per token: the one division."""
    if summed.tokens == 0:
        raise ValueError("a mean over 0 tokens: every token of the step is masked; wanted at least 1")
    return summed.total / summed.tokens
