"""Causal attention in bf16 on a CPU: large matrix products for one block of queries at a time.

torch's CPU kernel takes 1.4 (1 024 tokens) to 2 times as long, forward and backward, because its matrix products are
small (docs/decisions/0005-training-speed.md). Scores are rounded to bf16, as in the `eager` attention of transformers.
The backward pass computes them again, so that memory does not grow with the square of the sequence length.

Dimensions: B sequences, H heads, G heads of a group, T tokens, D head size, C queries of a block, K keys up to its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.configuration_utils import PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "fastdraft_blocks"
# Smaller blocks skip more of the masked half of the scores, but make the matrix products smaller.
BLOCK_TOKENS = 128
# bf16 scores per thread that stay in the CPU cache.
CACHED_BYTES = 1 << 21


@contextmanager
def blockwise_attention(config: PretrainedConfig) -> Iterator[None]:
    """Within the context, the model with this configuration uses `attend` instead of torch's kernel."""
    before = config._attn_implementation
    if before == "sdpa":
        config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """(B,T,H,D) attention, with the interface of transformers' `sdpa`.

    Only plain causal attention in bf16 over whole sequences is computed by blocks. Everything else goes to `sdpa`.
    """
    tokens, size = query_BHTD.shape[2:]
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query_BHTD.dtype
    causal = getattr(module, "is_causal", True) and options.get("is_causal") is not False
    plain = causal and attention_mask is None and not dropout and tokens == key_BHTD.shape[2] > 1
    if not plain or dtype != torch.bfloat16:
        by_torch: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_BHTD, key_BHTD, value_BHTD, attention_mask, dropout, scaling, **options
        )
        return by_torch
    # Cast as autocast does for torch's kernel: rotary embeddings leave queries and keys in fp32.
    with torch.autocast("cpu", enabled=False):
        query, key, value = (x.to(dtype) for x in (query_BHTD, key_BHTD, value_BHTD))
        if (repeats := query.shape[1] // key.shape[1]) > 1:
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        scale = size**-0.5 if scaling is None else scaling
        out: Tensor = _BlockwiseAttention.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2), None


class _BlockwiseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(query_BHTD, key_BHTD, value_BHTD)
        out_GTD = torch.empty(query_BHTD.shape, dtype=query_BHTD.dtype).flatten(0, 1)
        for query, key, value, out in _groups(query_BHTD, key_BHTD, value_BHTD, out_GTD):
            for block, visible in _blocks(query.shape[1]):
                out[:, block] = _attention_weights(query[:, block], key[:, visible], scale) @ value[:, visible]
        return out_GTD.view(query_BHTD.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        size = ctx.saved_tensors[0].shape
        grads = [torch.empty(size, dtype=x.dtype).flatten(0, 1) for x in ctx.saved_tensors]
        for group in _groups(*ctx.saved_tensors, *grads, *grad_outputs):
            _group_backward(ctx.scale, *group)
        return *(grad_GTD.view(size) for grad_GTD in grads), None


def _groups(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """All tensors as (G,T,D), split into groups of heads small enough for a block's scores to stay in the cache."""
    flat = [x.flatten(0, -3).contiguous() for x in tensors]
    heads = max(1, torch.get_num_threads() * CACHED_BYTES // (2 * BLOCK_TOKENS * flat[0].shape[1]))
    return zip(*(x.split(heads) for x in flat), strict=True)


def _group_backward(
    scale: float,
    query_GTD: Tensor,
    key_GTD: Tensor,
    value_GTD: Tensor,
    grad_query_GTD: Tensor,
    grad_key_GTD: Tensor,
    grad_value_GTD: Tensor,
    grad_out_GTD: Tensor,
) -> None:
    """Write the gradients of a group. Those of keys and values are summed over the blocks in fp32."""
    sum_key_GTD, sum_value_GTD = (torch.zeros(x.shape, dtype=torch.float32) for x in (key_GTD, value_GTD))
    for block, visible in _blocks(query_GTD.shape[1]):
        query, key, grad_out = query_GTD[:, block], key_GTD[:, visible], grad_out_GTD[:, block]
        weights_GCK = _attention_weights(query, key, scale)
        sum_value_GTD[:, visible] += weights_GCK.transpose(1, 2) @ grad_out
        grad_weights_GCK = grad_out @ value_GTD[:, visible].transpose(1, 2)
        grad_score_GCK = torch._softmax_backward_data(grad_weights_GCK, weights_GCK, -1, weights_GCK.dtype)
        torch.mul(grad_score_GCK @ key, scale, out=grad_query_GTD[:, block])
        sum_key_GTD[:, visible] += grad_score_GCK.transpose(1, 2) @ query
    grad_key_GTD.copy_(sum_key_GTD.mul_(scale))
    grad_value_GTD.copy_(sum_value_GTD)


def _attention_weights(query_GCD: Tensor, key_GKD: Tensor, scale: float) -> Tensor:
    """(G,C,K) attention weights of each query over the keys; 0 for keys after it."""
    scores_GCK = (query_GCD @ key_GKD.transpose(1, 2)).mul_(scale)
    queries = scores_GCK.shape[1]
    # Add -inf instead of masked_fill, which takes three times as long.
    scores_GCK[:, :, -queries:] += scores_GCK.new_full((queries, queries), -torch.inf).triu_(1)
    return torch.softmax(scores_GCK, -1, out=scores_GCK)


def _blocks(tokens: int) -> list[tuple[slice, slice]]:
    """Pairs of a block of queries and the keys up to its end."""
    ends = [min(start + BLOCK_TOKENS, tokens) for start in range(0, tokens, BLOCK_TOKENS)]
    return [(slice(start, end), slice(0, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
