"""All that a run folder says, as far as the run has come; what cannot be read is noted, and nothing is computed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fastdraft.config import TargetPart
from fastdraft.evaluate.marked_tokens import Marked, read_marked
from fastdraft.models.draft import DraftCard
from fastdraft.models.run_context import PHASES
from fastdraft.models.target import TargetCard, digest
from fastdraft.pipeline.stages import STAGES
from fastdraft.results.bench import BenchResult, read_bench
from fastdraft.results.evaluation import EvaluationCard, TaskResult
from fastdraft.synthesize.completions_card import CompletionsCard
from fastdraft.system.cards import FILE, Card, read_card
from fastdraft.system.errors import CardError, RunError

# `key: value  # where it came from`, as resolved.yaml has it.
SETTING = re.compile(r"(?P<indent> *)(?P<key>[^\s:][^:]*):(?: (?P<value>.*)  # (?P<origin>.*))?")


class Setting(NamedTuple):
    """A key of the recipe, what it holds, and where that came from."""

    key: str
    value: str
    origin: str


class Step(NamedTuple):
    """A stage of the pipeline: `done`, `begun`, `not begun`, or `unreadable`, with its card where that can be read."""

    name: str
    state: str
    card: Card | None = None


# A line of metrics.jsonl: numbers alone.
Row = dict[str, float]


@dataclass(frozen=True)
class Account:
    """What a run folder says. `notes`: what a reader must know of it, of what could not be read among others."""

    folder: Path
    settings: tuple[Setting, ...]
    steps: tuple[Step, ...]
    metrics: dict[str, list[Row]] = field(default_factory=dict)
    marked: Marked | None = None
    benches: tuple[BenchResult, ...] = ()
    commands: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As the recipe has it."""
        return self.setting("name") or self.folder.name

    def setting(self, key: str) -> str | None:
        """What the recipe holds under a dotted key; None where it has no such key."""
        return next((setting.value for setting in self.settings if setting.key == key), None)

    def card(self, stage: str) -> Card | None:
        """A stage's card."""
        return next((step.card for step in self.steps if step.name == stage), None)

    @property
    def target(self) -> TargetCard | None:
        """The target's card."""
        card = self.card("target")
        return card if isinstance(card, TargetCard) else None

    @property
    def drafts(self) -> dict[str, DraftCard]:
        """The draft that each finished phase left, in order."""
        found = {phase: self.card(phase) for phase in PHASES}
        return {phase: card for phase, card in found.items() if isinstance(card, DraftCard)}

    @property
    def written(self) -> CompletionsCard | None:
        """What the target wrote for training."""
        card = self.card("synthesize")
        return card if isinstance(card, CompletionsCard) else None

    @property
    def evaluation(self) -> EvaluationCard | None:
        """What was measured."""
        card = self.card("evaluate")
        return card if isinstance(card, EvaluationCard) else None

    @property
    def last(self) -> list[TaskResult]:
        """The results of the last draft."""
        results = self.evaluation.results if self.evaluation else ()
        return [result for result in results if result.stage == results[-1].stage]

    @property
    def command(self) -> str:
        """What goes on with this run: its last `run`; of a run without a manifest, one that reads its own recipe."""
        runs = [str(each.get("command")) for each in self.commands]
        told = [command for command in runs if command.startswith("fastdraft run ")]
        return told[-1] if told else f"fastdraft run {self.folder}/resolved.yaml --folder {self.folder}"

    @property
    def missing(self) -> list[Step]:
        """Stages of the recipe that are not done, or whose card cannot be read."""
        return [step for step in self.steps if step.state != "done"]


def read(folder: Path, whole: bool = True) -> Account:
    """The account of a run; not `whole`: its cards alone. RunError where there is no run."""
    if not (folder / "resolved.yaml").is_file():
        raise RunError(f"no run at {folder}: it has no resolved.yaml\n  do: give the folder of a run, like runs/demo")
    notes: list[str] = []
    settings = tuple(_settings((folder / "resolved.yaml").read_text(encoding="utf-8", errors="replace")))
    steps = tuple(_step(folder, stage.name, stage.card, notes) for stage in STAGES if _in_recipe(stage.name, settings))
    if not whole:
        return Account(folder, settings, steps, notes=tuple(notes))
    metrics = {phase: rows for phase in PHASES if (rows := list(_rows(folder / phase / "metrics.jsonl")))}
    drafts = [step.name for step in steps if isinstance(step.card, DraftCard)]
    marked, benches = _marked(folder / "evaluate", notes), tuple(_benches(folder, drafts, notes))
    commands = tuple(_commands(folder / "manifest.json", notes))
    return Account(folder, settings, steps, metrics, marked, benches, commands, tuple(notes))


def _settings(text: str) -> Iterator[Setting]:
    """Every value of resolved.yaml under its dotted key."""
    parts: list[str] = []
    for line in text.splitlines():
        if found := SETTING.fullmatch(line):
            parts = [*parts[: len(found["indent"]) // 2], found["key"]]
            if found["value"] is not None:
                yield Setting(".".join(parts), found["value"], found["origin"])


def _in_recipe(stage: str, settings: tuple[Setting, ...]) -> bool:
    """Whether a stage's part stands in the recipe; a part that is left out is null."""
    return any(setting.key.startswith(f"{stage}.") for setting in settings)


def _step(folder: Path, name: str, kind: type[Card], notes: list[str]) -> Step:
    if not (folder / name / FILE).is_file():
        return Step(name, "begun" if (folder / name / "key").is_file() else "not begun")
    try:
        return Step(name, "done", read_card(folder / name, kind))
    except CardError as error:
        notes.append(f"{name}: {_first(error)}; this part of the report is left out")
        return Step(name, "unreadable")


def _first(error: Exception) -> str:
    """An error's first line."""
    return str(error).splitlines()[0]


def _rows(path: Path) -> Iterator[Row]:
    """The whole lines of a metrics file: its finite numbers."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the line that a run under way is writing
        if isinstance(row, dict) and isinstance(row.get("tokens"), int | float):
            yield {key: value for key, value in row.items() if _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _marked(folder: Path, notes: list[str]) -> Marked | None:
    try:
        return read_marked(folder)
    except CardError as error:
        notes.append(_first(error))
        return None


def _benches(folder: Path, drafts: Sequence[str], notes: list[str]) -> Iterator[BenchResult]:
    """What was timed with the last draft of this run, of every engine."""
    ours = digest(TargetPart(path=str((folder / drafts[-1] / "model").resolve()))) if drafts else None
    for path in sorted((folder / "bench").glob("*.json")):
        try:
            bench = read_bench(path)
        except CardError as error:
            notes.append(f"{_first(error)}; it is left out")
            continue
        if bench.draft.digest == ours:
            yield bench
        else:
            notes.append(f"{path} was measured with another draft than this run's last one; it is left out")


def _commands(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The entries of the manifest."""
    if not path.is_file():
        return
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["commands"]
        yield from (dict(entry) for entry in entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        notes.append(f"{path} is not a manifest ({type(error).__name__}); it is left out")
