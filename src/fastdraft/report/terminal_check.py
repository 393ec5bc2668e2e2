"""A check on the terminal: one line for each rule, and what a repair changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastdraft.compatibility.report import ModelFigures, Report

VERDICTS = {"holds": "yes", "fails": "NO", "warns": "warning"}


def findings(report: Report) -> RenderableType:
    """The two models, a line for each rule, and the verdict."""
    table = Table(title=Text(f"Does {report.draft.name} fit {report.target.name}?"), title_justify="left")
    for name in ("rule", "read at", "holds", "why", "--repair"):
        table.add_column(name, overflow="fold")
    for finding in report.findings:
        # Not as a string: rich would read a token such as [/INST] as markup.
        why = Text(finding.why)
        table.add_row(finding.rule, finding.version, VERDICTS[finding.verdict], why, ", ".join(finding.repair) or "-")
    return Group(_side("target", report.target), _side("draft", report.draft), table, Text(_verdict(report)))


def repaired(out: Path, changes: Sequence[str]) -> RenderableType:
    """The changes that made the repaired draft."""
    return Text("\n".join([f"repaired into {out}:", *(f"  {line}" for line in changes), ""]))


def _side(role: str, side: ModelFigures) -> Text:
    rows = f"{side.output_rows:,} rows ({side.rows_from})"
    return Text(f"{role:6}  {side.name}: {side.family}, {rows}, {side.tokens:,} tokens, context {side.context_tokens}")


def _verdict(report: Report) -> str:
    if report.holds:
        return "it fits: every rule holds"
    summary = f"it does not fit: {len(report.failed())} of {len(report.findings)} rules fail"
    if report.obstacle:
        return f"{summary}\n{report.obstacle}"
    repairs = [f"  {name}: {phrase}" for name, phrase in report.repairs.items()]
    return "\n".join([summary, *repairs, f"  do: fastdraft check {report.target.name} {report.draft.name} --repair"])
