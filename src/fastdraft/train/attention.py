"""Causal attention on a CPU by whole matrix products, a block of queries at a time.

torch's own kernel for CPUs takes 1.4 (1 024 tokens) to 2 times as long in bf16, forward and backward: its products are
small (docs/decisions/0005-training-speed.md). Scores are rounded to bf16, as in the `eager` attention of transformers;
they are computed again in the backward pass, so that memory does not grow with the square of the length.

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
# Queries of a block: fewer leave more of the masked half out, and make smaller products.
BLOCK_TOKENS = 128
# Scores in bf16 that each thread has at one time.
CACHED_BYTES = 1 << 21


@contextmanager
def by_blocks(config: PretrainedConfig) -> Iterator[None]:
    """The model with this configuration attends by blocks, where it would ask torch's kernel."""
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
    **more: Any,
) -> tuple[Tensor, None]:
    """(B,T,H,D) plain causal attention of whole sequences by blocks; all else as transformers' `sdpa` does it."""
    tokens, size = query_BHTD.shape[2:]
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query_BHTD.dtype
    causal = getattr(module, "is_causal", True) and more.get("is_causal") is not False
    plain = causal and attention_mask is None and not dropout and tokens == key_BHTD.shape[2] > 1
    if not plain or dtype != torch.bfloat16:
        given = query_BHTD, key_BHTD, value_BHTD, attention_mask
        found: tuple[Tensor, None] = sdpa_attention_forward(module, *given, dropout, scaling, **more)
        return found
    # Autocast is asked here what it would do to torch's own: rotary positions leave queries and keys in fp32.
    with torch.autocast("cpu", enabled=False):
        query, key, value = (x.to(dtype) for x in (query_BHTD, key_BHTD, value_BHTD))
        if (repeats := query.shape[1] // key.shape[1]) > 1:
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        scale = size**-0.5 if scaling is None else scaling
        out: Tensor = _ByBlocks.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2), None


class _ByBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(query_BHTD, key_BHTD, value_BHTD)
        out_GTD = torch.empty(query_BHTD.shape, dtype=query_BHTD.dtype).flatten(0, 1)
        for query, key, value, out in _groups(query_BHTD, key_BHTD, value_BHTD, out_GTD):
            for block, seen in _blocks(query.shape[1]):
                out[:, block] = _attention_weights(query[:, block], key[:, seen], scale) @ value[:, seen]
        return out_GTD.view(query_BHTD.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        size = ctx.saved_tensors[0].shape
        grads = [torch.empty(size, dtype=x.dtype).flatten(0, 1) for x in ctx.saved_tensors]
        for group in _groups(*ctx.saved_tensors, *grads, *grad_outputs):
            _backward(ctx.scale, *group)
        return *(grad_GTD.view(size) for grad_GTD in grads), None


def _groups(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """All tensors as (G,T,D), so many heads of sequences at a time that a block's scores stay in the cache."""
    flat = [x.flatten(0, -3).contiguous() for x in tensors]
    heads = max(1, torch.get_num_threads() * CACHED_BYTES // (2 * BLOCK_TOKENS * flat[0].shape[1]))
    return zip(*(x.split(heads) for x in flat), strict=True)


def _backward(
    scale: float,
    query_GTD: Tensor,
    key_GTD: Tensor,
    value_GTD: Tensor,
    grad_query_GTD: Tensor,
    grad_key_GTD: Tensor,
    grad_value_GTD: Tensor,
    grad_out_GTD: Tensor,
) -> None:
    """Write a group's gradients; those of keys and values are added over the blocks in fp32."""
    by_key, by_value = (torch.zeros(x.shape, dtype=torch.float32) for x in (key_GTD, value_GTD))
    for block, seen in _blocks(query_GTD.shape[1]):
        query, key, grad_out = query_GTD[:, block], key_GTD[:, seen], grad_out_GTD[:, block]
        weights_GCK = _attention_weights(query, key, scale)
        by_value[:, seen] += weights_GCK.transpose(1, 2) @ grad_out
        by_weights_GCK = grad_out @ value_GTD[:, seen].transpose(1, 2)
        by_score_GCK = torch._softmax_backward_data(by_weights_GCK, weights_GCK, -1, weights_GCK.dtype)
        torch.mul(by_score_GCK @ key, scale, out=grad_query_GTD[:, block])
        by_key[:, seen] += by_score_GCK.transpose(1, 2) @ query
    grad_key_GTD.copy_(by_key.mul_(scale))
    grad_value_GTD.copy_(by_value)


def _attention_weights(query_GCD: Tensor, key_GKD: Tensor, scale: float) -> Tensor:
    """(G,C,K) the share that each query gives to each key; 0 for keys behind it."""
    scores_GCK = (query_GCD @ key_GKD.transpose(1, 2)).mul_(scale)
    queries = scores_GCK.shape[1]
    # Added: to fill by a mask takes three times as long.
    scores_GCK[:, :, -queries:] += scores_GCK.new_full((queries, queries), -torch.inf).triu_(1)
    return torch.softmax(scores_GCK, -1, out=scores_GCK)


def _blocks(tokens: int) -> list[tuple[slice, slice]]:
    """(a block of queries, the keys up to its end)"""
    ends = [min(start + BLOCK_TOKENS, tokens) for start in range(0, tokens, BLOCK_TOKENS)]
    return [(slice(start, end), slice(0, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
