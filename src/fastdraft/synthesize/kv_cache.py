"""The batch that `generate` decodes: a fixed key-value cache, or the target's own cache if it stores anything else.

The fixed cache is allocated once and written in place, not grown by concatenation (dev/LOG.md). Sequences of any
lengths share a batch: each has its own positions, and what follows its last token is masked. The cache is stored in
blocks of a few tokens of all sequences, so that every matrix product of one token's attention reads contiguous memory.
torch's bf16 product copies a strided cache first: 1.7 of the 4.9 s of 48 steps of 256 sequences.

Dimensions: B sequences in the batch, T tokens so far, V vocabulary, H key-value heads, G query heads per key-value
head, D size of a head, K blocks of the cache, S tokens of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from fastdraft.data.shards import Tokens
from fastdraft.models.pretrained import cache_name

ATTENTION = "fastdraft_fixed_cache"
# Tokens per cache block. Small blocks read little beyond the last token, but each costs a kernel call, slow on a GPU.
CACHE_BLOCK_TOKENS = {"cpu": 32}
CACHE_BLOCK_TOKENS_ELSEWHERE = 256


class Sequences(Protocol):
    """All sequences to decode; a row is the index of one."""

    prompts: Sequence[Tokens]
    max_new_tokens: int

    def last_tokens(self, rows: Sequence[int]) -> Tensor:
        """(B) the last token of each of these rows."""


class Batch(Protocol):
    """The rows that are being decoded. If `refills`, rows may be added while others are unfinished."""

    rows: list[int]
    refills: bool

    def add(self, rows: Sequence[int]) -> None:
        """Start decoding these rows."""

    def next_logits(self) -> Tensor:
        """(B,V) float32 logits of the next token of each row."""

    def remove(self, indices: Sequence[int]) -> None:
        """Remove finished rows, given by their index in `rows`; the order of the others may change."""


@contextmanager
def open_batch(target: PreTrainedModel, sequences: Sequences) -> Iterator[Batch]:
    """A batch with a fixed cache if the target remembers plain keys and values, otherwise with the target's cache."""
    attention = target.config._attn_implementation
    layers = DynamicCache(config=target.config).layers
    plain = bool(layers) and all(type(layer) is DynamicLayer for layer in layers) and not target._is_stateful
    if not plain or attention != "sdpa":
        yield _PaddedBatch(target, sequences)
        return
    target.set_attn_implementation(ATTENTION)
    try:
        yield _FixedCacheBatch(target, sequences)
    finally:
        target.set_attn_implementation(attention)


