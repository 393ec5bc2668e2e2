"""Does an export say what its draft says? Opened in its engine, and held against the original in transformers.

Dimensions: B completions, N tokens of one, T tokens of a text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fastdraft.data.shards import Tokens
from fastdraft.evaluate.assisted import decode
from fastdraft.evaluate.one_pass import acceptances, pooled, resampled_prompts
from fastdraft.maths import acceptance
from fastdraft.models.logits_reader import Reader
from fastdraft.results.evaluation import Estimate
from fastdraft.results.export import KeptEfficiency, Proof
from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.system.errors import ProofError

GAMMA = 3  # at which the paper states acceptance (tables 1 and 2)
RESAMPLES = 1000
TOKENS, PROMPTS, COMPLETIONS = 64, 16, 32  # of a greedy text; of prompts; of completions under one distribution


class Opened(Protocol):
    """An export in the engine that reads it."""

    engine: str

    def greedy(self, prompt: Tokens, tokens: int) -> Tokens:
        """So many tokens after a prompt, ends of text among them, by the engine's own greedy decoding."""

    def logits(self, text: Tokens) -> Tensor:
        """(T,V) after each token of a text."""

    def encode(self, text: str) -> list[int]:
        """A text's ids by the tokenizer that the engine has, with whatever it sets before and after."""


class Material(NamedTuple):
    """What an export is tried on: prompts, texts to cut, and what the target is known to have written, if it is."""

    prompts: Sequence[Tokens]
    texts: Sequence[str]
    tokenizer: PreTrainedTokenizerFast
    completions: Sequence[Completion]

    @property
    def longest_tokens(self) -> int:
        """What an engine must hold of one text."""
        return max(len(prompt) for prompt in self.prompts) + TOKENS + max(map(_tokens, self.completions), default=0)


def material(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], completions: Sequence[Completion], context_tokens: int
) -> Material:
    """The prompts of recorded greedy completions where there are any, otherwise probe texts; cut to half a context."""
    greedy = [row.prompt for row in completions if row.sampling.greedy]
    prompts = greedy or [np.array(ids) for text in texts if len(ids := tokenizer(text).input_ids) > 1]
    kept = [
        row
        for sampling in sorted({row.sampling for row in completions})
        for row in _of(sampling, completions)[:COMPLETIONS]
    ]
    return Material([prompt[: context_tokens // 2] for prompt in prompts[:PROMPTS]], texts, tokenizer, kept)


def prove(original: PreTrainedModel, opened: Opened, tried: Material) -> Proof:
    """What is equal and what is not; whether that suffices is for `check` to say."""
    longest = max(len(prompt) for prompt in tried.prompts)
    tokens = min(TOKENS, original.config.get_text_config().max_position_embeddings - longest)
    texts = [original_text(original, prompt, tokens) for prompt in tried.prompts]
    agreeing, gaps = 0, []
    for prompt, text in zip(tried.prompts, texts, strict=True):
        read_NV = opened.logits(np.concatenate([prompt, text[:-1]]))[len(prompt) - 1 :]
        agreeing += int((read_NV.argmax(-1) == torch.from_numpy(text)).sum())
        gaps.append(_gap(original, prompt, text, opened.greedy(prompt, tokens)))
    parted = [gap for gap in gaps if gap is not None]
    return Proof(
        engine=opened.engine,
        prompts=len(texts),
        equal_prompts=len(texts) - len(parted),
        tokens=sum(map(len, texts)),
        agreeing_tokens=agreeing,
        widest_gap=max(parted, default=None),
        texts=len(tried.texts),
        unlike_texts=tuple(t for t in tried.texts if opened.encode(t) != list(tried.tokenizer(t).input_ids)),
        kept=tuple(_kept(original, opened, tried.completions)),
    )


def check(proof: Proof, least_agreement: float, what: str) -> None:
    """ProofError where an export says something else than its draft, more often than its weights explain."""
    if proof.agreement < least_agreement:
        raise ProofError(
            f"{what}: of {proof.tokens} tokens that the draft writes greedily, {proof.engine} puts "
            f"{proof.agreeing_tokens} first ({proof.agreement:.3f}), wanted {least_agreement:g} at least\n"
            f"  do: choose other weights; if they are exact, report it with the draft's config.json"
        )


def original_text(original: PreTrainedModel, prompt: Tokens, tokens: int) -> Tokens:
    """What transformers writes greedily with a model, beyond an end of text too."""
    request = Completion("", prompt, prompt[:0], np.zeros(0, np.float32), SamplingParams(0.0))
    return decode(request, original, None, GAMMA, tokens, frozenset()).tokens


@torch.inference_mode()
def _gap(original: PreTrainedModel, prompt: Tokens, text: Tokens, written: Tokens) -> float | None:
    """By how much the original's logits preferred its own token where another one was written; None: nowhere."""
    differs = np.flatnonzero(text != written)
    if not len(differs):
        return None
    place = int(differs[0])
    ids_1T = torch.from_numpy(np.concatenate([prompt, text[:place]]))[None]
    last_V = original(input_ids=ids_1T.to(original.device), use_cache=False).logits[0, -1].float()
    return float(last_V[text[place]] - last_V[written[place]])


def _kept(original: PreTrainedModel, opened: Opened, completions: Sequence[Completion]) -> Iterator[KeptEfficiency]:
    """Block efficiency before and after, under each distribution."""
    for sampling, group in groupby(completions, key=lambda row: row.sampling):
        rows = list(group)
        yield KeptEfficiency(
            **sampling._asdict(),
            gamma=GAMMA,
            prompts=len(rows),
            original=_block_efficiency(original, rows),
            exported=_block_efficiency(cast(PreTrainedModel, Reader(opened.logits)), rows),
        )


def _block_efficiency(model: PreTrainedModel, rows: Sequence[Completion]) -> Estimate:
    counts = acceptance.chain(*acceptances(model, rows), GAMMA)
    return pooled(counts.tokens_B, counts.forwards_B, resampled_prompts(len(rows), RESAMPLES, seed=0))


def _of(sampling: SamplingParams, completions: Sequence[Completion]) -> list[Completion]:
    return [row for row in completions if row.sampling == sampling]


def _tokens(row: Completion) -> int:
    return len(row.prompt) + len(row.tokens)
