"""The report as one self-contained HTML file. It makes no network requests; text of models and recipes is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from itertools import groupby
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from fastdraft.evaluation.marked_tokens import ACCEPTED, BONUS, CORRECTED, MarkedTask, MarkedText
from fastdraft.report import comparison, figures
from fastdraft.report.charts import plotly
from fastdraft.report.costs import costs, energy_note, total_energy, total_seconds
from fastdraft.report.figures import Figure
from fastdraft.report.formatting import FILTERS, visible
from fastdraft.report.paper import PAPER
from fastdraft.report.run_data import RunData, Setting
from fastdraft.report.terminal_quality import quality_fields
from fastdraft.report.terminal_run import PAPER_GAMMA
from fastdraft.report.verdict import Verdict, at_or_best, verdict
from fastdraft.results.formatting import disagreements, sampling_text
from fastdraft.synthesize.completions_card import CompletionsCard
from fastdraft.system.optional_packages import need

# Largest page; plotly's library is 4.8 MB of it. If it would be larger, the page shows fewer texts of each kind.
MAX_BYTES = 6_000_000
TEXTS_PER_KIND = (3, 1)
SECTIONS_OF_SEVERAL = (
    ("verdict", "Verdict"),
    ("differences", "Differences"),
    ("rates", "Blocks"),
    ("training", "Training"),
    ("recipe", "Recipes"),
)


class Token(NamedTuple):
    """A token of a marked text; `opens` is true for the first token of a block."""

    text: str
    mark: str
    opens: bool
    accept: float
    confidence: float
    proposed: str


class Text(NamedTuple):
    """A marked text and how many of its tokens have each mark."""

    prompt: str
    tau: float
    tokens: list[Token]
    accepted: int
    corrected: int
    bonus: int

    @property
    def blocks(self) -> int:
        """Number of blocks, which is the number of target passes."""
        return sum(token.opens for token in self.tokens)


def one(run: RunData) -> str:
    """The page about one run."""
    drawn, stage_costs, energy = figures.of_run(run), costs(run), total_energy([run])
    verified = run.evaluation.verified if run.evaluation else {}
    values = {
        "run": run,
        "stage_names": [stage.name for stage in run.stages],
        "target_path": run.setting("target.path") or "TARGET",
        "draft_folder": run.folder / list(run.drafts)[-1] / "model" if run.drafts else "DRAFT",
        "verdict": verdict(run),
        "rates": _rates_by_stage(run),
        "paper": PAPER,
        "verified": [(task, result) for task, results in verified.items() for result in results],
        "disagreements": disagreements(verified),
        "costs": stage_costs,
        "seconds": total_seconds(stage_costs),
        "flops": sum(cost.flops or 0 for cost in stage_costs) or None,
        "energy": energy,
        "energy_note": energy_note(energy),
        "metered": any(cost.mfu is not None or cost.memory_bytes is not None for cost in stage_costs),
        "machines": list(dict.fromkeys(command.device for command in run.commands if command.device)),
        "synthetic_data": _synthetic_data(run.synthesis) if run.synthesis else {},
        "recipe": _recipe_parts(run.settings),
    }
    for count in TEXTS_PER_KIND:
        texts = [_marked_task(task, count) for task in run.marked.tasks] if run.marked else []
        page = _render("run.html", run.name, drawn, values | {"texts": texts, "texts_per_kind": count})
        if len(page.encode(errors="replace")) < MAX_BYTES:
            break
    return page


def several(runs: Sequence[RunData], compact: bool) -> str:
    """The page about several runs; a compact one has one line per run and nothing else."""
    names, energy = comparison.labels(runs), total_energy(runs)
    values: dict[str, Any] = {
        "names": names,
        "notes": [f"{name}: {note}" for name, run in zip(names, runs, strict=True) for note in run.notes],
        "rows": [_summary(name, run, verdict(run)) for name, run in zip(names, runs, strict=True)],
        "compact": compact,
        "energy": energy,
        "energy_note": energy_note(energy),
        "differences": [] if compact else comparison.differences(runs, names),
        "rates": [] if compact else _rates_by_run(runs),
        "recipe_differences": [] if compact else comparison.recipe_differences(runs),
        "sections": SECTIONS_OF_SEVERAL[:1] if compact else SECTIONS_OF_SEVERAL,
    }
    title = f"{len(runs)} runs" if len(runs) > 3 else " and ".join(names)
    return _render("runs.html", title, [] if compact else figures.of_runs(runs, names), values)


def _render(template: str, title: str, drawn: Sequence[Figure], values: dict[str, Any]) -> str:
    """Fill a template. The content security policy allows the page's own scripts, by their hashes, and no request."""
    library = [need("plotly.offline", "report").get_plotlyjs()] if drawn else []
    scripts = [*library, _template_file("report.js")]
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
    environment = Environment(
        loader=PackageLoader("fastdraft.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters |= FILTERS
    shared = {
        "title": title,
        "captions": {figure.name: figure for figure in drawn},
        "figures": htmlsafe_json_dumps({visible(figure.name): plotly(figure) for figure in drawn}),
        "scripts": [Markup(script) for script in scripts],
        "style": Markup(_template_file("report.css")),
        "policy": policy,
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": version("fastdraft"),
        "sampling_text": sampling_text,
    }
    return environment.get_template(template).render(shared | values)


def _template_file(name: str) -> str:
    return files("fastdraft.report").joinpath("templates", name).read_text(encoding="utf-8")


# Tables.


def _rates_by_stage(run: RunData) -> dict[str, Any]:
    """Acceptance rate after each stage, a column for each task and temperature, at the paper's gamma if measured."""
    results = run.evaluation.results if run.evaluation else ()
    gammas = [{each.gamma for each in result.gammas} for result in results]
    gamma = PAPER_GAMMA if all(PAPER_GAMMA in each for each in gammas) else min(set.intersection(*gammas), default=1)
    columns = sorted({(result.task, result.temperature) for result in results})
    rows = []
    for stage in dict.fromkeys(result.stage for result in results):
        cells = {(r.task, r.temperature): at_or_best(r, gamma).acceptance_rate for r in results if r.stage == stage}
        rows.append({"stage": stage, "cells": [cells.get(column) for column in columns]})
    return {
        "gamma": gamma,
        "columns": [f"{task}, {sampling_text(temperature)}" for task, temperature in columns],
        "rows": rows,
    }


def _synthetic_data(card: CompletionsCard) -> dict[str, str]:
    """The quality report of the synthetic data; only its size if the run has no such report."""
    if card.quality is None:
        return {"engine": card.engine, "completions": f"{card.completions:,}", "tokens": f"{card.tokens:,}"}
    return quality_fields(card.engine, card.log_probabilities, card.quality)


def _recipe_parts(settings: Sequence[Setting]) -> list[tuple[str, list[Setting]]]:
    """The recipe by its parts, preceded by the keys of the recipe itself."""
    top_level = [setting for setting in settings if "." not in setting.key]
    nested = [setting for setting in settings if "." in setting.key]
    parts = groupby(nested, key=lambda setting: setting.key.partition(".")[0])
    return [("run", top_level), *((part, list(keys)) for part, keys in parts)]


def _summary(name: str, run: RunData, run_verdict: Verdict | None) -> dict[str, Any]:
    """One line about a run."""
    drafts = list(run.drafts.values())
    return {
        "name": name,
        "target": run.target_name,
        "parameters": drafts[-1].shape.parameters if drafts else None,
        "verdict": run_verdict,
        "seconds": sum(stage.card.cost.seconds for stage in run.stages if stage.card),
        "energy": total_energy([run]),
        "state": ", ".join(f"{stage.name} {stage.state}" for stage in run.unfinished) or "finished",
    }


def _rates_by_run(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Block efficiency of every run, each at its own best gamma; a row for each task and temperature."""
    by_run = [
        {(r.task, r.temperature): at_or_best(r, r.best_gamma).block_efficiency for r in run.last_results}
        for run in runs
    ]
    rows = sorted({row for rates in by_run for row in rates})
    return [
        {"name": f"{task}, {sampling_text(t)}", "cells": [rates.get((task, t)) for rates in by_run]} for task, t in rows
    ]


# Marked texts.


def _marked_task(task: MarkedTask, count: int) -> dict[str, Any]:
    """The marked texts of a task, `count` of each kind, and what is rejected most."""
    kinds = {"best": task.best, "typical": task.typical, "worst": task.worst}
    return {
        "name": f"{task.task}, {sampling_text(task.temperature)}",
        "gamma": task.gamma,
        "greedy": task.temperature == 0,
        "kinds": {kind: [_marked_text(text) for text in texts[:count]] for kind, texts in kinds.items()},
        "tokens": task.rejected_tokens,
        "contexts": task.rejected_contexts,
    }


def _marked_text(text: MarkedText) -> Text:
    opens = [True, *(mark != ACCEPTED for mark in text.marks)]  # a block ends at the target's own token
    columns = zip(text.tokens, text.marks, opens, text.accept, text.confidence, text.proposed, strict=False)
    return Text(
        prompt=text.prompt,
        tau=text.block_efficiency,
        tokens=[Token(*column) for column in columns],
        accepted=text.marks.count(ACCEPTED),
        corrected=text.marks.count(CORRECTED),
        bonus=text.marks.count(BONUS),
    )
