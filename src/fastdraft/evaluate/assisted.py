"""Speculative decoding as transformers runs it: one prompt at a time, blocks of a fixed gamma, target forwards counted.

Forwards are counted as in docs/maths.md. Read in transformers 5.0, `_assisted_decoding`: the first block opens at the
first token of the completion, its target forward reads the prompt too; where r <= gamma tokens are left it drafts
r - 1 and the target adds the last, which ends the text with the same forward as a whole block would; a drafted
end-of-text token ends the draft there, and the text if it is accepted.

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
class Run:
    """The tokens that one run wrote, and the target forwards it took."""

    tokens: Tokens
    forwards: int


def decode(
    completion: Completion,
    target: PreTrainedModel,
    draft: PreTrainedModel | None,
    gamma: int,
    max_new_tokens: int,
    eos: frozenset[int],
) -> Run:
    """A completion's prompt decoded anew under its distribution, alone in its batch; without a draft, plainly."""
    with _counted(target) as forwards:
        tokens = generated(completion.prompt, completion.sampling, target, max_new_tokens, eos, draft, gamma)
    return Run(tokens, len(forwards))


def generated(
    prompt: Tokens,
    sampling: SamplingParams,
    target: PreTrainedModel,
    max_new_tokens: int,
    eos: frozenset[int],
    draft: PreTrainedModel | None = None,
    gamma: int | None = None,
    lookup: Mapping[str, int] = MappingProxyType({}),
) -> Tokens:
    """What follows a prompt, alone in its batch; `lookup` are transformers' settings of prompt lookup."""
    prompt_1T = torch.from_numpy(prompt)[None].to(target.device)
    model: Any = target  # its `generate` comes from a mixin that PreTrainedModel does not name
    blocks = GenerationConfig(
        num_assistant_tokens=gamma,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,  # 0.4, its default, cuts blocks short
    )
    with _quiet(), _set(target, _settings(sampling, max_new_tokens, eos, lookup)), _set(draft, blocks):
        text_1T: Tensor = model.generate(
            prompt_1T,
            attention_mask=torch.ones_like(prompt_1T),
            assistant_model=draft,
            logits_processor=LogitsProcessorList([] if sampling.greedy else [_Warp(sampling)]),
        )
    return cast(Tokens, text_1T[0, prompt_1T.shape[1] :].cpu().numpy())


class _Warp(LogitsProcessor):
    """The distribution, for target and draft alike.

    Not given as temperature, top_k and top_p: transformers 5.0 then warps the draft twice, once by the target's
    processors and once by its own. At T = 0.7 it drafted at 0.49: block efficiency 1.73 for 1.90, gamma 3.
    """

    def __init__(self, sampling: SamplingParams) -> None:
        self._sampling = sampling

    def __call__(self, _: torch.LongTensor, scores_BV: torch.FloatTensor) -> torch.FloatTensor:
        return cast(torch.FloatTensor, warp(scores_BV, *self._sampling))


def _settings(
    sampling: SamplingParams, max_new_tokens: int, eos: frozenset[int], lookup: Mapping[str, int]
) -> GenerationConfig:
    """transformers' settings: lengths and ends, and what is looked up; no distribution."""
    return GenerationConfig(
        **lookup,
        do_sample=not sampling.greedy,
        top_k=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(eos) or None,
        pad_token_id=min(eos, default=0),
    )


@contextmanager
def _set(model: PreTrainedModel | None, settings: GenerationConfig) -> Iterator[None]:
    """A model, if there is one, under other settings; of its own, such as a repetition penalty, none enters."""
    if model is None:
        yield
        return
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its warnings: of a top_k that greedy decoding ignores; two a block, of lengths it sets."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def _counted(model: PreTrainedModel) -> Iterator[list[None]]:
    """A list that grows by one entry with each forward of the model."""
    forwards: list[None] = []
    hook = model.register_forward_hook(lambda *_: forwards.append(None))
    try:
        yield forwards
    finally:
        hook.remove()
