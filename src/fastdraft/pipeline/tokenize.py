"""`tokenize`: the recipe's sources as token shards."""

from __future__ import annotations

from pathlib import Path

from fastdraft.data.tokenize import write_source, write_tokenizer
from fastdraft.models import target
from fastdraft.models.run_context import RunContext
from fastdraft.pipeline.stage_result import StageResult


def make_tokens(run_context: RunContext, folder: Path) -> StageResult:
    """SOURCE/{train,held_out}/shards, and tokenizer.json, which frames documents as the target saw them."""
    recipe, card = run_context.recipe, run_context.target_card()
    frame = folder / "tokenizer.json"
    tokenizer = target.open_tokenizer(recipe.target).backend_tokenizer
    write_tokenizer(tokenizer, frame, card.bos_id if card.adds_bos else None, card.eos_ids[0])
    sources = {
        name: write_source(name, part, recipe.tokenize, frame, folder / name, recipe.seed)
        for name, part in recipe.corpus.items()
    }
    return StageResult({"sources": sources}, sum(card.train.tokens + card.held_out.tokens for card in sources.values()))
