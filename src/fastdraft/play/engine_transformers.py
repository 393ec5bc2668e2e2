"""The playground in transformers: speculative decoding in this process, one block at a time, with KV caches.

Dimensions: T tokens, G drafted tokens, G1 = gamma + 1, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from fastdraft.maths.sampling import draw_tokens, warp
from fastdraft.maths.verification import Block as Verified
from fastdraft.maths.verification import accept_greedy, accept_sampled
from fastdraft.models.pretrained import cache_name
from fastdraft.play.blocks import Block, Request, Side
from fastdraft.synthesize.completions import SamplingParams


class Transformers:
    """A pair of transformers models."""

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

    def blocks(self, request: Request, side: Side) -> Iterator[Block]:
        """One block per target forward. The plain side drafts nothing."""
        generator = torch.Generator().manual_seed(request.seed)
        target, draft = _CachedModel(self._target), _CachedModel(self._draft)
        text, seconds, left = request.prompt.tolist(), 0.0, request.max_new_tokens
        while left:
            started = perf_counter()
            gamma = min(request.gamma, left - 1) if side == "drafted" else 0
            drafted, draft_probs = _propose(draft, text, gamma, request.sampling, generator)
            logits_G1V = target.logits([*text, *drafted], gamma + 1)
            verified = _verify(logits_G1V, drafted, draft_probs, request.sampling, generator)
            tokens = verified.emitted.tolist()
            ends = [position for position, token in enumerate(tokens) if token in self._eos]
            if ends:
                tokens = tokens[: ends[0] + 1]
            for model in (target, draft):
                model.crop(len(text) + verified.accepted)
            seconds += perf_counter() - started
            text += tokens
            left = 0 if ends else left - len(tokens)
            yield Block(tuple(tokens), verified.accepted, gamma, seconds)


@torch.inference_mode()
def _propose(
    draft: _CachedModel, text: Sequence[int], gamma: int, sampling: SamplingParams, generator: torch.Generator
) -> tuple[list[int], list[Tensor]]:
    """`gamma` drafted tokens and the (V) distribution of each; greedy needs no distribution."""
    drafted: list[int] = []
    draft_probs: list[Tensor] = []
    for _ in range(gamma):
        (logits_V,) = draft.logits([*text, *drafted], 1)
        coin = torch.rand(1, generator=generator, dtype=torch.float64)
        if sampling.greedy:
            drafted.append(int(logits_V.argmax()))
        else:
            draft_probs.append(warp(logits_V, *sampling).exp())
            drafted.append(int(draw_tokens(draft_probs[-1][None], coin)))
    return drafted, draft_probs


@torch.inference_mode()
def _verify(
    logits_G1V: Tensor,
    drafted: list[int],
    draft_probs: list[Tensor],
    sampling: SamplingParams,
    generator: torch.Generator,
) -> Verified:
    """Accept or reject the drafted tokens."""
    draft_G = torch.tensor(drafted, dtype=torch.long)
    if sampling.greedy:
        return accept_greedy(logits_G1V.argmax(-1), draft_G)
    p_G1V = warp(logits_G1V, *sampling).exp()
    q_GV = torch.stack(draft_probs) if draft_probs else p_G1V[:0]
    coin_G1 = torch.rand(len(drafted) + 1, generator=generator, dtype=torch.float64)
    return accept_sampled(p_G1V, q_GV, draft_G, coin_G1)


class _CachedModel:
    """A model with the KV cache of the text that it has read."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._cache, self._cached_tokens = model, DynamicCache(config=model.config), 0
        self._cache_name = cache_name(model)

    @torch.inference_mode()
    def logits(self, text: Sequence[int], last: int) -> Tensor:
        """(last,V) float32 logits after each of the last tokens of a text. The text must extend the cached one."""
        new_tokens = torch.tensor([text[self._cached_tokens :]], device=self._model.device)
        cache = {self._cache_name: self._cache, "use_cache": True}
        output = self._model(input_ids=new_tokens, logits_to_keep=min(last, new_tokens.shape[1]), **cache)
        self._cached_tokens = len(text)
        logits_TV: Tensor = output.logits[0, -last:].float().cpu()
        return logits_TV

    def crop(self, tokens: int) -> None:
        """Drop the cache after this many tokens."""
        if self._cached_tokens > tokens:
            self._cache.crop(tokens - self._cached_tokens)  # negative: the number of tokens to remove
            self._cached_tokens = tokens
