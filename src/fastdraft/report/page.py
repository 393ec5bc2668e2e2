"""One self-contained HTML file: nothing in it asks anything of anyone, and nothing that a model wrote is obeyed."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from itertools import groupby
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from fastdraft import __version__
from fastdraft.evaluate.marked_tokens import ACCEPTED, BONUS, CORRECTED, MarkedTask, MarkedText
from fastdraft.report import comparison, figures
from fastdraft.report.charts import plotly
from fastdraft.report.costs import costs, energy_note, total_energy, total_seconds
from fastdraft.report.figures import Figure
from fastdraft.report.formatting import FILTERS, visible
from fastdraft.report.paper import PAPER
from fastdraft.report.read import Account, Setting
from fastdraft.report.terminal_quality import rows as quality_rows
from fastdraft.report.terminal_run import PAPER_GAMMA, sampling_text
from fastdraft.report.verdict import Verdict, at, verdict
from fastdraft.results.evaluation import Estimate, VerificationResult
from fastdraft.synthesize.completions_card import CompletionsCard
from fastdraft.system.optional_packages import need

# What the whole page may weigh; plotly's library is 4.8 MB of it. Fewer texts are shown where more would not fit.
MOST_BYTES, TEXTS = 6_000_000, (3, 1)


class Token(NamedTuple):
    """A token of a text as it is shown; `opens`: the first of a block."""

    text: str
    mark: str
    opens: bool
    accept: float
    confidence: float
    proposed: str


class Text(NamedTuple):
    """A text as it is shown."""

    prompt: str
    tau: float
    tokens: list[Token]
    accepted: int
    corrected: int
    bonus: int

    @property
    def blocks(self) -> int:
        """Passes of the target."""
        return sum(token.opens for token in self.tokens)


class Stages(NamedTuple):
    """Acceptance rate after each stage, a column for each task and distribution."""

    gamma: int
    columns: list[str]
    rows: list[dict[str, Any]]


def one(account: Account) -> str:
    """The page of one run."""
    drawn = figures.of_run(account)
    found, told = costs(account), verdict(account)
    values = {
        "run": account,
        "stage_names": [step.name for step in account.steps],
        "target_name": account.target.name if account.target else account.setting("target.path") or "?",
        "target_path": account.setting("target.path") or "TARGET",
        "draft_folder": account.folder / list(account.drafts)[-1] / "model" if account.drafts else "DRAFT",
        "verdict": told,
        "stages": _stages(account),
        "paper": PAPER,
        "verified": _verified(account),
        "costs": found,
        "seconds": total_seconds(found),
        "flops": sum(cost.flops or 0 for cost in found) or None,
        "energy": total_energy([account]),
        "energy_note": energy_note(total_energy([account])),
        "metered": any(cost.mfu is not None or cost.memory_bytes is not None for cost in found),
        "machines": list(dict.fromkeys(str(command.get("device")) for command in account.commands)),
        "data": _data(account.written) if account.written else {},
        "recipe": _parts(account.settings),
    }
    for kept in TEXTS:
        page = _page("run.html", account.name, drawn, values | {"texts": _texts(account, kept), "texts_kept": kept})
        if len(page.encode(errors="replace")) < MOST_BYTES:
            break
    return page


def several(accounts: Sequence[Account], compact: bool) -> str:
    """The page of several runs; a compact one has a line for each, and no more."""
    names = comparison.labels(accounts)
    verdicts = [verdict(account) for account in accounts]
    values: dict[str, Any] = {
        "names": names,
        "notes": [f"{name}: {note}" for name, account in zip(names, accounts, strict=True) for note in account.notes],
        "rows": [_row(*each) for each in zip(names, accounts, verdicts, strict=True)],
        "compact": compact,
        "energy": total_energy(accounts),
        "energy_note": energy_note(total_energy(accounts)),
        "against": [] if compact else comparison.against_first(accounts, names),
        "rates": [] if compact else _rates(accounts),
        "differing": [] if compact else comparison.differing(accounts),
        "sections": SECTIONS[:1] if compact else SECTIONS,
    }
    title = f"{len(accounts)} runs" if len(accounts) > 3 else " and ".join(names)
    return _page("runs.html", title, [] if compact else figures.of_runs(accounts, names), values)


SECTIONS = (
    ("verdict", "Verdict"),
    ("against", "Differences"),
    ("rates", "Blocks"),
    ("training", "Training"),
    ("recipe", "Recipes"),
)


def _page(template: str, title: str, drawn: Sequence[Figure], values: dict[str, Any]) -> str:
    """A template filled; scripts run by their digest alone, so that no other can."""
    library = [need("plotly.offline", "report").get_plotlyjs()] if drawn else []
    scripts = [*library, _file("report.js")]
    shared = {
        "title": title,
        "captions": {figure.name: figure for figure in drawn},
        "figures": htmlsafe_json_dumps({figure.name: plotly(figure) for figure in drawn}),
        "scripts": [Markup(script) for script in scripts],
        "style": Markup(_file("report.css")),
        "policy": _policy(scripts),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "sampling_text": sampling_text,
    }
    return _environment().get_template(template).render(shared | values)


def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("fastdraft.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    found.filters |= FILTERS
    return found


def _file(name: str) -> str:
    return files("fastdraft.report").joinpath("templates", name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """What the browser allows the page: these scripts, styles, pictures made in place; no request at all."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"


