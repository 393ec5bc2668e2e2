"""Does a draft fit its target: one line for each rule, and what a repair did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastdraft.compatibility.report import Report, SideFigures

WORDS = {"holds": "yes", "fails": "NO", "warns": "warning"}


def findings(report: Report) -> RenderableType:
    """The two sides, a line for each rule, and the verdict."""
    table = Table(title=Text(f"Does {report.draft.name} fit {report.target.name}?"), title_justify="left")
    for name in ("rule", "read at", "holds", "why", "--repair"):
        table.add_column(name, overflow="fold")
    for found in report.findings:
        # As text, not as rich's markup: a token may look like it, such as [/INST].
        why = Text(found.why)
        table.add_row(found.rule, found.version, WORDS[found.verdict], why, ", ".join(found.repair) or "-")
    return Group(_side("target", report.target), _side("draft", report.draft), table, Text(_verdict(report)))


def repaired(out: Path, done: Sequence[str]) -> RenderableType:
    """What was changed on the way to a repaired draft."""
    return Text("\n".join([f"repaired into {out}:", *(f"  {line}" for line in done), ""]))


def _side(role: str, side: SideFigures) -> Text:
    rows = f"{side.output_rows:,} rows ({side.rows_from})"
    return Text(f"{role:6}  {side.name}: {side.family}, {rows}, {side.tokens:,} tokens, context {side.context_tokens}")


def _verdict(report: Report) -> str:
    if report.holds:
        return "it fits: every rule holds"
    told = f"it does not fit: {len(report.failed())} of {len(report.findings)} rules fail"
    if report.obstacle:
        return f"{told}\n{report.obstacle}"
    repair_kinds = [f"  {name}: {phrase}" for name, phrase in report.repairs.items()]
    return "\n".join([told, *repair_kinds, f"  do: fastdraft check {report.target.name} {report.draft.name} --repair"])
