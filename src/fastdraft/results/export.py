"""What an export hands on: its card, and in it the proof that the file says what the draft says."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from fastdraft.results.evaluation import Estimate, Result
from fastdraft.system.cards import Card


class Kept(Result):
    """Block efficiency of the draft and of its export, one pass over the same completions of the target."""

    temperature: float
    top_k: int
    top_p: float
    gamma: int
    prompts: int
    original: Estimate
    exported: Estimate


class Accepted(Result):
    """An engine's own rule for a draft of this target, with its figures."""

    engine: str
    why: str


class Proof(Result):
    """The export in its engine beside the original draft in transformers, float32.

    equal_prompts: greedy texts of `tokens` over `prompts` tokens each that are equal to the last token.
    agreeing_tokens: of all those tokens, how many the export puts first when it reads the original's texts.
    widest_gap: where texts part, by how much the original's logits preferred its own token, at most; None: nowhere.
    unlike_texts: probe texts that the engine's tokenizer cuts into other ids than the target's does.
    """

    engine: str
    prompts: int
    equal_prompts: int
    tokens: int
    agreeing_tokens: int
    widest_gap: float | None
    texts: int
    unlike_texts: tuple[str, ...]
    kept: tuple[Kept, ...]

    @property
    def agreement(self) -> float:
        """Share of tokens."""
        return self.agreeing_tokens / self.tokens


class ExportCard(Card):
    """A draft in a form that an engine reads. `files`: bytes of each beside the card.

    target_licence: of the target that the draft was made with, in the hub's words; None where nobody says it.
    """

    kind: ClassVar[str] = "export"
    format: str
    weights: str
    draft: str
    target: str
    target_revision: str | None
    target_digest: str
    target_licence: str | None = None
    files: dict[str, int]
    notes: tuple[str, ...]
    accepted: tuple[Accepted, ...]
    proof: Proof

    def given_to_an_engine(self, folder: Path) -> Path:
        """What an engine's command names: the folder, or the GGUF file in it."""
        return next((folder / name for name in self.files if name.endswith(".gguf")), folder)