class _FixedCacheBatch(Cache):
    """One place in a fixed cache per row; transformers sees this object as its cache.

    The last token of a prompt is read in the first decoding step, so adding a row needs no logits.
    """

    refills = True

    def __init__(self, target: PreTrainedModel, sequences: Sequences) -> None:
        super().__init__(layers=[])
        self._target, self._sequences = target, sequences
        self._cache_arguments = {cache_name(target): self, "use_cache": True}
        tokens = max(map(len, sequences.prompts)) + sequences.max_new_tokens
        self._block_tokens = CACHE_BLOCK_TOKENS.get(target.device.type, CACHE_BLOCK_TOKENS_ELSEWHERE)
        self._blocks = -(-tokens // self._block_tokens)
        self.rows: list[int] = []
        self._keys: dict[int, Tensor] = {}  # layer -> (K,places,H,D,S)
        self._values: dict[int, Tensor] = {}  # layer -> (K,places,H,S,D)
        self._lengths_B = torch.zeros(0, dtype=torch.long, device=target.device)
        self._prefilled: slice | None = None  # the places whose prompts are being read

    def add(self, rows: Sequence[int]) -> None:
        first, prefixes = len(self.rows), [self._sequences.prompts[row][:-1] for row in rows]
        self.rows += rows
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=self._target.device)
        self._lengths_B = torch.cat([self._lengths_B, lengths])
        longest = max(map(len, prefixes))
        if longest:
            inputs_BT = np.stack([np.pad(prefix, (0, longest - len(prefix))) for prefix in prefixes])
            inputs = torch.from_numpy(inputs_BT).to(self._target.device)
            self._prefilled = slice(first, len(self.rows))
            self._target.base_model(input_ids=inputs, **self._cache_arguments)
            self._prefilled = None

    def next_logits(self) -> Tensor:
        token_B1 = self._sequences.last_tokens(self.rows)[:, None]
        self._row_B = torch.arange(len(self.rows), device=token_B1.device)
        self._block_B, self._offset_B = self._lengths_B // self._block_tokens, self._lengths_B % self._block_tokens
        self._used_blocks = int(self._block_B.max()) + 1
        position_T = torch.arange(self._used_blocks * self._block_tokens, device=token_B1.device)
        mask_B11T = (position_T <= self._lengths_B[:, None])[:, None, None]
        output = self._target(
            input_ids=token_B1,
            attention_mask=mask_B11T,
            position_ids=self._lengths_B[:, None],
            **self._cache_arguments,
        )
        self._lengths_B = self._lengths_B + 1
        logits_BV: Tensor = output.logits[:, -1].float()
        return logits_BV

    def remove(self, indices: Sequence[int]) -> None:
        if not indices:
            return
        removed = set(indices)
        kept = [index for index in range(len(self.rows)) if index not in removed]
        # The last rows move into the free places, so that the places in use stay contiguous.
        free = [index for index in sorted(removed) if index < len(kept)]
        moved = [kept[-1 - i] for i in range(len(free))]
        if free:
            for tensor in (*self._keys.values(), *self._values.values()):
                tensor[:, torch.tensor(free, device=tensor.device)] = tensor[:, moved]
        order = list(range(len(kept)))
        for place, source in zip(free, moved, strict=True):
            order[place] = source
        self.rows = [self.rows[index] for index in order]
        self._lengths_B = self._lengths_B[order]

    # The methods that transformers calls on a cache.

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B,H,T,D); returns those that the layer may attend to, in blocks."""
        keys = self._allocated(self._keys, layer_idx, key_states)
        values = self._allocated(self._values, layer_idx, value_states)
        if self._prefilled is not None:
            for cache, states_BHTD in ((keys.transpose(-1, -2), key_states), (values, value_states)):
                padded = pad(states_BHTD, (0, 0, 0, -states_BHTD.shape[2] % self._block_tokens))
                blocks_KBHSD = padded.unflatten(2, (-1, self._block_tokens)).permute(2, 0, 1, 3, 4)
                cache[: len(blocks_KBHSD), self._prefilled] = blocks_KBHSD
            return key_states, value_states
        rows = len(self.rows)
        keys[self._block_B, self._row_B, :, :, self._offset_B] = key_states[:, :, 0]
        values[self._block_B, self._row_B, :, self._offset_B] = value_states[:, :, 0]
        return keys[: self._used_blocks, :rows], values[: self._used_blocks, :rows]

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        """0: every forward passes its own positions, and those of a prompt start at 0."""
        return 0

    def _allocated(self, cache: dict[int, Tensor], layer: int, states_BHTD: Tensor) -> Tensor:
        """The keys or values of a layer, with a place for each row of the batch."""
        _, heads, _, size = states_BHTD.shape
        block = (size, self._block_tokens) if cache is self._keys else (self._block_tokens, size)
        if layer not in cache:
            cache[layer] = states_BHTD.new_zeros(self._blocks, len(self.rows), heads, *block)
        elif missing := max(0, len(self.rows) - cache[layer].shape[1]):
            cache[layer] = torch.cat([cache[layer], torch.zeros_like(cache[layer][:, :missing])], dim=1)
        return cache[layer]


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it; grouped heads share keys and values without a copy."""
    if key.dim() == 5:
        assert mask is not None, "next_logits passes one"
        return _attend_one(query, key, value, mask, scaling)[:, None], None
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None and query.shape[2] > 1,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous(), None


