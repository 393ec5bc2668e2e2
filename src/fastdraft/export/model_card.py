"""The model card: what was measured of a draft, and how to use it; nothing that no card of its run says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from fastdraft.export import licence_terms, model_card_sections
from fastdraft.export.evidence import Evidence
from fastdraft.export.usage import USAGE
from fastdraft.models.hub import is_hub_id, name_of
from fastdraft.results.export import ExportCard
from fastdraft.results.formatting import interval, sampling_text

FILE = "README.md"
LIBRARIES = {"huggingface": "transformers", "openvino": "openvino", "gguf": "gguf"}
SIZES = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")


def model_card(known: Evidence, export: ExportCard) -> str:
    """The text of README.md, its metadata in front."""
    metadata = ModelCardData(
        base_model=known.part.path if is_hub_id(known.part.path) else None,
        library_name=LIBRARIES[export.format],
        pipeline_tag="text-generation",
        tags=["speculative-decoding", "draft-model", "fastdraft"],
        **licence_terms.metadata(export.target_licence),
    )
    measured = [section(known) for section in model_card_sections.SECTIONS]
    licence = licence_terms.section(export.target_licence, export.files)
    sections = [
        *(_what(known, export), licence, _proof(export), _shape(known), *measured),
        *(_use(known, export), _again(known)),
    ]
    body = "\n\n".join("\n".join(lines) for lines in sections)
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"))


def _what(known: Evidence, export: ExportCard) -> Iterator[str]:
    fraction = known.parameters / known.target.parameters
    revision = f", revision `{export.target_revision}`" if export.target_revision else ""
    bound = licence_terms.terms_of(export.target_licence)
    kind = f"{bound.begins} draft" if bound and bound.begins else "A draft"
    yield f"# {kind} for {name_of(known.part.path)}"
    yield ""
    yield (
        f"{known.parameters:,} parameters, {fraction:.3f} of its target's {known.target.parameters:,}, for speculative "
        f"decoding: it proposes tokens, the target accepts or replaces them, and what is written is the target's own. "
        f"It is of no use by itself."
    )
    yield ""
    yield f"- Target: `{name_of(known.part.path)}`{revision}, files' digest `{export.target_digest}`"
    yield f"- This folder: {export.format}, weights {export.weights}"
    yield f"- Vocabulary: {known.target.vocab_rows:,} rows, the target's padded one, with its very tokenizer files"
    if known.phases:
        paper = "[arXiv:2411.11055](https://arxiv.org/abs/2411.11055)"
        yield f"- Made by FastDraft ({paper}): {', '.join(known.phases)}"
    for note in export.notes:
        yield f"- Note: {note}"


def _proof(export: ExportCard) -> Iterator[str]:
    proof = export.proof
    yield "## This file says what the draft says"
    yield ""
    yield (
        f"Opened in {proof.engine} and held against the original (transformers, float32): {proof.equal_prompts} of "
        f"{proof.prompts} greedy texts equal to the last token, {proof.agreement:.1%} of {proof.tokens:,} tokens put "
        f"first."
    )
    if proof.widest_gap is not None:
        yield (f"Where texts part, the original preferred its own token by {proof.widest_gap:.2g} of a logit, at most.")
    yield f"{proof.texts - len(proof.unlike_texts)} of {proof.texts} probe texts are cut into the target's own ids."
    if proof.kept:
        yield ""
        rows = [
            [
                sampling_text(kept.temperature),
                str(kept.prompts),
                interval(kept.original),
                interval(kept.exported),
            ]
            for kept in proof.kept
        ]
        gamma = proof.kept[0].gamma
        names = ["sampling", "prompts", f"block efficiency at gamma {gamma}, original", "this file"]
        yield from model_card_sections.table(names, rows)
    yield ""
    yield "Accepted as a draft of this target by the rule of"
    yield ""
    yield from (f"- {accepted.engine}: {accepted.why}" for accepted in export.accepted)


def _shape(known: Evidence) -> Iterator[str]:
    yield "## Shape"
    yield ""
    found = [
        (name, known.config[name])
        for name in (*SIZES, "intermediate_size", "vocab_size", "tie_word_embeddings")
        if name in known.config
    ]
    yield from model_card_sections.table([name for name, _ in found], [[str(value) for _, value in found]])


def _use(known: Evidence, export: ExportCard) -> Iterator[str]:
    gamma = model_card_sections.best_gamma(known.last)
    named = known.part.path if is_hub_id(known.part.path) else "TARGET"
    ours = export.path_for_engine(Path()).name
    yield "## Use"
    yield ""
    yield (
        "DRAFT is this folder where it is the form that the engine reads, or what `fastdraft export` makes for it; "
        "llama.cpp reads the file in it. TARGET is the target in the form of the draft."
    )
    for engine, snippet in USAGE.items():
        here = f"`{ours}` in this folder" if ours else "this folder"
        here = here if snippet.format == export.format else f"`fastdraft export DRAFT --format {snippet.format}`"
        target = named if snippet.format == "huggingface" else "TARGET"
        yield f"\n{engine} ({here}):\n\n```{snippet.language}\n{snippet.filled(target, 'DRAFT', gamma)}```"


def _again(known: Evidence) -> Iterator[str]:
    yield "## How to make it again"
    yield ""
    if known.recipe is None:
        yield "Not recorded."
        return
    versions = known.commands[-1].get("versions", {}) if known.commands else {}
    told = ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded"
    commit = next((str(c["commit"]) for c in reversed(known.commands) if c.get("commit")), "not recorded")
    yield "`recipe.yaml` lies beside this card; every value says where it came from."
    yield ""
    yield "```bash\nfastdraft run recipe.yaml\n```"
    yield ""
    yield f"Seed {known.commands[-1].get('seed') if known.commands else 'not recorded'}, commit {commit}; {told}."
