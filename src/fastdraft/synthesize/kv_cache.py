"""The target on the rows in hand: places in a fixed cache, or the target's own cache where that holds anything else.

The cache is allocated once and written in place, not grown by concatenation (dev/LOG.md). Prompts of any lengths share
a batch: a row counts its own positions, and what lies behind its last token is masked. It lies in blocks of some tokens
of all rows, so that every product of one token's attention reads a whole piece of memory: torch's bf16 product of a
strided cache copies it first (1.7 of the 4.9 s of 48 steps of 256 rows).

Dimensions: B rows in hand, T tokens so far, V vocabulary, H key-value heads, G query heads of each, D size of a head,
K blocks of the cache, S tokens of a block.
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
from fastdraft.models.target import cache_name

ATTENTION = "fastdraft_places"
# Tokens of a block of the cache: few, so that little is read behind the last token; each costs a call, dear on a GPU.
CACHE_BLOCK_TOKENS = {"cpu": 32}
CACHE_BLOCK_TOKENS_ELSEWHERE = 256


class Texts(Protocol):
    """All rows: their prompts, and how long their completions may be."""

    prompts: Sequence[Tokens]
    max_new_tokens: int

    def last(self, rows: Sequence[int]) -> Tensor:
        """(B) the newest token of each of these rows."""


class Reader(Protocol):
    """Rows in hand; `refills`: new ones may come while others are under way."""

    rows: list[int]
    refills: bool

    def open(self, rows: Sequence[int]) -> None:
        """Begin some rows."""

    def next_logits(self) -> Tensor:
        """(B,V) float32 logits of what comes next in each row."""

    def close(self, places: Sequence[int]) -> None:
        """Rows, by their place in `rows`, that have ended."""


@contextmanager
def reader_of(target: PreTrainedModel, texts: Texts) -> Iterator[Reader]:
    """The reader for a target: places in a fixed cache, or the target's own cache where that holds anything else."""
    before = target.config._attn_implementation
    if not _plain_cache(target):
        yield _Padded(target, texts)
        return
    target.set_attn_implementation(ATTENTION)
    try:
        yield _Places(target, texts)
    finally:
        target.set_attn_implementation(before)


def _plain_cache(target: PreTrainedModel) -> bool:
    """Is all that the target remembers the keys and values of every token, and its attention torch's own?"""
    layers = DynamicCache(config=target.config).layers
    plain = bool(layers) and all(type(layer) is DynamicLayer for layer in layers) and not target._is_stateful
    return plain and target.config._attn_implementation == "sdpa"


