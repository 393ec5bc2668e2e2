"""The interface of an engine that `bench` times, and what it reports of one completion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from transformers import PreTrainedModel

from fastdraft.data.shards import Tokens
from fastdraft.synthesize.completions import SamplingParams

# Prompt lookup: the longest n-gram at the end of the text that is searched for, and the tokens proposed from its match.
LOOKUP_NGRAM, LOOKUP_TOKENS = 3, 5


class Arm(NamedTuple):
    """A way to decode; gamma is the number of tokens proposed for each block, 0 without proposals."""

    kind: Literal["none", "lookup", "draft"]
    gamma: int = 0


NONE, LOOKUP = Arm("none"), Arm("lookup", LOOKUP_TOKENS)


class TimedCompletion(NamedTuple):
    """One completion. `blocks`: tokens that each target forward emitted, the prompt's forward first.

    `seconds`: the whole call. `first_seconds`: until the tokens of the first forward. `drafting_seconds`: the draft's,
    after the first forward. `drafted`: proposed tokens, as the engine counts them. If `sizes_known` is false, only the
    number of blocks and their sum come from the engine.
    """

    tokens: Tokens
    seconds: float
    first_seconds: float
    blocks: tuple[int, ...]
    drafted: int
    drafting_seconds: float = 0.0
    sizes_known: bool = True

    @property
    def decode_seconds(self) -> float:
        """Seconds after the first forward, which processes the prompt."""
        return self.seconds - self.first_seconds


class BenchRequest(NamedTuple):
    """A prompt to complete; `seed` decides sampled texts as far as the engine allows."""

    prompt: Tokens
    sampling: SamplingParams
    max_new_tokens: int
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PairFiles:
    """Target and draft in the engine's format, and the precision of their weights."""

    target: Path
    draft: Path
    target_weights: str
    draft_weights: str
    device: str
    longest_tokens: int
    eos: frozenset[int]


class Setting(NamedTuple):
    """Properties of an engine. With `exact`, greedy text is the same with a draft and without, up to near ties."""

    name: str
    properties: Mapping[str, Any]
    exact: bool = False


class OpenedPair(Protocol):
    """A pair under one setting."""

    def complete(self, request: BenchRequest, arm: Arm) -> TimedCompletion:
        """Complete one prompt in a batch of one, without any cache of earlier prompts."""


class OnePassModels(NamedTuple):
    """Target and draft as the one-pass evaluation calls them, as exact as the engine can compute."""

    target: PreTrainedModel
    draft: PreTrainedModel


class Engine(ABC):
    """One engine.

    `rules`: prefix of the names of its compatibility rules. `format`: the export it reads; None: the model's own
    folder. `weights`: the precisions, the default first. `settings`: those that are timed. `exact`: the setting in
    which equal output is verified. `drafts_first`: the prompt's forward already verifies a block. `keeps_distribution`:
    text sampled with a draft has the target's distribution. `greedy_draft`: the draft proposes greedily at any
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
        """The devices of this machine, the default first."""

    @classmethod
    def default_weights(cls, device: str) -> str:
        """The default precision of the weights on a device."""
        return cls.weights[0]

    @classmethod
    @abstractmethod
    def hardware(cls, device: str) -> str:
        """A description of a device."""

    @classmethod
    @abstractmethod
    def open(cls, files: PairFiles, setting: Setting) -> OpenedPair:
        """The pair, ready to be timed."""

    @classmethod
    @abstractmethod
    def one_pass_models(cls, files: PairFiles) -> OnePassModels:
        """The models for the one-pass prediction."""

    @classmethod
    @abstractmethod
    def option(cls, setting: Setting, gamma: int, device: str) -> str:
        """The command or code with which a user sets this gamma."""
