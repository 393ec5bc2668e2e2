"""An export on a terminal: where it lies, its proof, how to use it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastdraft.export.licence_terms import in_a_line
from fastdraft.export.usage import USAGE
from fastdraft.results.evaluation import Estimate
from fastdraft.results.export import ExportCard, Proof


def export_report(folder: Path, card: ExportCard) -> RenderableType:
    """All that a person must know of it."""
    size = sum(card.files.values())
    head = [f"{folder}: {card.format}, weights {card.weights}, {size:,} bytes in {len(card.files)} files"]
    head += [f"note: {note}" for note in card.notes]
    head.append(in_a_line(card.target_licence))
    head += [f"accepted by {accepted.engine}: {accepted.why}" for accepted in card.accepted]
    parts: list[RenderableType] = [Text("\n".join([*head, *_proof(card.proof)]))]
    if card.proof.kept:
        parts.append(_kept(card.proof))
    given = str(card.given_to_an_engine(folder))
    usage = [f"\n{engine}:\n{s.filled('TARGET', given)}" for engine, s in USAGE.items() if s.format == card.format]
    return Group(*parts, Text("".join(usage)))


def _proof(proof: Proof) -> list[str]:
    gap = "" if proof.widest_gap is None else f"; where they part, by {proof.widest_gap:.2g} of a logit at most"
    lines = [
        f"proved in {proof.engine}: {proof.equal_prompts} of {proof.prompts} greedy texts equal, "
        f"{proof.agreement:.1%} of {proof.tokens:,} tokens{gap}",
        f"tokenizer: {proof.texts - len(proof.unlike_texts)} of {proof.texts} probe texts give the target's ids",
    ]
    return [*lines, *(f"  not {text!r}" for text in proof.unlike_texts)]


def _kept(proof: Proof) -> Table:
    table = Table(title=f"Block efficiency at gamma {proof.kept[0].gamma}, with its 95 % interval over prompts")
    for name in ("sampling", "prompts", "the draft", "the export"):
        table.add_column(name, justify="left" if name == "sampling" else "right")
    for kept in proof.kept:
        sampling_text = "greedy" if kept.temperature == 0 else f"T = {kept.temperature:g}"
        table.add_row(sampling_text, str(kept.prompts), _interval(kept.original), _interval(kept.exported))
    return table


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