class _Places(Cache):
    """A place in a fixed cache for each row in hand.

    The last token of a prompt is read with the first step of decoding, so that opening a row needs no logits.
    """

    refills = True

    def __init__(self, target: PreTrainedModel, texts: Texts) -> None:
        super().__init__(layers=[])
        self._target, self._texts = target, texts
        self._cached = {cache_name(target): self, "use_cache": True}
        tokens = max(map(len, texts.prompts)) + texts.max_new_tokens
        self._block_tokens = CACHE_BLOCK_TOKENS.get(target.device.type, CACHE_BLOCK_TOKENS_ELSEWHERE)
        self._blocks = -(-tokens // self._block_tokens)
        self.rows: list[int] = []
        self._keys: dict[int, Tensor] = {}  # layer -> (K,places,H,D,S)
        self._values: dict[int, Tensor] = {}  # layer -> (K,places,H,S,D)
        self._lengths_B = torch.zeros(0, dtype=torch.long, device=target.device)
        self._opened: Tensor | None = None  # places that a prompt is being read into

    def open(self, rows: Sequence[int]) -> None:
        first, heads = len(self.rows), [self._texts.prompts[row][:-1] for row in rows]
        self.rows += rows
        lengths = torch.tensor([len(head) for head in heads], device=self._target.device)
        self._lengths_B = torch.cat([self._lengths_B, lengths])
        longest = max(map(len, heads))
        if longest:
            inputs_BT = np.stack([np.pad(head, (0, longest - len(head))) for head in heads])
            self._opened = torch.arange(first, len(self.rows), device=self._target.device)
            inputs = torch.from_numpy(inputs_BT).to(self._target.device)
            self._target.base_model(input_ids=inputs, **self._cached)
            self._opened = None

    def next_logits(self) -> Tensor:
        token_B1 = self._texts.last(self.rows)[:, None]
        self._row_B = torch.arange(len(self.rows), device=token_B1.device)
        self._block_B, self._inside_B = self._lengths_B // self._block_tokens, self._lengths_B % self._block_tokens
        self._seen_blocks = int(self._block_B.max()) + 1
        seen_T = torch.arange(self._seen_blocks * self._block_tokens, device=token_B1.device)
        mask_B11T = (seen_T <= self._lengths_B[:, None])[:, None, None]
        output = self._target(
            input_ids=token_B1, attention_mask=mask_B11T, position_ids=self._lengths_B[:, None], **self._cached
        )
        self._lengths_B = self._lengths_B + 1
        logits_BV: Tensor = output.logits[:, -1].float()
        return logits_BV

    def close(self, places: Sequence[int]) -> None:
        if not places:
            return
        gone = set(places)
        kept = [place for place in range(len(self.rows)) if place not in gone]
        # The last rows move into the places that were left, so that the rows in hand stay side by side.
        moves = [(place, kept[-1 - i]) for i, place in enumerate(p for p in sorted(gone) if p < len(kept))]
        self._move(moves)
        order = list(range(len(kept)))
        for place, source in moves:
            order[place] = source
        self.rows = [self.rows[place] for place in order]
        self._lengths_B = self._lengths_B[order]

    def _move(self, moves: Sequence[tuple[int, int]]) -> None:
        """Copy the caches of some places to others."""
        if not moves:
            return
        to, source = (torch.tensor(places, device=self._target.device) for places in zip(*moves, strict=True))
        for tensor in (*self._keys.values(), *self._values.values()):
            tensor[:, to] = tensor[:, source]

    # What transformers asks of a cache.

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep new keys and values (B,H,T,D); give back those that the layer may look at, in blocks."""
        keys, values = self._kept(self._keys, layer_idx, key_states), self._kept(self._values, layer_idx, value_states)
        if self._opened is not None:
            first, last = int(self._opened[0]), int(self._opened[-1]) + 1
            for kept, states in ((keys.transpose(-1, -2), key_states), (values, value_states)):
                blocks = self._in_blocks(states)
                kept[: len(blocks), first:last] = blocks
            return key_states, value_states
        rows = len(self.rows)
        keys[self._block_B, self._row_B, :, :, self._inside_B] = key_states[:, :, 0]
        values[self._block_B, self._row_B, :, self._inside_B] = value_states[:, :, 0]
        return keys[: self._seen_blocks, :rows], values[: self._seen_blocks, :rows]

    def _in_blocks(self, states_BHTD: Tensor) -> Tensor:
        """(K,B,H,S,D)"""
        padded = pad(states_BHTD, (0, 0, 0, -states_BHTD.shape[2] % self._block_tokens))
        blocks: Tensor = padded.unflatten(2, (-1, self._block_tokens))
        return blocks.permute(2, 0, 1, 3, 4)

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        """0: positions are given with each forward, and a prompt begins its own."""
        return 0

    def _kept(self, kept: dict[int, Tensor], layer: int, like_BHTD: Tensor) -> Tensor:
        """The keys or values of a layer, with a place for each row in hand."""
        _, heads, _, size = like_BHTD.shape
        inside = (size, self._block_tokens) if kept is self._keys else (self._block_tokens, size)
        if layer not in kept:
            kept[layer] = like_BHTD.new_zeros(self._blocks, len(self.rows), heads, *inside)
        elif missing := max(0, len(self.rows) - kept[layer].shape[1]):
            kept[layer] = torch.cat([kept[layer], torch.zeros_like(kept[layer][:, :missing])], dim=1)
        return kept[layer]


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, over grouped heads without a copy of keys and values for each of them."""
    if key.dim() == 5:
        assert mask is not None, "places have one"
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
    """(B,heads,D) attention of one token a row, block by block."""
    blocks, rows, heads, size, tokens = keys_KBHDS.shape
    query = query.view(rows * heads, -1, size)
    weights = torch.cat([query @ keys.flatten(0, 1) for keys in keys_KBHDS], -1).float() * (
        scaling or 1 / math.sqrt(size)
    )
    weights_BHGT = weights.view(rows, heads, -1, blocks * tokens).masked_fill(~mask_B11T, -torch.inf)
    shares = weights_BHGT.softmax(-1).to(values_KBHSD.dtype).view(rows * heads, -1, blocks, tokens)
    pieces = zip(shares.permute(2, 0, 1, 3).contiguous(), values_KBHSD, strict=True)
    found: Tensor = torch.stack([fraction @ values.flatten(0, 1) for fraction, values in pieces]).sum(0)
    return found.view(rows, -1, size)


AttentionInterface.register(ATTENTION, _attend)


class _Padded:
    """For targets that remember more, or less, than keys and values: the cache is the target's own.

    Prompts of different lengths are padded on the left, masked, and keep their positions; equal ones need no mask. All
    rows begin and end together: what a row says behind its end is not looked at.
    """

    refills = False

    def __init__(self, target: PreTrainedModel, texts: Texts) -> None:
        self._target, self._texts = target, texts
        self.rows: list[int] = []
        self._cache: Any = None
        self._cache_name = cache_name(target)
        self._mask_BT: Tensor | None = None
        self._begun: list[int] = []

    def open(self, rows: Sequence[int]) -> None:
        self.rows, self._begun, self._cache, self._mask_BT = list(rows), list(rows), None, None

    def next_logits(self) -> Tensor:
        if self._cache is None:
            return self._forward(self._prompts())
        places = [self._begun.index(row) for row in self.rows]
        token_B1 = self._texts.last(self._begun)[:, None]
        if self._mask_BT is not None:
            self._mask_BT = torch.cat([self._mask_BT, torch.ones_like(token_B1)], dim=1)
        return self._forward(token_B1)[places]

    def close(self, places: Sequence[int]) -> None:
        gone = set(places)
        self.rows = [row for place, row in enumerate(self.rows) if place not in gone]

    def _prompts(self) -> Tensor:
        prompts = [self._texts.prompts[row] for row in self._begun]
        longest = max(map(len, prompts))
        mask_BT = np.stack([np.arange(longest) >= longest - len(prompt) for prompt in prompts])
        self._mask_BT = None if mask_BT.all() else torch.from_numpy(mask_BT).long().to(self._target.device)
        inputs_BT = np.stack([np.pad(prompt, (longest - len(prompt), 0)) for prompt in prompts])
        return torch.from_numpy(inputs_BT).to(self._target.device)

    def _forward(self, inputs_BT: Tensor) -> Tensor:
        more = {self._cache_name: self._cache}
        if self._mask_BT is not None:
            position_BT = (self._mask_BT.cumsum(1) - 1).clamp(min=0)[:, -inputs_BT.shape[1] :]
            more |= {"attention_mask": self._mask_BT, "position_ids": position_BT}
        output = self._target(input_ids=inputs_BT, use_cache=True, logits_to_keep=1, **more)
        self._cache = output[self._cache_name]
        logits_BV: Tensor = output.logits[:, -1].float()
        return logits_BV