def _attend_one(
    query: Tensor, keys_KBHDS: Tensor, values_KBHSD: Tensor, mask_B11T: Tensor, scaling: float | None
) -> Tensor:
    """(B,heads,D) attention of one token per row, block by block."""
    blocks, rows, heads, size, tokens = keys_KBHDS.shape
    query = query.view(rows * heads, -1, size)
    products = torch.cat([query @ keys.flatten(0, 1) for keys in keys_KBHDS], -1).float()
    weights = products * (scaling or 1 / math.sqrt(size))
    weights_BHGT = weights.view(rows, heads, -1, blocks * tokens).masked_fill(~mask_B11T, -torch.inf)
    p = weights_BHGT.softmax(-1).to(values_KBHSD.dtype).view(rows * heads, -1, blocks, tokens)
    pairs = zip(p.permute(2, 0, 1, 3).contiguous(), values_KBHSD, strict=True)
    output: Tensor = torch.stack([p_block @ values.flatten(0, 1) for p_block, values in pairs]).sum(0)
    return output.view(rows, -1, size)


AttentionInterface.register(ATTENTION, _attend)


class _PaddedBatch:
    """A batch with the target's own cache, for sliding windows, recurrent states and other attention.

    Prompts of different lengths are padded on the left, masked, and keep their positions; equal ones need no mask. All
    rows start together, and finished ones are decoded further until all have finished; their logits are dropped.
    """

    refills = False

    def __init__(self, target: PreTrainedModel, sequences: Sequences) -> None:
        self._target, self._sequences = target, sequences
        self.rows: list[int] = []
        self._all_rows: list[int] = []
        self._cache: Any = None
        self._cache_name = cache_name(target)
        self._mask_BT: Tensor | None = None

    def add(self, rows: Sequence[int]) -> None:
        self.rows, self._all_rows, self._cache, self._mask_BT = list(rows), list(rows), None, None

    def next_logits(self) -> Tensor:
        if self._cache is None:
            return self._forward(self._padded_prompts())
        indices = [self._all_rows.index(row) for row in self.rows]
        token_B1 = self._sequences.last_tokens(self._all_rows)[:, None]
        if self._mask_BT is not None:
            self._mask_BT = torch.cat([self._mask_BT, torch.ones_like(token_B1)], dim=1)
        return self._forward(token_B1)[indices]

    def remove(self, indices: Sequence[int]) -> None:
        removed = set(indices)
        self.rows = [row for index, row in enumerate(self.rows) if index not in removed]

    def _padded_prompts(self) -> Tensor:
        prompts = [self._sequences.prompts[row] for row in self._all_rows]
        longest = max(map(len, prompts))
        mask_BT = np.stack([np.arange(longest) >= longest - len(prompt) for prompt in prompts])
        self._mask_BT = None if mask_BT.all() else torch.from_numpy(mask_BT).long().to(self._target.device)
        inputs_BT = np.stack([np.pad(prompt, (longest - len(prompt), 0)) for prompt in prompts])
        return torch.from_numpy(inputs_BT).to(self._target.device)

    def _forward(self, inputs_BT: Tensor) -> Tensor:
        arguments = {self._cache_name: self._cache}
        if self._mask_BT is not None:
            position_BT = (self._mask_BT.cumsum(1) - 1).clamp(min=0)[:, -inputs_BT.shape[1] :]
            arguments |= {"attention_mask": self._mask_BT, "position_ids": position_BT}
        output = self._target(input_ids=inputs_BT, use_cache=True, logits_to_keep=1, **arguments)
        self._cache = output[self._cache_name]
        logits_BV: Tensor = output.logits[:, -1].float()
        return logits_BV
