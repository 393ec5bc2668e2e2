"""Read everything that a run folder holds, finished or not. What cannot be read becomes a note of the report."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from fastdraft.config.resolve import resolve
from fastdraft.evaluation.marked_tokens import Marked, read_marked
from fastdraft.models.draft import DraftCard
from fastdraft.models.pretrained import digest
from fastdraft.models.run_context import PHASES
from fastdraft.models.target import TargetCard
from fastdraft.pipeline.run_stages import MAKERS
from fastdraft.pipeline.stages import recipe_file
from fastdraft.results.bench import BenchResult, read_bench
from fastdraft.results.evaluation import EvaluationCard, TaskResult
from fastdraft.synthesize.completions_card import CompletionsCard
from fastdraft.system.cards import FILE, Card, read_card
from fastdraft.system.errors import CardError, RecipeError, TargetError
from fastdraft.system.manifest import Command, read_commands

# A line of resolved.yaml: `key: value  # origin`.
SETTING = re.compile(r"(?P<indent> *)(?P<key>[^\s:][^:]*):(?: (?P<value>.*)  # (?P<origin>.*))?")


class Setting(NamedTuple):
    """A dotted recipe key, its value, and where the value came from."""

    key: str
    value: str
    origin: str


class StageState(NamedTuple):
    """A stage of the run: `done`, `begun`, `not begun`, or `unreadable`; its card if it is done."""

    name: str
    state: str
    card: Card | None = None


Content = TypeVar("Content")
# A line of metrics.jsonl.
Metrics = dict[str, float]


@dataclass(frozen=True)
class RunData:
    """The contents of a run folder. `notes` are warnings for the reader, such as files that could not be read."""

    folder: Path
    settings: tuple[Setting, ...]
    stages: tuple[StageState, ...]
    metrics: dict[str, list[Metrics]] = field(default_factory=dict)
    marked: Marked | None = None
    benches: tuple[BenchResult, ...] = ()
    commands: tuple[Command, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name in the recipe, else that of the folder."""
        return self.setting("name") or self.folder.name

    def setting(self, key: str) -> str | None:
        """The value of a dotted recipe key; None if the recipe does not have it."""
        return next((setting.value for setting in self.settings if setting.key == key), None)

    def card(self, stage: str) -> Card | None:
        """The card of a stage; None if it is not done."""
        return next((each.card for each in self.stages if each.name == stage), None)

    @property
    def target(self) -> TargetCard | None:
        """The card of the target."""
        card = self.card("target")
        return card if isinstance(card, TargetCard) else None

    @property
    def target_name(self) -> str:
        """The name in the target's card, else its path in the recipe."""
        return self.target.name if self.target else self.setting("target.path") or "?"

    @property
    def drafts(self) -> dict[str, DraftCard]:
        """The draft of each finished training phase, in order."""
        cards = {phase: self.card(phase) for phase in PHASES}
        return {phase: card for phase, card in cards.items() if isinstance(card, DraftCard)}

    @property
    def synthesis(self) -> CompletionsCard | None:
        """The card of the synthetic training data."""
        card = self.card("synthesize")
        return card if isinstance(card, CompletionsCard) else None

    @property
    def evaluation(self) -> EvaluationCard | None:
        """The card of the evaluation."""
        card = self.card("evaluate")
        return card if isinstance(card, EvaluationCard) else None

    @property
    def last_results(self) -> list[TaskResult]:
        """The evaluation of the last draft."""
        results = self.evaluation.results if self.evaluation else ()
        return [result for result in results if result.stage == results[-1].stage]

    @property
    def resume_command(self) -> str:
        """The command that continues this run: its last `run`, else one that reads its resolved recipe."""
        runs = [each.command for each in self.commands if each.command.startswith("fastdraft run ")]
        return runs[-1] if runs else f"fastdraft run {self.folder}/resolved.yaml --folder {self.folder}"

    @property
    def unfinished(self) -> list[StageState]:
        """Stages that are not done, or whose card cannot be read."""
        return [stage for stage in self.stages if stage.state != "done"]


def read_run(folder: Path, cards_only: bool = False) -> RunData:
    """Read a run; with `cards_only`, no metrics, marked texts, benches or commands. RunError if there is no run."""
    recipe = recipe_file(folder)
    notes: list[str] = []
    _or_note(partial(resolve, recipe), notes)
    settings = tuple(_settings(recipe.read_text(encoding="utf-8", errors="replace")))
    names = _stage_names(settings)
    stages = tuple(_stage_state(folder, name, maker.card, notes) for name, maker in MAKERS.items() if name in names)
    if cards_only:
        return RunData(folder, settings, stages, notes=tuple(notes))
    drafts = [stage.name for stage in stages if isinstance(stage.card, DraftCard)]
    return RunData(
        folder=folder,
        settings=settings,
        stages=stages,
        metrics={phase: rows for phase in PHASES if (rows := list(_metrics(folder / phase / "metrics.jsonl")))},
        marked=_or_note(partial(read_marked, folder / "evaluate"), notes),
        benches=tuple(_benches(folder, drafts, notes)),
        commands=_or_note(partial(read_commands, folder), notes) or (),
        notes=tuple(notes),
    )


def _settings(text: str) -> Iterator[Setting]:
    """Every value of resolved.yaml with its dotted key."""
    parts: list[str] = []
    for line in text.splitlines():
        if match := SETTING.fullmatch(line):
            parts = [*parts[: len(match["indent"]) // 2], match["key"]]
            if match["value"] is not None:
                yield Setting(".".join(parts), match["value"], match["origin"])


def _stage_names(settings: Sequence[Setting]) -> set[str]:
    """The stages of a recipe: its parts, and `validation` if a phase of training uses it. Absent parts are null."""
    parts = {setting.key.partition(".")[0] for setting in settings if "." in setting.key}
    validation_prompts = next((s.value for s in settings if s.key == "evaluate.validation_prompts"), "0")
    return parts | ({"validation"} if validation_prompts != "0" and parts & set(PHASES) else set())


def _stage_state(folder: Path, name: str, kind: type[Card], notes: list[str]) -> StageState:
    if not (folder / name / FILE).is_file():
        return StageState(name, "begun" if (folder / name / "key").is_file() else "not begun")
    card = _or_note(partial(read_card, folder / name, kind), notes)
    return StageState(name, "unreadable" if card is None else "done", card)


def _or_note(read: Callable[[], Content], notes: list[str]) -> Content | None:
    """What `read` returns; None, and a note, if the file is damaged or of another version."""
    try:
        return read()
    except (CardError, TargetError, RecipeError) as error:
        found, problem = str(error).splitlines()[:2]
        notes.append(f"{found}{'' if problem.startswith('  do: ') else problem}; what it lacks is left out")
        return None


def _metrics(path: Path) -> Iterator[Metrics]:
    """The finite numbers of each complete line of a metrics file."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a run in progress is writing this line
        if isinstance(row, dict) and _is_number(row.get("tokens")):
            yield {key: value for key, value in row.items() if _is_number(value)}


def _is_number(value: object) -> bool:
    # A whole number may be too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def _benches(folder: Path, drafts: Sequence[str], notes: list[str]) -> Iterator[BenchResult]:
    """Saved benches of the last draft of this run, one per engine and device."""
    last_draft = _or_note(partial(digest, folder / drafts[-1] / "model"), notes) if drafts else None
    for path in sorted((folder / "bench").glob("*.json")):
        bench = _or_note(partial(read_bench, path), notes)
        if bench is None:
            continue
        if bench.draft.digest == last_draft:
            yield bench
        else:
            notes.append(f"{path} was measured with a draft other than the last one of this run; it is left out")
