"""Collect from the cards of a draft's run what its model card reports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fastdraft.config import Recipe, TargetPart
from fastdraft.data.corpus_card import CorpusCard
from fastdraft.exporters.evidence import Evidence, Phase, Speed, Written
from fastdraft.models import architecture, pretrained
from fastdraft.models.draft_origin import Origin
from fastdraft.models.target import TargetCard
from fastdraft.results.bench import BenchResult, read_bench
from fastdraft.results.evaluation import EvaluationCard
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Completion
from fastdraft.synthesize.completions_card import CompletionsCard
from fastdraft.system.cards import FILE, Cost, open_stage
from fastdraft.system.manifest import read_commands
from fastdraft.system.validation import read_json


class CardCost(BaseModel):
    """The cost in a card of any kind."""

    cost: Cost


def licence_of(origin: Origin, card: TargetCard) -> str | None:
    """The licence of the run's target if the run states it, otherwise that of `card`."""
    recipe, run_card = origin.recipe(), origin.card("target", TargetCard)
    return (recipe and recipe.target.licence) or (run_card and run_card.licence) or card.licence


def completions(origin: Origin, card: TargetCard) -> list[Completion]:
    """The target's completions of the run's held-out prompts; empty if not saved, or saved by another target."""
    run_card = origin.card("target", TargetCard)
    if origin.run is None or run_card is None or run_card.digest != card.digest:
        return []
    if origin.card("evaluate", EvaluationCard) is not None:
        open_stage(origin.run / "evaluate", EvaluationCard)  # checks the files
    return CompletionStore(origin.run / "evaluate" / "completions").read()


def evidence(origin: Origin, part: TargetPart, card: TargetCard) -> Evidence:
    """What the run's cards report about this draft and target; without a run, what the draft's files say."""
    config = pretrained.open_config(origin.folder)
    parameters, recipe = architecture.parameters(config), origin.recipe()
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
        phases={name: Phase(phase, drafts[name]) for name, phase in parts.items() if phase and name in drafts},
        sources={name: (recipe.corpus[name], source) for name, source in corpus.sources.items()} if corpus else {},
        written=_written(origin, recipe),
        costs=_costs(origin.run),
        commands=read_commands(origin.run),
        recipe=(origin.run / "resolved.yaml").read_text(encoding="utf-8"),
        **_measured(origin),
        **_timed(origin, card),
    )


def _written(origin: Origin, recipe: Recipe) -> Written | None:
    """The target's completions for training; None if this draft was not trained on them."""
    card = origin.card("synthesize", CompletionsCard)
    if card is None or recipe.synthesize is None or origin.phase != "align":
        return None
    return Written(recipe.synthesize, card.completions, card.tokens)


def _measured(origin: Origin) -> dict[str, Any]:
    """Results of this draft and of earlier phases; the verification belongs to the run's last draft only."""
    card = origin.card("evaluate", EvaluationCard)
    if card is None:
        return {}
    results = [result for result in card.results if result.stage in origin.drafts()]
    last = card.results[-1].stage == origin.phase
    return {"results": results, "verified": card.verified if last else {}}


def _timed(origin: Origin, card: TargetCard) -> dict[str, Any]:
    """Results of benches of this draft, with this target or with a stand-in for a large one."""
    digest = pretrained.digest(origin.folder)
    results = [read_bench(file) for file in sorted(origin.bench_folder().glob("bench*.json"))]
    of_target = [bench for bench in results if bench.target.digest == card.digest or bench.target.stand_in is not None]
    benches = [bench for bench in of_target if bench.draft.digest == digest]
    return {
        "speeds": [speed for bench in benches for speed in _speeds(bench)],
        "advice": [f"{bench.where}: {line}" for bench in benches for line in bench.advice.lines],
    }


def _speeds(bench: BenchResult) -> Iterator[Speed]:
    """Speed-ups at the advised gamma and setting; sampled ones only if the engine keeps the target's distribution."""
    for cell in bench.cells:
        if cell.setting == bench.advice.setting and (cell.temperature == 0 or bench.keeps_distribution):
            speedup = cell.at("draft", bench.advice.gamma).speedup
            where = f"{bench.where}, {cell.setting}"
            gamma = bench.advice.gamma
            yield Speed(where, cell.task, cell.temperature, gamma, speedup.value, speedup.low, speedup.high)


def _costs(run: Path) -> dict[str, Cost]:
    """The cost of each finished stage."""
    remedy = "remove its folder and run again: the stage is then repeated"
    cards = {path.parent.name: read_json(path, CardCost, "a card", remedy) for path in sorted(run.glob(f"*/{FILE}"))}
    return {name: card.cost for name, card in cards.items()}
