"""Where a draft comes from: its folder, the run that made it, and all that the cards of that run say of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastdraft import target
from fastdraft.artefacts.completions import CompletionsCard
from fastdraft.artefacts.evaluation import EvaluationCard
from fastdraft.artefacts.journey import PHASES, CorpusCard
from fastdraft.bench.records import BenchResult
from fastdraft.draft import DraftCard
from fastdraft.errors import CardError, ExportError
from fastdraft.export.evidence import Evidence, Phase, Speed, Written
from fastdraft.recipe import Recipe, TargetPart
from fastdraft.records import FILE, AnyCard, Cost, read_card
from fastdraft.resolve import resolve
from fastdraft.synthesize.completions import Completion, CompletionStore
from fastdraft.target import TargetCard


class Origin(NamedTuple):
    """A draft's folder, and the run that it lies in, if it lies in one."""

    folder: Path
    run: Path | None

    @property
    def phase(self) -> str:
        """The phase that made the draft."""
        return self.folder.parent.name

    def recipe(self) -> Recipe | None:
        """What the run was made from."""
        return None if self.run is None else resolve(self.run / "resolved.yaml").recipe

    def card(self, stage: str, kind: type[AnyCard]) -> AnyCard | None:
        """A stage's card; None where the stage is not done."""
        done = self.run is not None and (self.run / stage / FILE).is_file()
        return read_card(self.run / stage, kind) if self.run is not None and done else None

    def drafts(self) -> dict[str, DraftCard]:
        """The cards of the phases up to the draft's own, in order."""
        found = {phase: self.card(phase, DraftCard) for phase in PHASES[: PHASES.index(self.phase) + 1]}
        return {phase: card for phase, card in found.items() if card is not None}

    def trained_for(self) -> str | None:
        """The digest of the target that the draft was trained for; None where nothing says it."""
        card = self.card(self.phase, DraftCard)
        return None if card is None else card.target_digest


def origin_of(given: Path) -> Origin:
    """A draft given by its own folder, by that of its phase, or by its run, whose last draft it then is."""
    places = [given, given / "model", *(given / phase / "model" for phase in reversed(PHASES))]
    folder = next((place for place in places if (place / "config.json").is_file()), None)
    if folder is None:
        raise ExportError(
            f"no draft at {given}: it has neither config.json nor model/config.json\n"
            f"  do: give the folder of a draft, like runs/demo/align/model"
        )
    phase = folder.resolve().parent
    ours = phase.name in PHASES and (phase / FILE).is_file() and (phase.parent / "resolved.yaml").is_file()
    return Origin(folder, folder.parent.parent if ours else None)


def origin_named(name: str) -> Origin:
    """A draft by its folder, that of its phase or its run, or by its hub id."""
    local = Path(name).expanduser()
    if local.exists() or name.startswith((".", "/", "~")):
        return origin_of(local)
    return Origin(target.folder_of(TargetPart(path=name)), None)


def target_of(origin: Origin) -> TargetPart:
    """The target that the draft's run names; ExportError where there is no run."""
    recipe = origin.recipe()
    if recipe is None:
        raise ExportError(
            f"nothing beside {origin.folder} says which target it is a draft for\n  do: add --target TARGET"
        )
    return recipe.target


def target_card(origin: Origin, part: TargetPart) -> TargetCard:
    """The target's card: made anew of a folder's files, so that a change is seen; of a hub's model the run's own card.

    A hub's weights are not fetched for it.
    """
    recipe, measured = origin.recipe(), origin.card("target", TargetCard)
    here = part.path == "demo" or Path(part.path).expanduser().exists()
    if not here and measured is not None and recipe is not None and _same_files(recipe.target, part):
        return measured
    return TargetCard(key="", cost=Cost(seconds=0.0), **target.card(part, weights=False))


def _same_files(one: TargetPart, other: TargetPart) -> bool:
    return one.model_copy(update={"licence": None}) == other.model_copy(update={"licence": None})


def licence_of(origin: Origin, card: TargetCard) -> str | None:
    """The licence of the target that the draft was trained for, where its run says it; else that of the one given."""
    recipe, measured = origin.recipe(), origin.card("target", TargetCard)
    said = (recipe and recipe.target.licence) or (measured and measured.licence)
    return said or card.licence


