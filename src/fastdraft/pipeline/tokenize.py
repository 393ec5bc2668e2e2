"""`tokenize`: the recipe's sources as token shards."""

from __future__ import annotations

from pathlib import Path

from fastdraft.data.tokenize import write_source, write_tokenizer
from fastdraft.models import pretrained
from fastdraft.models.run_context import RunContext
from fastdraft.pipeline.stage_result import StageResult


def make_tokens(run_context: RunContext, folder: Path) -> StageResult:
    """SOURCE/{train,held_out}/shards, and tokenizer.json, which adds the target's special tokens to each document."""
    recipe, card = run_context.recipe, run_context.target_card()
    tokenizer_file = folder / "tokenizer.json"
    tokenizer = pretrained.open_tokenizer(recipe.target).backend_tokenizer
    write_tokenizer(tokenizer, tokenizer_file, card.added_bos_id, card.eos_ids[0])
    sources = {
        name: write_source(name, part, recipe.tokenize, tokenizer_file, folder / name, recipe.seed, folder)
        for name, part in recipe.corpus.items()
    }
    return StageResult({"sources": sources}, sum(card.train.tokens + card.held_out.tokens for card in sources.values()))
