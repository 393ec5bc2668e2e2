"""The model card of the demo target: its training data with licences, and its quality as measured here."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelCardData
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from fastdraft.data.corpus_card import CorpusCard
from fastdraft.data.order import IGNORED, ShardSequences
from fastdraft.data.package_licences import licensed_packages
from fastdraft.data.shards import Shards
from fastdraft.maths.divergence import cross_entropy, masked_sum
from fastdraft.models.draft import DraftCard
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.synthesize.generate import generate
from fastdraft.synthesize.prompts import document_prompts
from fastdraft.synthesize.repetition import loops, pooled_repeats
from fastdraft.system.cards import read_card

# The phases of recipes/demo-target.yaml. The weights of the last one are packaged.
PHASES = ("pretrain", "continue")
CONTEXT_TOKENS = 512
PROMPTS, PROMPT_TOKENS, MAX_NEW_TOKENS = 128, 64, 128


def model_card(folder: Path, run: Path) -> str:
    """The text of the card for the model in `folder`, which `run` trained."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    corpus = read_card(run / "tokenize", CorpusCard)
    trained = [read_card(run / phase, DraftCard) for phase in PHASES]
    tokens = sum(draft.trained_tokens for draft in trained)
    minutes = sum(draft.cost.seconds for draft in trained) / 60
    quality = "\n".join(
        _quality_row(name, model, Shards(run / "tokenize" / name / "held_out" / "shards", source.held_out))
        for name, source in corpus.sources.items()
    )
    packages = "\n".join(f"| {p.name} | {p.version} | {p.licence} |" for p in licensed_packages())
    data = ModelCardData(license="apache-2.0", language="en", library_name="transformers", tags=["python", "demo"])
    text = f"""---
{data.to_yaml()}
---

# The demo target of FastDraft

A small Llama of Python source and docstrings, {model.num_parameters():,} parameters, bf16, so that the whole pipeline
can be run on a laptop. FastDraft's own training loop trained it from random weights: `recipes/demo-target.yaml`,
{tokens:,} tokens in {minutes:.0f} minutes on a CPU. It writes plausible Python and is
good for nothing else.

## Measured on documents that it has not seen

Files are held out by the hash of their content. A held-out file is dropped if at least half of its three-line runs
occur in the training files ({" and ".join(f"{s.near_duplicates_dropped} of {n}" for n, s in corpus.sources.items())}).
Nats per token are over all held-out files at a context of {CONTEXT_TOKENS} tokens. Repetition is measured in {PROMPTS}
greedy continuations of {MAX_NEW_TOKENS} tokens, each after {PROMPT_TOKENS} tokens of a held-out file.

| | held-out tokens | nats per token | repeated 8-grams, greedy | completions that loop |
|---|---|---|---|---|
{quality}

## Trained on

The Python sources (`code`, three quarters of the tokens) and their docstrings (`text`, a quarter) of the standard
library of Python {platform.python_version()} (PSF-2.0) and of these packages, all with permissive licences, without
tests and vendored code:

| package | version | licence as declared |
|---|---|---|
{packages}
"""
    return str(ModelCard(text))


def _quality_row(name: str, model: PreTrainedModel, shards: Shards) -> str:
    generator = np.random.default_rng(0)
    prompts = list(document_prompts(shards, PROMPTS, PROMPT_TOKENS, 1, generator, bos=None))
    coins_BN = torch.zeros(PROMPTS, MAX_NEW_TOKENS, dtype=torch.float64)
    completions = [
        row.tokens for row in generate(model, prompts, SamplingParams(0.0), MAX_NEW_TOKENS, frozenset({0}), coins_BN)
    ]
    looping = float(np.mean([loops(tokens) for tokens in completions]))
    nats = held_out_nats(model, shards)
    return f"| {name} | {shards.tokens:,} | {nats:.3f} | {pooled_repeats(completions):.1%} | {looping:.1%} |"


@torch.inference_mode()
def held_out_nats(model: PreTrainedModel, shards: Shards) -> float:
    """Nats per token over all tokens of the shards."""
    rows = ShardSequences(shards, CONTEXT_TOKENS)
    total, tokens = 0.0, 0
    for start in range(0, len(rows), 8):
        pairs = [rows[i] for i in range(start, min(start + 8, len(rows)))]
        labels_BT: Tensor = torch.stack([labels for _, labels in pairs])
        logits_BTV = model(input_ids=torch.stack([inputs for inputs, _ in pairs]), use_cache=False).logits
        mask_BT = labels_BT != IGNORED
        total += float(masked_sum(cross_entropy(logits_BTV, labels_BT.where(mask_BT, 0)), mask_BT))
        tokens += int(mask_BT.sum())
    return total / tokens
