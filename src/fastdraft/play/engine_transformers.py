"""Speculative decoding in this process, a block at a time: both models keep what they have read.

Dimensions: T tokens, G drafted tokens, G1 = gamma + 1, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from fastdraft.maths.sampling import warp
from fastdraft.maths.verification import Block as Verdict
from fastdraft.maths.verification import accept_greedy, accept_sampled
from fastdraft.models.target import cache_name
from fastdraft.play.blocks import Asked, Block, Side
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.synthesize.token_sampling import draw


class Transformers:
    """A pair of models of transformers."""

    name, interleaves, keeps_distribution = "transformers", True, True

    def __init__(
        self,
        target: PreTrainedModel,
        draft: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        eos: frozenset[int],
        context_tokens: int,
    ) -> None:
        self._target, self._draft, self._eos = target, draft, eos
        self.tokenizer, self.context_tokens = tokenizer, context_tokens

    def blocks(self, asked: Asked, side: Side) -> Iterator[Block]:
        """One target forward each; plainly, nothing is drafted."""
        dice = torch.Generator().manual_seed(asked.seed)
        target, draft = _Reader(self._target), _Reader(self._draft)
        text, seconds, left = asked.prompt.tolist(), 0.0, asked.tokens
        while left:
            started = perf_counter()
            gamma = min(asked.gamma, left - 1) if side == "drafted" else 0
            drafted, draft_probs = self._proposed(draft, text, gamma, asked.sampling, dice)
            verdict = _verified(target.read([*text, *drafted], gamma + 1), drafted, draft_probs, asked.sampling, dice)
            tokens = self._until_end(verdict.emitted.tolist())
            for reader in (target, draft):
                reader.forget(len(text) + verdict.accepted)
            seconds += perf_counter() - started
            text += tokens
            left = 0 if tokens[-1] in self._eos else left - len(tokens)
            yield Block(tuple(tokens), verdict.accepted, gamma, seconds)

    @torch.inference_mode()
    def _proposed(
        self, draft: _Reader, text: Sequence[int], gamma: int, sampling: SamplingParams, dice: torch.Generator
    ) -> tuple[list[int], list[Tensor]]:
        """Gamma tokens, and (V) the distribution of each."""
        drafted: list[int] = []
        draft_probs: list[Tensor] = []
        for _ in range(gamma):
            (logits_V,) = draft.read([*text, *drafted], 1)
            draft_probs.append(logits_V if sampling.greedy else warp(logits_V, *sampling).exp())
            coin = torch.rand(1, generator=dice, dtype=torch.float64)
            drafted.append(int(logits_V.argmax() if sampling.greedy else draw(draft_probs[-1][None], coin)))
        return drafted, draft_probs

    def _until_end(self, tokens: list[int]) -> list[int]:
        ends = [place for place, token in enumerate(tokens) if token in self._eos]
        return tokens[: ends[0] + 1] if ends else tokens


@torch.inference_mode()
def _verified(
    logits_G1V: Tensor, drafted: list[int], draft_probs: list[Tensor], sampling: SamplingParams, dice: torch.Generator
) -> Verdict:
    """What the target makes of a draft."""
    draft_G = torch.tensor(drafted, dtype=torch.long)
    if sampling.greedy:
        return accept_greedy(logits_G1V.argmax(-1), draft_G)
    p_G1V = warp(logits_G1V, *sampling).exp()
    q_GV = torch.stack(draft_probs) if draft_probs else p_G1V[:0]
    coin_G1 = torch.rand(len(drafted) + 1, generator=dice, dtype=torch.float64)
    return accept_sampled(p_G1V, q_GV, draft_G, coin_G1)


class _Reader:
    """A model and what it has read of a text."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._cache, self._read_tokens = model, DynamicCache(config=model.config), 0
        self._cache_name = cache_name(model)

    @torch.inference_mode()
    def read(self, text: Sequence[int], last: int) -> Tensor:
        """(last,V) float32 logits behind the last tokens of a text of which the beginning was read before."""
        fresh = torch.tensor([text[self._read_tokens :]], device=self._model.device)
        cached = {self._cache_name: self._cache, "use_cache": True}
        output = self._model(input_ids=fresh, logits_to_keep=min(last, fresh.shape[1]), **cached)
        self._read_tokens = len(text)
        logits_TV: Tensor = output.logits[0, -last:].float().cpu()
        return logits_TV

    def forget(self, tokens: int) -> None:
        """All behind so many tokens."""
        if self._read_tokens > tokens:
            self._cache.crop(tokens - self._read_tokens)  # negative: the number of tokens to remove
            self._read_tokens = tokens
