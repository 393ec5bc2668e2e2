"""The target completes prompts in this process: batched decoding with a cache, a coin of its own for every token.

The coins of a row come from its key, so what a row says depends on neither its batch nor its place in it (up to the
rounding of batched arithmetic). A batch is stored whole, or not at all: a killed run goes on where it stood.

Dimensions: B rows of a batch, T tokens so far, N tokens of a completion, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from fastdraft.corpus.shards import Tokens
from fastdraft.errors import TargetError
from fastdraft.maths.law import warp
from fastdraft.progress import Bar
from fastdraft.synthesize.completions import (
    Completion,
    CompletionStore,
    Law,
    LogProbabilities,
    Request,
    row_key,
)


class Decoding(NamedTuple):
    """How requests are answered."""

    completion_tokens: int
    eos: frozenset[int]
    seed: int
    target_revision: str
    batch_prompts: int


class Written(NamedTuple):
    """(n) tokens of a completion, the end-of-text token included, and (n) log p of each under its law."""

    tokens: Tokens
    logp: LogProbabilities


class Keyed(NamedTuple):
    """A request and its key."""

    key: str
    request: Request


def complete(
    target: PreTrainedModel, requests: Sequence[Request], decoding: Decoding, store: CompletionStore, what: str
) -> list[Completion]:
    """The completion of each request, in their order, from the store or else from the target; `what` names the bar.

    TargetError where the target's first batch ever says nothing but end-of-text.
    """
    keyed = [
        Keyed(row_key(r, decoding.completion_tokens, decoding.seed, decoding.target_revision), r) for r in requests
    ]
    stored = store.keys()
    with Bar(what, len(keyed), "completions", sum(row.key in stored for row in keyed)) as bar:
        for batch in _batches(keyed, decoding.batch_prompts):
            missing = {row.key for row in batch} - stored
            # The whole batch is decoded even if a part is stored: the same batch gives the same bits.
            written = _answer(target, batch, decoding) if missing else []
            if missing and not stored:
                _refuse_silence(written, decoding)
            if missing:
                store.write([row for row in written if row.key in missing])
            stored |= missing
            bar.advance(len(missing))
    return store.read([row.key for row in keyed])


@torch.inference_mode()
def generate(
    target: PreTrainedModel,
    prompts: Sequence[Tokens],
    law: Law,
    completion_tokens: int,
    eos: frozenset[int],
    coins_BN: Tensor,
) -> list[Written]:
    """What the target writes after each prompt, up to and including its first end-of-text token.

    coins_BN: uniform on [0, 1), float64, one for every token of every row; not looked at where the law is greedy.
    """
    _refuse_too_long(target, max(map(len, prompts)) + completion_tokens)
    ends_V = torch.tensor(sorted(eos), dtype=torch.long, device=target.device)
    tokens: list[Tensor] = []
    logp: list[Tensor] = []
    reader = _Reader(target, prompts)
    running_B = torch.ones(len(prompts), dtype=torch.bool, device=target.device)
    for coin_B in coins_BN[:, :completion_tokens].to(target.device).unbind(1):
        token_B, logp_B = _choose(reader.logits_BV, law, coin_B)
        tokens.append(token_B)
        logp.append(logp_B)
        running_B &= ~torch.isin(token_B, ends_V)
        if len(tokens) == completion_tokens or not running_B.any():
            break
        reader.read(token_B[:, None])
    return _until_end(torch.stack(tokens, 1).cpu(), torch.stack(logp, 1).cpu(), ends_V.cpu())


class _Reader:
    """The target on the texts so far: reads tokens, keeps the cache, holds the logits of what comes next.

    Prompts of different lengths are padded on the left, masked, and keep their positions; equal ones need no mask.
    """

    def __init__(self, target: PreTrainedModel, prompts: Sequence[Tokens]) -> None:
        longest = max(map(len, prompts))
        inputs_BT = np.stack([np.pad(prompt, (longest - len(prompt), 0)) for prompt in prompts])
        mask_BT = np.stack([np.arange(longest) >= longest - len(prompt) for prompt in prompts])
        self._target = target
        self._cache: Cache | None = None
        self._mask_BT = None if mask_BT.all() else torch.from_numpy(mask_BT).long().to(target.device)
        self.logits_BV = self._forward(torch.from_numpy(inputs_BT).to(target.device))

    def read(self, token_B1: Tensor) -> None:
        """One more token of each text."""
        if self._mask_BT is not None:
            self._mask_BT = torch.cat([self._mask_BT, torch.ones_like(token_B1)], dim=1)
        self.logits_BV = self._forward(token_B1)

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
        if logits_BV.isnan().any():
            raise TargetError("the target's logits are NaN\n  do: check its weights, or load it in float32")
        return logits_BV


def _choose(logits_BV: Tensor, law: Law, coin_B: Tensor) -> tuple[Tensor, Tensor]:
    """(B) the next tokens, and (B) log p of each under the law."""
    if law.greedy:
        token_B = logits_BV.argmax(-1)
        return token_B, torch.zeros_like(token_B, dtype=torch.float32)
    logp_BV = warp(logits_BV, *law)
    cdf_BV = logp_BV.double().exp().cumsum(-1)
    # The first token at which the sum exceeds the coin: never one of probability 0.
    token_B1 = torch.searchsorted(cdf_BV, coin_B[:, None] * cdf_BV[:, -1:], right=True)
    return token_B1[:, 0], logp_BV.gather(1, token_B1)[:, 0]


def _until_end(tokens_BN: Tensor, logp_BN: Tensor, ends_V: Tensor) -> list[Written]:
    """The rows without what was decoded after their first end-of-text token."""
    ended_before_BN = torch.isin(tokens_BN, ends_V).long().cumsum(1).roll(1, 1)
    ended_before_BN[:, 0] = 0
    lengths = (ended_before_BN == 0).sum(1).tolist()
    return [
        Written(token_N[:n].numpy(), logp_N[:n].numpy())
        for token_N, logp_N, n in zip(tokens_BN, logp_BN, lengths, strict=True)
    ]


def _batches(keyed: Sequence[Keyed], batch_prompts: int) -> Iterator[list[Keyed]]:
    """Batches of one law each, the laws in the order of their first request."""
    if len({row.key for row in keyed}) < len(keyed):
        raise ValueError("two requests have one key; wanted another `index` for each sample of one prompt")
    order = {law: place for place, law in enumerate(dict.fromkeys(row.request.law for row in keyed))}
    by_law = sorted(keyed, key=lambda row: order[row.request.law])
    for _, group in groupby(by_law, key=lambda row: row.request.law):
        rows = list(group)
        for start in range(0, len(rows), batch_prompts):
            yield rows[start : start + batch_prompts]


def _answer(target: PreTrainedModel, batch: Sequence[Keyed], decoding: Decoding) -> list[Completion]:
    """The completions of one batch."""
    coins_BN = np.stack(
        [np.random.default_rng([decoding.seed, int(row.key, 16)]).random(decoding.completion_tokens) for row in batch]
    )
    prompts, law = [row.request.prompt for row in batch], batch[0].request.law
    rows = generate(target, prompts, law, decoding.completion_tokens, decoding.eos, torch.from_numpy(coins_BN))
    return [
        Completion(row.key, row.request.prompt, written.tokens, written.logp, law, row.request.index)
        for row, written in zip(batch, rows, strict=True)
    ]


def _refuse_silence(written: Sequence[Completion], decoding: Decoding) -> None:
    if decoding.completion_tokens > 1 and all(len(row.tokens) == 1 for row in written):
        raise TargetError(
            f"the target answered each of the first {len(written)} prompts with the end-of-text token alone\n"
            f"  do: check the target's weights and its end-of-text ids {sorted(decoding.eos)}, and how prompts begin"
        )


def _refuse_too_long(target: PreTrainedModel, tokens: int) -> None:
    context: int | None = getattr(target.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and tokens > context:
        raise TargetError(
            f"a prompt and its completion take {tokens} tokens, the target's context holds {context}\n"
            f"  do: lower `prompt_tokens` or `completion_tokens` to a sum of {context} at most"
        )
