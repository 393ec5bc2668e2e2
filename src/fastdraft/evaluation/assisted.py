"""Speculative decoding by transformers: one prompt at a time, blocks of a fixed gamma, target forwards counted.

Forwards are counted as in docs/maths.md. In transformers 5.5 (`_assisted_decoding`), the first block starts at the
first token of the completion, and its target forward also reads the prompt. With r <= gamma tokens left, transformers
drafts r - 1 tokens and the target adds the last one, so the text ends with the same forward as after a whole block. A
drafted end-of-text token ends the draft there, and ends the text if it is accepted.

Dimensions: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.utils import logging

from fastdraft.data.shards import Tokens
from fastdraft.maths.sampling import warp
from fastdraft.synthesize.completions import Completion, SamplingParams


@dataclass(frozen=True)
class DecodedText:
    """Generated tokens, and the number of target forwards that generated them."""

    tokens: Tokens
    forwards: int


def decode(
    completion: Completion,
    target: PreTrainedModel,
    draft: PreTrainedModel | None,
    gamma: int,
    max_new_tokens: int,
    eos: frozenset[int],
) -> DecodedText:
    """Decode a completion's prompt again with its sampling parameters, in a batch of one; `draft` None: no drafting."""
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    hook = target.register_forward_hook(count)
    try:
        tokens = generate(completion.prompt, completion.sampling, target, max_new_tokens, eos, draft=draft, gamma=gamma)
    finally:
        hook.remove()
    return DecodedText(tokens, forwards)


def generate(
    prompt: Tokens,
    sampling: SamplingParams,
    target: PreTrainedModel,
    max_new_tokens: int,
    eos: frozenset[int],
    *,
    draft: PreTrainedModel | None = None,
    gamma: int | None = None,
    prompt_lookup: Mapping[str, int] = MappingProxyType({}),
) -> Tokens:
    """The tokens generated after a prompt, in a batch of one; `prompt_lookup`: transformers' options for it."""
    prompt_1T = torch.from_numpy(prompt)[None].to(target.device)
    model: Any = target  # `generate` comes from a mixin that PreTrainedModel's type does not include
    target_config = GenerationConfig(
        **prompt_lookup,
        do_sample=not sampling.greedy,
        top_k=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(eos) or None,
        pad_token_id=min(eos, default=0),
    )
    draft_config = GenerationConfig(
        num_assistant_tokens=gamma,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,  # the default of 0.4 cuts blocks short
    )
    processors = LogitsProcessorList([] if sampling.greedy else [_Warp(sampling)])
    with _without_warnings(), _generation_config(target, target_config), _generation_config(draft, draft_config):
        text_1T: Tensor = model.generate(
            prompt_1T,
            attention_mask=torch.ones_like(prompt_1T),
            assistant_model=draft,
            logits_processor=processors,
        )
    return cast(Tokens, text_1T[0, prompt_1T.shape[1] :].cpu().numpy())


class _Warp(LogitsProcessor):
    """Temperature, top-k and top-p as one processor for target and draft.

    They are not set in the generation config, because transformers (read in 5.5.4) then warps the draft twice: with the
    target's processors and with its own. At T = 0.7 it drafted at T = 0.49, which lowered block efficiency from 1.90 to
    1.73 (gamma 3).
    """

    def __init__(self, sampling: SamplingParams) -> None:
        self._sampling = sampling

    def __call__(self, _: torch.LongTensor, scores_BV: torch.FloatTensor) -> torch.FloatTensor:
        return cast(torch.FloatTensor, warp(scores_BV, *self._sampling))


@contextmanager
def _generation_config(model: PreTrainedModel | None, config: GenerationConfig) -> Iterator[None]:
    """Replace a model's generation config for a while, so that none of its own settings (penalties) take effect."""
    if model is None:
        yield
        return
    original = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = original


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence transformers: it warns about a top_k that greedy decoding ignores, and twice a block about lengths."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
