"""What every engine must do to be timed, and what it says of one completion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from transformers import PreTrainedModel

from fastdraft.data.shards import Tokens
from fastdraft.synthesize.completions import SamplingParams

# Prompt lookup: the longest end of the text that is looked for, and how many tokens behind its last place are proposed.
LOOKUP_NGRAM, LOOKUP_TOKENS = 3, 5


class Arm(NamedTuple):
    """A way to decode; gamma is the number of tokens proposed at once, 0 where none are."""

    kind: Literal["none", "lookup", "draft"]
    gamma: int = 0


NONE, LOOKUP = Arm("none"), Arm("lookup", LOOKUP_TOKENS)


class Timed(NamedTuple):
    """One completion. `blocks`: tokens that each target forward emitted, the prompt's first.

    `seconds` are those of the whole call, `first_seconds` those until the first forward's tokens were there,
    `drafting_seconds` those that the draft took behind it. `drafted`: tokens that were proposed, as the engine counts
    them. `sizes_known` is false where only the number of blocks and their sum are the engine's own.
    """

    tokens: Tokens
    seconds: float
    first_seconds: float
    blocks: tuple[int, ...]
    drafted: int
    drafting_seconds: float = 0.0
    sizes_known: bool = True

    @property
    def seconds_behind(self) -> float:
        """Those behind the first forward, whose tokens are the prompt's."""
        return self.seconds - self.first_seconds


class Asked(NamedTuple):
    """What is to be completed, and how; `seed` decides sampled texts as far as the engine lets it."""

    prompt: Tokens
    sampling: SamplingParams
    tokens: int
    seed: int = 0


@dataclass(frozen=True)
class Files:
    """Both models in the engine's own form, and their precisions."""

    target: Path
    draft: Path
    target_weights: str
    draft_weights: str
    device: str
    longest_tokens: int
    eos: frozenset[int]


class Setting(NamedTuple):
    """How an engine is set. In an `exact` one, greedy text with a draft is that without one, up to near ties."""

    name: str
    properties: Mapping[str, Any]
    exact: bool = False


class Opened(Protocol):
    """A pair under one setting."""

    def complete(self, asked: Asked, arm: Arm) -> Timed:
        """A prompt completed alone, nothing of it known from before."""


class Engine(ABC):
    """One engine.

    `rules`: the beginning of the names of its compatibility rules. `format`: the export that it reads; None for the
    model's own folder. `weights`: the precisions, the usual one first. `settings`: those that are timed; `exact`: the
    one in which equality is proved. `drafts_first`: the prompt's forward checks a block already. `keeps_distribution`:
    what is sampled with a draft is distributed as without one. `greedy_draft`: the draft proposes greedily at any
    temperature.
    """

    name: ClassVar[str]
    modules: ClassVar[tuple[tuple[str, str], ...]]
    packages: ClassVar[tuple[str, ...]]
    rules: ClassVar[str]
    format: ClassVar[str | None]
    weights: ClassVar[tuple[str, ...]]
    settings: ClassVar[tuple[Setting, ...]]
    exact: ClassVar[Setting]
    drafts_first: ClassVar[bool]
    keeps_distribution: ClassVar[bool]
    greedy_draft: ClassVar[bool]

    @classmethod
    @abstractmethod
    def devices(cls) -> Sequence[str]:
        """The devices that are here, the usual one first."""

    @classmethod
    def usual_weights(cls, device: str) -> str:
        """The precision of the weights on a device, where none is asked for."""
        return cls.weights[0]

    @classmethod
    @abstractmethod
    def hardware(cls, device: str) -> str:
        """A device in words."""

    @classmethod
    @abstractmethod
    def open(cls, files: Files, setting: Setting) -> Opened:
        """The pair, ready to be timed."""

    @classmethod
    @abstractmethod
    def readers(cls, files: Files) -> tuple[PreTrainedModel, PreTrainedModel]:
        """Target and draft as the one-pass evaluation calls them, computing as exactly as the engine can."""

    @classmethod
    @abstractmethod
    def option(cls, setting: Setting, gamma: int, device: str) -> str:
        """What a user sets for this gamma."""
