"""An export on the terminal: its folder, its verification, and how to use it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastdraft.exporters.licence_terms import in_a_line
from fastdraft.exporters.usage import USAGE
from fastdraft.results.export import ExportCard, Proof
from fastdraft.results.formatting import interval, sampling_text


def export_report(folder: Path, card: ExportCard) -> RenderableType:
    """The whole report."""
    size = sum(card.files.values())
    lines = [
        f"{folder}: {card.format}, weights {card.weights}, {size:,} bytes in {len(card.files)} files",
        *(f"note: {note}" for note in card.notes),
        in_a_line(card.target_licence),
        *(f"accepted by {accepted.engine}: {accepted.why}" for accepted in card.accepted),
        *_proof(card.proof),
    ]
    parts: list[RenderableType] = [Text("\n".join(lines))]
    if card.proof.kept:
        parts.append(_block_efficiency(card.proof))
    path = str(card.path_for_engine(folder))
    usage = [
        f"\n{engine}:\n{snippet.filled('TARGET', path)}"
        for engine, snippet in USAGE.items()
        if snippet.format == card.format
    ]
    return Group(*parts, Text("".join(usage)))


def _proof(proof: Proof) -> list[str]:
    gap = "" if proof.widest_gap is None else f"; where they differ, logits differ by at most {proof.widest_gap:.2g}"
    return [
        f"verified in {proof.engine}: {proof.equal_prompts} of {proof.prompts} greedy texts equal, "
        f"{proof.agreement:.1%} of {proof.tokens:,} tokens{gap}",
        f"tokenizer: {proof.texts - len(proof.unlike_texts)} of {proof.texts} probe texts give the ids of the target",
        *(f"  not {text!r}" for text in proof.unlike_texts),
    ]


def _block_efficiency(proof: Proof) -> Table:
    table = Table(title=f"Block efficiency at gamma {proof.kept[0].gamma}, with its 95 % interval over prompts")
    for name in ("sampling", "prompts", "the draft", "the export"):
        table.add_column(name, justify="left" if name == "sampling" else "right")
    for kept in proof.kept:
        sampling = sampling_text(kept.temperature)
        table.add_row(sampling, str(kept.prompts), interval(kept.original), interval(kept.exported))
    return table
