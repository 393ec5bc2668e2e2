"""What is known about a draft, for its model card; None or empty if it is not known, and the card says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastdraft.config import SourcePart, SynthesizePart, TargetPart, TrainPart
from fastdraft.data.shards import SourceCard
from fastdraft.models.draft import DraftCard
from fastdraft.models.target import TargetCard
from fastdraft.results.evaluation import TaskResult, VerificationResult
from fastdraft.system.cards import Cost
from fastdraft.system.manifest import Command


class Phase(NamedTuple):
    """A training phase: its part of the recipe, and its card."""

    part: TrainPart
    card: DraftCard


class Written(NamedTuple):
    """The completions that the target wrote for training."""

    part: SynthesizePart
    completions: int
    tokens: int


class Speed(NamedTuple):
    """Speed-up in wall-clock time, with its interval. `where` names engine, device and versions."""

    where: str
    task: str
    temperature: float
    gamma: int
    speedup: float
    low: float
    high: float


@dataclass(frozen=True)
class Evidence:
    """All that is known about a draft. `commands`: entries of the run's manifest.json; `recipe`: its resolved YAML."""

    part: TargetPart
    target: TargetCard
    config: Mapping[str, Any]
    parameters: int
    phases: Mapping[str, Phase] = field(default_factory=dict)
    sources: Mapping[str, tuple[SourcePart, SourceCard]] = field(default_factory=dict)
    written: Written | None = None
    results: Sequence[TaskResult] = ()
    verified: Mapping[str, Sequence[VerificationResult]] = field(default_factory=dict)
    speeds: Sequence[Speed] = ()
    advice: Sequence[str] = ()
    costs: Mapping[str, Cost] = field(default_factory=dict)
    commands: Sequence[Command] = ()
    recipe: str | None = None

    @property
    def last(self) -> list[TaskResult]:
        """The results of the draft itself, without those of earlier phases."""
        return [result for result in self.results if result.stage == self.results[-1].stage]
