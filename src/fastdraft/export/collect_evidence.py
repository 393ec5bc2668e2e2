"""All that the cards of a draft's run say of it, collected for its model card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastdraft.config import Recipe, TargetPart
from fastdraft.data.corpus_card import CorpusCard
from fastdraft.export.evidence import Evidence, Phase, Speed, Written
from fastdraft.models import architecture, pretrained
from fastdraft.models.draft_origin import Origin
from fastdraft.models.target import TargetCard
from fastdraft.results.bench import BenchResult, read_bench
from fastdraft.results.evaluation import EvaluationCard
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Completion
from fastdraft.synthesize.completions_card import CompletionsCard
from fastdraft.system.cards import FILE, Cost


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
    """Results of this draft and of the phases before it; the verification looked at the run's last draft alone."""
    card = origin.card("evaluate", EvaluationCard)
    if card is None:
        return {}
    results = [result for result in card.results if result.stage in origin.drafts()]
    last = card.results[-1].stage == origin.phase
    return {"results": results, "verified": card.verified if last else {}}


def _timed(origin: Origin, card: TargetCard) -> dict[str, Any]:
    """What benches of this very draft found, with this target or a stand-in for a large one."""
    ours = pretrained.digest(origin.folder)
    found = [read_bench(file) for file in sorted(origin.bench_folder().glob("bench*.json"))]
    told = [bench for bench in found if bench.draft.digest == ours and _of_target(bench, card)]
    return {
        "speeds": [speed for bench in told for speed in _speeds(bench)],
        "advice": [f"{bench.where}: {line}" for bench in told for line in bench.advice.lines],
    }


def _of_target(bench: BenchResult, card: TargetCard) -> bool:
    return card.digest == bench.target.digest or bench.target.stand_in is not None


def _speeds(bench: BenchResult) -> Iterator[Speed]:
    """The advised gamma in the advised setting; sampled only where the engine keeps the distribution."""
    for cell in bench.cells:
        if cell.setting == bench.advice.setting and (cell.temperature == 0 or bench.keeps_distribution):
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
