"""Does an export predict what its draft predicts? It is compared in its engine with the original in transformers.

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
from fastdraft.evaluation.assisted import decode
from fastdraft.evaluation.one_pass import acceptances, pooled, resampled_prompts
from fastdraft.maths import acceptance
from fastdraft.models.logits_reader import Reader
from fastdraft.results.evaluation import Estimate
from fastdraft.results.export import KeptEfficiency, Proof
from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.system.errors import ProofError

GAMMA = 3  # the paper states acceptance at this gamma (tables 1 and 2)
RESAMPLES = 1000
# Tokens of a greedy text, number of prompts, and number of completions per sampling setting.
TOKENS, PROMPTS, COMPLETIONS = 64, 16, 32


class Opened(Protocol):
    """An export, opened in its engine."""

    engine: str

    def greedy(self, prompt: Tokens, tokens: int) -> Tokens:
        """The engine's greedy completion of exactly `tokens` tokens; end-of-text tokens do not stop it."""

    def logits(self, text: Tokens) -> Tensor:
        """(T,V) the logits after each token of a text."""

    def encode(self, text: str) -> list[int]:
        """A text's ids by the engine's tokenizer, with the special tokens that it adds."""


class Material(NamedTuple):
    """What an export is compared on: prompts, texts to tokenize, and recorded completions of the target, if any."""

    prompts: Sequence[Tokens]
    texts: Sequence[str]
    tokenizer: PreTrainedTokenizerFast
    completions: Sequence[Completion]

    @property
    def longest_tokens(self) -> int:
        """An upper bound on the tokens of one text, for the engine's context."""
        longest_completion = max((len(row.prompt) + len(row.tokens) for row in self.completions), default=0)
        return max(len(prompt) for prompt in self.prompts) + TOKENS + longest_completion


def material(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], completions: Sequence[Completion], context_tokens: int
) -> Material:
    """Prompts of recorded greedy completions, or probe texts if there are none, cut to half a context."""
    greedy = [row.prompt for row in completions if row.sampling.greedy]
    prompts = greedy or [np.array(ids) for text in texts if len(ids := tokenizer(text).input_ids) > 1]
    kept = [
        row
        for sampling in sorted({row.sampling for row in completions})
        for row in [row for row in completions if row.sampling == sampling][:COMPLETIONS]
    ]
    return Material([prompt[: context_tokens // 2] for prompt in prompts[:PROMPTS]], texts, tokenizer, kept)


def prove(original: PreTrainedModel, opened: Opened, material: Material) -> Proof:
    """Compare an export with the original draft; `check` decides whether they agree well enough."""
    longest = max(len(prompt) for prompt in material.prompts)
    tokens = min(TOKENS, original.config.get_text_config().max_position_embeddings - longest)
    texts = [original_text(original, prompt, tokens) for prompt in material.prompts]
    agreeing_tokens, gaps = 0, []
    for prompt, text in zip(material.prompts, texts, strict=True):
        logits_NV = opened.logits(np.concatenate([prompt, text[:-1]]))[len(prompt) - 1 :]
        agreeing_tokens += int((logits_NV.argmax(-1) == torch.from_numpy(text)).sum())
        gaps.append(_gap(original, prompt, text, opened.greedy(prompt, tokens)))
    differing = [gap for gap in gaps if gap is not None]
    return Proof(
        engine=opened.engine,
        prompts=len(texts),
        equal_prompts=len(texts) - len(differing),
        tokens=sum(map(len, texts)),
        agreeing_tokens=agreeing_tokens,
        widest_gap=max(differing, default=None),
        texts=len(material.texts),
        unlike_texts=tuple(t for t in material.texts if opened.encode(t) != list(material.tokenizer(t).input_ids)),
        kept=tuple(_kept(original, opened, material.completions)),
    )


def check(proof: Proof, least_agreement: float, name: str) -> None:
    """ProofError if fewer greedy tokens agree than the weight precision explains."""
    if proof.agreement < least_agreement:
        raise ProofError(
            f"{name}: of {proof.tokens} tokens that the draft writes greedily, {proof.engine} ranks "
            f"{proof.agreeing_tokens} first ({proof.agreement:.3f}), wanted at least {least_agreement:g}\n"
            f"  do: choose other weights; if they are exact, report it with the draft's config.json"
        )


def original_text(original: PreTrainedModel, prompt: Tokens, tokens: int) -> Tokens:
    """A greedy completion in transformers; end-of-text tokens do not stop it."""
    request = Completion("", prompt, prompt[:0], np.zeros(0, np.float32), SamplingParams(0.0))
    return decode(request, original, None, GAMMA, tokens, frozenset()).tokens


@torch.inference_mode()
def _gap(original: PreTrainedModel, prompt: Tokens, text: Tokens, written: Tokens) -> float | None:
    """The original's logit of its own token minus that of the export's, where the texts first differ; else None."""
    differs = np.flatnonzero(text != written)
    if not len(differs):
        return None
    first = int(differs[0])
    ids_1T = torch.from_numpy(np.concatenate([prompt, text[:first]]))[None]
    last_V = original(input_ids=ids_1T.to(original.device), use_cache=False).logits[0, -1].float()
    return float(last_V[text[first]] - last_V[written[first]])


def _kept(original: PreTrainedModel, opened: Opened, completions: Sequence[Completion]) -> Iterator[KeptEfficiency]:
    """Block efficiency before and after the export, for each sampling setting."""
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
