"""Check a pair by every rule: one finding for each, and whether all hold."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field

from fastdraft.compatibility.engine_rules import ENGINE_RULES
from fastdraft.compatibility.repair import Plan, plan
from fastdraft.compatibility.rule import RepairKind, Rule
from fastdraft.compatibility.strict_rules import STRICT_RULES
from fastdraft.models.model_files import ModelFiles
from fastdraft.system.errors import VocabularyMismatch

BEYOND_REPAIR = "what still fails is beyond repair; do: train a draft for this target"


class Figures(BaseModel):
    """Base of the parts of a report."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFigures(Figures):
    """The figures of the target or the draft."""

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
    """One rule on this pair. `repair`: the repairs that would make it hold; empty if none would."""

    rule: str
    version: str
    source: str
    verdict: Literal["holds", "fails", "warns"]
    why: str
    repair: tuple[RepairKind, ...]


class Report(Figures):
    """All findings of a pair. `repairs`: what each repair would do; `obstacle`: why the draft cannot be repaired."""

    target: ModelFigures
    draft: ModelFigures
    findings: tuple[Finding, ...]
    repairs: dict[RepairKind, str]
    obstacle: str | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def holds(self) -> bool:
        """No rule fails; warnings are allowed."""
        return not self.failed()

    def failed(self) -> list[str]:
        """The names of the rules that fail."""
        return [finding.rule for finding in self.findings if finding.verdict == "fails"]


def check_pair(target: ModelFiles, draft: ModelFiles, repaired: bool = False) -> Report:
    """Check a pair by the rules of the engines and the strict ones. A `repaired` draft is not offered further repairs.

    VocabularyMismatch if the target's own files do not fit together.
    """
    _check_target(target)
    repair_plan = plan(target, draft)
    repair_plan = repair_plan._replace(obstacle=BEYOND_REPAIR) if repaired else repair_plan
    findings = tuple(_finding(rule, target, draft, repair_plan) for rule in (*ENGINE_RULES, *STRICT_RULES))
    useful = {kind for finding in findings for kind in finding.repair}
    return Report(
        target=_figures(target),
        draft=_figures(draft),
        findings=findings,
        repairs={kind: phrase for kind, phrase in repair_plan.phrases.items() if kind in useful},
        obstacle=repair_plan.obstacle,
    )


def _check_target(target: ModelFiles) -> None:
    rows, last = target.output_rows, max(target.id_bytes)
    if target.vocab_size != rows or last >= rows:
        raise VocabularyMismatch(
            f"target {target.name}: config.json says {target.vocab_size:,} rows, the output layer has {rows:,}, "
            f"the last id of the tokenizer is {last:,}\n"
            f"  wanted: as many rows as config.json says, one for each id\n"
            f"  do: use config.json, weights and tokenizer of the same model; no draft can fit this target"
        )


def _finding(rule: Rule, target: ModelFiles, draft: ModelFiles, repair_plan: Plan) -> Finding:
    result = rule.check(target, draft)
    failure: Literal["fails", "warns"] = "warns" if rule.only_warns else "fails"
    return Finding(
        rule=rule.name,
        version=rule.version,
        source=rule.source,
        verdict="holds" if result.holds else failure,
        why=result.why,
        repair=() if repair_plan.obstacle else result.repair_kinds,
    )


def _figures(files: ModelFiles) -> ModelFigures:
    return ModelFigures(
        name=files.name,
        family=files.text.model_type,
        vocab_size=files.vocab_size,
        embedding_rows=files.embedding_rows,
        output_rows=files.output_rows,
        rows_from=files.rows_from,
        tokens=len(files.id_bytes),
        bos_id=files.role_id("bos"),
        eos_ids=tuple(sorted(files.eos_ids)),
        pad_id=files.role_id("pad"),
        context_tokens=files.context_tokens(),
    )
