"""A pair held against every rule: one finding each, and whether all hold."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field

from fastdraft.compatibility.engine_rules import ENGINES
from fastdraft.compatibility.repair import Plan, plan
from fastdraft.compatibility.rule import RepairKind, Rule
from fastdraft.compatibility.strict_rules import OURS
from fastdraft.models.model_files import Side
from fastdraft.system.errors import VocabularyMismatch

BEYOND = "what still fails is beyond repair; do: train a draft for this target"


class Figures(BaseModel):
    """What all parts of a report share."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SideFigures(Figures):
    """One side of the pair."""

    name: str
    family: str
    vocab_size: int
    embedding_rows: int
    output_rows: int
    rows_from: Literal["weights", "config.json"]
    tokens: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None
    context_tokens: int | None


class Finding(Figures):
    """One rule on this pair. `repair`: the repairs of the report that would make it hold; none where nothing would."""

    rule: str
    version: str
    source: str
    verdict: Literal["holds", "fails", "warns"]
    why: str
    repair: tuple[RepairKind, ...]


class Report(Figures):
    """All findings; `holds` where none fails. `repairs`: what each would do; `obstacle`: why none can be made."""

    target: SideFigures
    draft: SideFigures
    findings: tuple[Finding, ...]
    repairs: dict[RepairKind, str]
    obstacle: str | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def holds(self) -> bool:
        """Nothing fails; a warning is no failure."""
        return not self.failed()

    def failed(self) -> list[str]:
        """Names of the rules that do not hold."""
        return [finding.rule for finding in self.findings if finding.verdict == "fails"]


def check_pair(target: Side, draft: Side, repaired: bool = False) -> Report:
    """Every engine's rule and ours on a pair; what a `repaired` draft still breaks is beyond repair.

    VocabularyMismatch where the target does not fit itself.
    """
    _sound(target)
    repair_plan = plan(target, draft)
    repair_plan = repair_plan._replace(obstacle=BEYOND) if repaired else repair_plan
    findings = tuple(_finding(rule, target, draft, repair_plan) for rule in (*ENGINES, *OURS))
    asked = {kind for finding in findings for kind in finding.repair}
    return Report(
        target=_figures(target),
        draft=_figures(draft),
        findings=findings,
        repairs={kind: phrase for kind, phrase in repair_plan.phrases.items() if kind in asked},
        obstacle=repair_plan.obstacle,
    )


def _sound(target: Side) -> None:
    rows, last = target.output_rows, max(target.spelled)
    if target.vocab_size != rows or last >= rows:
        raise VocabularyMismatch(
            f"target {target.name}: config.json says {target.vocab_size:,} rows, the output layer has {rows:,}, "
            f"the last id of the tokenizer is {last:,}\n"
            f"  wanted: as many rows as config.json says, one for each id\n"
            f"  do: take config.json, weights and tokenizer of one model; no draft can fit this target"
        )


def _finding(rule: Rule, target: Side, draft: Side, repair_plan: Plan) -> Finding:
    result = rule.check(target, draft)
    broken: Literal["fails", "warns"] = "warns" if rule.only_warns else "fails"
    return Finding(
        rule=rule.name,
        version=rule.version,
        source=rule.source,
        verdict="holds" if result.holds else broken,
        why=result.why,
        repair=() if repair_plan.obstacle else result.repair_kinds,
    )


def _figures(side: Side) -> SideFigures:
    return SideFigures(
        name=side.name,
        family=side.text.model_type,
        vocab_size=side.vocab_size,
        embedding_rows=side.embedding_rows,
        output_rows=side.output_rows,
        rows_from=side.rows_from,
        tokens=len(side.spelled),
        bos_id=side.role_id("bos"),
        eos_ids=tuple(sorted(side.ends)),
        pad_id=side.role_id("pad"),
        context_tokens=side.context_tokens(),
    )
