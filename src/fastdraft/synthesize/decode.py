"""Batched decoding of a target in this process: a place in the cache for each row, filled anew when a row ends.

The cache is allocated once and written in place, not grown by concatenation (dev/LOG.md). Prompts of any lengths share
a batch: a row counts its own positions, and what lies behind its last token is masked. It lies in blocks of some tokens
of all rows, so that every product of one token's attention reads a whole piece of memory: torch's bf16 product of a
strided cache copies it first (1.7 of the 4.9 s of 48 steps of 256 rows).

Dimensions: B rows in hand, R rows in all, T tokens so far, N tokens of a completion, V vocabulary, H key-value heads,
G query heads of each, D size of a head, K blocks of the cache, S tokens of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from fastdraft.corpus.shards import Tokens
from fastdraft.errors import TargetError
from fastdraft.maths.law import scores
from fastdraft.synthesize.completions import LEAST_LOGP, Law, LogProbabilities, Top

ATTENTION = "fastdraft_places"
# Tokens of the vocabulary whose probabilities are summed before the place of a coin is looked for among the sums.
BLOCK_TOKENS = 64
# Tokens of a block of the cache: few, so that little is read behind the last token; each costs a call, dear on a GPU.
CACHE_BLOCK_TOKENS = {"cpu": 32}
CACHE_BLOCK_TOKENS_ELSEWHERE = 256


class Written(NamedTuple):
    """(n) tokens of a completion, the end-of-text token included, and (n) log p of each under its law.

    `top`: the likeliest tokens of each place, where they were asked for.
    """

    tokens: Tokens
    logp: LogProbabilities
    top: Top | None = None


@torch.inference_mode()
def generate(
    target: PreTrainedModel,
    prompts: Sequence[Tokens],
    law: Law,
    completion_tokens: int,
    eos: frozenset[int],
    coins_RN: Tensor,
    rows_at_once: int | None = None,
    top_logprobs: int = 0,
) -> list[Written]:
    """What the target writes after each prompt, up to and including its first end-of-text token.

    coins_RN: uniform on [0, 1), float64, one for every token of every row; not looked at where the law is greedy.
    `rows_at_once`: otherwise all. TargetError where a text exceeds the context, or where logits are NaN.
    """
    _refuse_too_long(target, max(map(len, prompts)) + completion_tokens)
    texts = _Texts(prompts, law, completion_tokens, eos, coins_RN.to(target.device), top_logprobs)
    # Rows of similar lengths are read together: less padding.
    waiting = sorted(range(len(prompts)), key=lambda row: len(prompts[row]), reverse=True)
    with _reader(target, texts) as reader:
        while waiting or reader.rows:
            room = (rows_at_once or len(prompts)) - len(reader.rows)
            fresh = [waiting.pop() for _ in range(min(room, len(waiting)))]
            if fresh and (len(reader.rows) == 0 or reader.refills):
                reader.open(fresh)
            else:
                waiting += reversed(fresh)
            reader.close(texts.extend(reader.rows, reader.next_logits()))
    return texts.written()


class _Texts:
    """The completions so far of all rows."""

    def __init__(
        self,
        prompts: Sequence[Tokens],
        law: Law,
        completion_tokens: int,
        eos: frozenset[int],
        coins_RN: Tensor,
        top_logprobs: int,
    ) -> None:
        rows, device = len(prompts), coins_RN.device
        self.prompts, self.completion_tokens = prompts, completion_tokens
        self._law, self._coins_RN = law, coins_RN
        self._ends_V = torch.tensor(sorted(eos), dtype=torch.long, device=device)
        self._tokens_RN = torch.zeros(rows, completion_tokens, dtype=torch.long, device=device)
        self._logp_RN = torch.zeros(rows, completion_tokens, device=device)
        self._lengths_R = torch.zeros(rows, dtype=torch.long, device=device)
        places = rows, completion_tokens, top_logprobs
        self._top_ids_RNK = torch.zeros(places, dtype=torch.int32, device=device)
        self._top_logp_RNK = torch.zeros(places, dtype=torch.float16, device=device)

    def extend(self, rows: Sequence[int], logits_BV: Tensor) -> list[int]:
        """One more token for each of these rows; the places, among them, of those that have ended."""
        row_B = torch.tensor(rows, device=logits_BV.device)
        at_B = self._lengths_R[row_B]
        token_B, logp_B = choose(logits_BV, self._law, self._coins_RN[row_B, at_B])
        self._tokens_RN[row_B, at_B], self._logp_RN[row_B, at_B] = token_B, logp_B
        if known_tokens := self._top_ids_RNK.shape[-1]:
            ids_BK, logp_BK = likeliest(logits_BV, known_tokens)
            self._top_ids_RNK[row_B, at_B], self._top_logp_RNK[row_B, at_B] = ids_BK, logp_BK
        self._lengths_R[row_B] += 1
        ended_B = torch.isin(token_B, self._ends_V) | (at_B + 1 == self.completion_tokens)
        return [place for place, ended in enumerate(ended_B.tolist()) if ended]

    def last(self, rows: Sequence[int]) -> Tensor:
        """(B) the newest token of each of these rows: of the prompt, where nothing has been written yet."""
        row_B = torch.tensor(rows, device=self._tokens_RN.device)
        of_prompt_B = torch.tensor([int(self.prompts[row][-1]) for row in rows], device=row_B.device)
        at_B = self._lengths_R[row_B]
        return torch.where(at_B > 0, self._tokens_RN[row_B, (at_B - 1).clamp(min=0)], of_prompt_B)

    def written(self) -> list[Written]:
        """All completions; each has ended."""
        tokens_RN, logp_RN = self._tokens_RN.cpu().numpy(), self._logp_RN.cpu().numpy()
        return [
            Written(tokens_RN[row, :n].copy(), logp_RN[row, :n].copy(), self._top(row, n))
            for row, n in enumerate(self._lengths_R.tolist())
        ]

    def _top(self, row: int, tokens: int) -> Top | None:
        if not self._top_ids_RNK.shape[-1]:
            return None
        ids_NK, logp_NK = self._top_ids_RNK[row, :tokens], self._top_logp_RNK[row, :tokens]
        return Top(ids_NK.cpu().numpy().astype(np.uint32), logp_NK.cpu().numpy().copy())


def likeliest(logits_XV: Tensor, known_tokens: int) -> tuple[Tensor, Tensor]:
    """(X,K) ids of the likeliest tokens, and their log-probabilities at temperature 1 as they are kept, float16."""
    best_XK, ids_XK = logits_XV.topk(known_tokens, dim=-1)
    logp_XK = (best_XK - logits_XV.logsumexp(-1, keepdim=True)).clamp(min=LEAST_LOGP, max=0)
    return ids_XK.int(), logp_XK.half()


def choose(logits_BV: Tensor, law: Law, coin_B: Tensor) -> tuple[Tensor, Tensor]:
    """(B) the next tokens, and (B) log p of each under the law; TargetError where logits are NaN."""
    if law.greedy:
        best_B, token_B = logits_BV.max(-1)
        logp_B = best_B - best_B  # 0, or NaN where a logit is: max passes it on
    else:
        p_BV = scores(logits_BV, *law).softmax(-1)
        token_B = draw(p_BV, coin_B)
        logp_B = p_BV.gather(1, token_B[:, None])[:, 0].log()
    if logp_B.isnan().any():
        raise TargetError("the target's logits are NaN\n  do: check its weights, or load it in float32")
    return token_B, logp_B


def draw(p_BV: Tensor, coin_B: Tensor) -> Tensor:
    """(B) the first token at which the sum of the probabilities exceeds the coin: never one of probability 0.

    Summed in float64, by blocks first: the sums of all 8 192 tokens took an eighth of the time of decoding.
    """
    p_BKS = pad(p_BV, (0, -p_BV.shape[1] % BLOCK_TOKENS)).unflatten(1, (-1, BLOCK_TOKENS))
    blocks_BK = p_BKS.sum(-1, dtype=torch.float64).cumsum(-1)
    total_B1 = blocks_BK[:, -1:]
    # Below the whole sum, whatever rounding does.
    aim_B1 = (coin_B[:, None] * total_B1).minimum(total_B1.nextafter(torch.zeros_like(total_B1)))
    block_B1 = torch.searchsorted(blocks_BK, aim_B1, right=True)
    before_B1 = torch.where(block_B1 > 0, blocks_BK.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    inside_BS = p_BKS.gather(1, block_B1[:, :, None].expand(-1, -1, BLOCK_TOKENS))[:, 0].double()
    sums_BS = before_B1 + inside_BS.cumsum(-1)
    # Where rounding puts the coin behind the block's last sum, its last token of any probability is meant.
    last_B1 = (BLOCK_TOKENS - 1) - (inside_BS > 0).flip(-1).int().argmax(-1, keepdim=True)
    place_B1 = torch.searchsorted(sums_BS, aim_B1, right=True).minimum(last_B1)
    return (block_B1 * BLOCK_TOKENS + place_B1)[:, 0]


# Readers: the target on the rows in hand.


class _Reader(Protocol):
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
def _reader(target: PreTrainedModel, texts: _Texts) -> Iterator[_Reader]:
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

    def __init__(self, target: PreTrainedModel, texts: _Texts) -> None:
        super().__init__(layers=[])
        self._target, self._texts = target, texts
        tokens = max(map(len, texts.prompts)) + texts.completion_tokens
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
            self._target.base_model(input_ids=inputs, past_key_values=self, use_cache=True)
            self._opened = None

    def next_logits(self) -> Tensor:
        token_B1 = self._texts.last(self.rows)[:, None]
        self._row_B = torch.arange(len(self.rows), device=token_B1.device)
        self._block_B, self._inside_B = self._lengths_B // self._block_tokens, self._lengths_B % self._block_tokens
        self._seen_blocks = int(self._block_B.max()) + 1
        seen_T = torch.arange(self._seen_blocks * self._block_tokens, device=token_B1.device)
        mask_B11T = (seen_T <= self._lengths_B[:, None])[:, None, None]
        output = self._target(
            input_ids=token_B1,
            past_key_values=self,
            use_cache=True,
            attention_mask=mask_B11T,
            position_ids=self._lengths_B[:, None],
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
    found: Tensor = torch.stack([share @ values.flatten(0, 1) for share, values in pieces]).sum(0)
    return found.view(rows, -1, size)


AttentionInterface.register(ATTENTION, _attend)


class _Padded:
    """For targets that remember more, or less, than keys and values: the cache is the target's own.

    Prompts of different lengths are padded on the left, masked, and keep their positions; equal ones need no mask. All
    rows begin and end together: what a row says behind its end is not looked at.
    """

    refills = False

    def __init__(self, target: PreTrainedModel, texts: _Texts) -> None:
        self._target, self._texts = target, texts
        self.rows: list[int] = []
        self._cache: Any = None
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
        masked = {}
        if self._mask_BT is not None:
            position_BT = (self._mask_BT.cumsum(1) - 1).clamp(min=0)[:, -inputs_BT.shape[1] :]
            masked = {"attention_mask": self._mask_BT, "position_ids": position_BT}
        output = self._target(
            input_ids=inputs_BT, past_key_values=self._cache, use_cache=True, logits_to_keep=1, **masked
        )
        self._cache = output.past_key_values
        logits_BV: Tensor = output.logits[:, -1].float()
        return logits_BV


def _refuse_too_long(target: PreTrainedModel, tokens: int) -> None:
    context: int | None = getattr(target.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and tokens > context:
        raise TargetError(
            f"a prompt and its completion take {tokens} tokens, the target's context holds {context}\n"
            f"  do: lower `prompt_tokens` or `completion_tokens` to a sum of {context} at most"
        )