def completions(origin: Origin, card: TargetCard) -> list[Completion]:
    """What this very target wrote after the run's held-out prompts; none where that was not kept, or another did."""
    measured = origin.card("target", TargetCard)
    if origin.run is None or measured is None or measured.digest != card.digest:
        return []
    return CompletionStore(origin.run / "evaluate" / "completions").read()


def evidence(origin: Origin, part: TargetPart, card: TargetCard) -> Evidence:
    """All that the run's cards say of this draft and this target; of a bare folder, what its files say."""
    config = target.open_config(TargetPart(path=str(origin.folder.resolve())))
    parameters, recipe = target.parameters(config), origin.recipe()
    drafts = {} if recipe is None else origin.drafts()
    if recipe is None or origin.run is None or origin.trained_for() != card.digest:
        return Evidence(part, card, config.to_dict(), parameters, **_timed(origin, card))
    parts = {"pretrain": recipe.pretrain, "continue": recipe.continue_, "align": recipe.align}
    corpus = origin.card("tokenize", CorpusCard)
    return Evidence(
        part=part,
        target=card,
        config=config.to_dict(),
        parameters=parameters,
        phases={name: Phase(how, drafts[name]) for name, how in parts.items() if how and name in drafts},
        sources={name: (recipe.corpus[name], source) for name, source in corpus.sources.items()} if corpus else {},
        written=_written(origin, recipe),
        costs=_costs(origin.run),
        commands=_commands(origin.run),
        recipe=(origin.run / "resolved.yaml").read_text(encoding="utf-8"),
        **_measured(origin),
        **_timed(origin, card),
    )


def _written(origin: Origin, recipe: Recipe) -> Written | None:
    """What the target wrote for training, if this draft has seen it."""
    card = origin.card("synthesize", CompletionsCard)
    if card is None or recipe.synthesize is None or origin.phase != "align":
        return None
    return Written(recipe.synthesize, card.completions, card.tokens)


def _measured(origin: Origin) -> dict[str, Any]:
    """Results of this draft and of the phases before it; the judge looked at the run's last draft alone."""
    card = origin.card("evaluate", EvaluationCard)
    if card is None:
        return {}
    results = [result for result in card.results if result.stage in origin.drafts()]
    last = card.results[-1].stage == origin.phase
    return {"results": results, "judged": card.judged if last else {}}


def benches(origin: Origin) -> Path:
    """Where records of benches lie: in the draft's run, or in its own folder."""
    return (origin.run or origin.folder) / "bench"


def _timed(origin: Origin, card: TargetCard) -> dict[str, Any]:
    """What benches of this very draft found, with this target or a stand-in for a large one."""
    ours = target.digest(TargetPart(path=str(origin.folder.resolve())))
    found = [read_bench(file) for file in sorted(benches(origin).glob("bench*.json"))]
    told = [bench for bench in found if bench.draft.digest == ours and _of_target(bench, card)]
    return {
        "speeds": [speed for bench in told for speed in _speeds(bench)],
        "advice": [f"{bench.where}: {line}" for bench in told for line in bench.advice.lines],
    }


def read_bench(file: Path) -> BenchResult:
    """CardError where the file is none, or one of another version."""
    try:
        return BenchResult.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CardError(f"{file} does not read as a bench: {first}\n  do: run it again, or remove it") from error


def _of_target(bench: BenchResult, card: TargetCard) -> bool:
    return card.digest == bench.target.digest or bench.target.stand_in is not None


def _speeds(bench: BenchResult) -> Iterator[Speed]:
    """The advised gamma in the advised setting; sampled only where the engine keeps the law."""
    for cell in bench.cells:
        if cell.setting == bench.advice.setting and (cell.temperature == 0 or bench.keeps_law):
            found = cell.at("draft", bench.advice.gamma).speedup
            where = f"{bench.where}, {cell.setting}"
            yield Speed(where, cell.task, cell.temperature, bench.advice.gamma, found.value, found.low, found.high)


def _costs(run: Path) -> dict[str, Cost]:
    """What each finished stage took."""
    cards = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(run.glob(f"*/{FILE}"))}
    return {name: Cost.model_validate(card["cost"]) for name, card in cards.items() if "cost" in card}


def _commands(run: Path) -> list[dict[str, Any]]:
    """The entries of the run's manifest."""
    file = run / "manifest.json"
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["commands"] if file.is_file() else []
    return found