# Tables.


def _stages(account: Account) -> Stages:
    results = account.evaluation.results if account.evaluation else ()
    gammas = [{found.gamma for found in result.gammas} for result in results]
    gamma = PAPER_GAMMA if all(PAPER_GAMMA in found for found in gammas) else min(set.intersection(*gammas), default=1)
    columns = sorted({(result.task, result.temperature) for result in results})
    rows = []
    for stage in dict.fromkeys(result.stage for result in results):
        cells = {(r.task, r.temperature): at(r, gamma).acceptance_rate for r in results if r.stage == stage}
        rows.append({"stage": stage, "cells": [cells.get(column) for column in columns]})
    return Stages(gamma, [f"{task}, {sampling_text(temperature)}" for task, temperature in columns], rows)


def _verified(account: Account) -> list[tuple[str, VerificationResult]]:
    found = account.evaluation.verified if account.evaluation else {}
    return [(task, verdict) for task, verdicts in found.items() for verdict in verdicts]


def _data(card: CompletionsCard) -> dict[str, str]:
    """What the target wrote; less of runs that kept no report on it."""
    if card.quality is None:
        return {"engine": card.engine, "rows": f"{card.completions:,}", "tokens": f"{card.tokens:,}"}
    return quality_rows(card.engine, card.log_probabilities, card.quality)


def _parts(settings: Sequence[Setting]) -> list[tuple[str, list[Setting]]]:
    """The recipe by its parts; the keys that are in none come first."""
    lone = [setting for setting in settings if "." not in setting.key]
    nested = [setting for setting in settings if "." in setting.key]
    parts = groupby(nested, key=lambda setting: setting.key.partition(".")[0])
    return [("run", lone), *((part, list(rows)) for part, rows in parts)]


def _row(name: str, account: Account, told: Verdict | None) -> dict[str, Any]:
    """A run in one line."""
    drafts = list(account.drafts.values())
    return {
        "name": name,
        "target": account.target.name if account.target else account.setting("target.path") or "?",
        "parameters": drafts[-1].shape.parameters if drafts else None,
        "verdict": told,
        "seconds": sum(step.card.cost.seconds for step in account.steps if step.card),
        "energy": total_energy([account]),
        "state": ", ".join(f"{step.name} {step.state}" for step in account.missing) or "finished",
    }


def _rates(accounts: Sequence[Account]) -> list[dict[str, Any]]:
    """Block efficiency of every run by task and distribution, each at its own best gamma."""
    found = [{(r.task, r.temperature): at(r, r.best_gamma).block_efficiency for r in a.last} for a in accounts]
    places = sorted({place for cells in found for place in cells})
    return [{"name": f"{task}, {sampling_text(t)}", "cells": _cells(found, (task, t))} for task, t in places]


def _cells(found: Sequence[dict[tuple[str, float], Estimate]], place: tuple[str, float]) -> list[Estimate | None]:
    return [cells.get(place) for cells in found]


# Texts.


def _texts(account: Account, kept: int) -> list[dict[str, Any]]:
    """The marked texts by task and distribution, so many of each kind."""
    return [] if account.marked is None else [_group(task, kept) for task in account.marked.tasks]


def _group(task: MarkedTask, kept: int) -> dict[str, Any]:
    kinds = {"best": task.best, "typical": task.typical, "worst": task.worst}
    return {
        "name": f"{task.task}, {sampling_text(task.temperature)}",
        "gamma": task.gamma,
        "greedy": task.temperature == 0,
        "kinds": {kind: [_text(text) for text in texts[:kept]] for kind, texts in kinds.items()},
        "tokens": task.rejected_tokens,
        "contexts": task.rejected_contexts,
    }


def _text(text: MarkedText) -> Text:
    opens = [True, *(mark != ACCEPTED for mark in text.marks)]
    columns = text.tokens, text.marks, opens, text.accept, text.confidence, text.proposed
    tokens = [Token(*values) for values in zip(*columns, strict=False)]
    counts = (text.marks.count(mark) for mark in (ACCEPTED, CORRECTED, BONUS))
    return Text(text.prompt, text.block_efficiency, tokens, *counts)
