"""The card of an export, and in it the proof that the export reproduces the draft."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from fastdraft.results.evaluation import Estimate, Result
from fastdraft.system.cards import Card


class KeptEfficiency(Result):
    """Block efficiency of the draft and of its export, in one pass over the same completions of the target."""

    temperature: float
    top_k: int
    top_p: float
    gamma: int
    prompts: int
    original: Estimate
    exported: Estimate


class EngineAcceptance(Result):
    """An engine whose rule accepts the draft for this target, and the figures that the rule compares."""

    engine: str
    why: str


class Proof(Result):
    """The export in its engine compared with the draft in transformers, float32.

    equal_prompts: number of prompts whose greedy texts are equal in all their tokens (`tokens` / `prompts` each).
    agreeing_tokens: number of tokens of the draft's texts that are the export's most likely ones in the same context.
    widest_gap: largest difference of the draft's logits of the two tokens at which texts differ; None if none does.
    unlike_texts: probe texts to which the engine's tokenizer gives other ids than the target's.
    """

    engine: str
    prompts: int
    equal_prompts: int
    tokens: int
    agreeing_tokens: int
    widest_gap: float | None
    texts: int
    unlike_texts: tuple[str, ...]
    kept: tuple[KeptEfficiency, ...]

    @property
    def agreement(self) -> float:
        """The fraction of tokens on which draft and export agree."""
        return self.agreeing_tokens / self.tokens


class ExportCard(Card):
    """A draft in the format of an engine.

    target_licence: the hub id of the licence of the draft's target; None if unknown.
    files: size in bytes of each file next to the card.
    """

    kind: ClassVar[str] = "export"
    left_out: ClassVar[tuple[str, ...]] = ("README.md", "recipe.yaml", "LICENSE*", "NOTICE*", "USE_POLICY*")
    format: str
    weights: str
    draft: str
    target: str
    target_revision: str | None
    target_digest: str
    target_licence: str | None = None
    files: dict[str, int]
    notes: tuple[str, ...]
    accepted: tuple[EngineAcceptance, ...]
    proof: Proof

    def path_for_engine(self, folder: Path) -> Path:
        """The path that engines open: the folder, or the file of a GGUF export."""
        names = [name for name in self.files if name.endswith(".gguf")] if self.format == "gguf" else []
        return folder / names[0] if names else folder
