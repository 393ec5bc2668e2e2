"""The model card: what was measured of a draft, and how to use it. Everything in it comes from the run's cards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from fastdraft.exporters import licence_terms, model_card_sections
from fastdraft.exporters.evidence import Evidence
from fastdraft.exporters.markdown import code, plain, table
from fastdraft.exporters.usage import USAGE
from fastdraft.models.hub import is_hub_id, name_of
from fastdraft.results.export import ExportCard
from fastdraft.results.formatting import interval, sampling_text
from fastdraft.system.manifest import Command

FILE = "README.md"
LIBRARIES = {"huggingface": "transformers", "openvino": "openvino", "gguf": "gguf"}
SIZES = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")


def model_card(evidence: Evidence, export: ExportCard) -> str:
    """The text of README.md, with its front matter."""
    metadata = ModelCardData(
        base_model=evidence.part.path if is_hub_id(evidence.part.path) else None,
        library_name=LIBRARIES[export.format],
        pipeline_tag="text-generation",
        tags=["speculative-decoding", "draft-model", "fastdraft"],
        **licence_terms.metadata(export.target_licence),
    )
    measured = [section(evidence) for section in model_card_sections.SECTIONS]
    licence = licence_terms.section(export.target_licence, export.files)
    sections = [
        *(_summary(evidence, export), licence, _proof(export), _shape(evidence), *measured),
        *(_use(evidence, export), _reproduction(evidence)),
    ]
    body = "\n\n".join("\n".join(lines) for lines in sections)
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"))


def _summary(evidence: Evidence, export: ExportCard) -> Iterator[str]:
    fraction = evidence.parameters / evidence.target.parameters
    revision = f", revision {code(export.target_revision)}" if export.target_revision else ""
    terms = licence_terms.terms_of(export.target_licence)
    kind = f"{terms.name_prefix} draft" if terms and terms.name_prefix else "A draft"
    yield f"# {kind} for {plain(name_of(evidence.part.path))}"
    yield ""
    yield (
        f"{evidence.parameters:,} parameters, {fraction:.3f} of its target's {evidence.target.parameters:,}, for "
        f"speculative decoding: it proposes tokens, and the target accepts or replaces them, so the "
        f"output is the target's own. It is of no use by itself."
    )
    yield ""
    yield f"- Target: {code(name_of(evidence.part.path))}{revision}, files' digest {code(export.target_digest)}"
    yield f"- This folder: {plain(export.format)}, weights {plain(export.weights)}"
    rows = evidence.target.vocab_rows
    yield f"- Vocabulary: {rows:,} rows, those of the target with its padding, and its tokenizer files unchanged"
    if evidence.phases:
        paper = "[arXiv:2411.11055](https://arxiv.org/abs/2411.11055)"
        yield f"- Trained by FastDraft ({paper}): {', '.join(evidence.phases)}"
    for note in export.notes:
        yield f"- Note: {plain(note)}"


def _proof(export: ExportCard) -> Iterator[str]:
    proof = export.proof
    yield "## Verification of this export"
    yield ""
    yield (
        f"Compared in {plain(proof.engine)} with the original in transformers, float32: {proof.equal_prompts} of "
        f"{proof.prompts} greedy texts are equal, and {proof.agreement:.1%} of {proof.tokens:,} tokens of the original "
        f"are the most likely ones here."
    )
    if proof.widest_gap is not None:
        yield (f"Where texts differ, logits in the original differ by at most {proof.widest_gap:.2g}.")
    yield f"{proof.texts - len(proof.unlike_texts)} of {proof.texts} probe texts have the target's ids."
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
        yield from table(names, rows)
    yield ""
    yield "Accepted as a draft of this target by the rule of"
    yield ""
    yield from (f"- {plain(accepted.engine)}: {plain(accepted.why)}" for accepted in export.accepted)


def _shape(evidence: Evidence) -> Iterator[str]:
    yield "## Shape"
    yield ""
    sizes = [
        (name, evidence.config[name])
        for name in (*SIZES, "intermediate_size", "vocab_size", "tie_word_embeddings")
        if name in evidence.config
    ]
    yield from table([name for name, _ in sizes], [[str(value) for _, value in sizes]])


def _use(evidence: Evidence, export: ExportCard) -> Iterator[str]:
    gamma = model_card_sections.best_gamma(evidence.last)
    hub_id = evidence.part.path if is_hub_id(evidence.part.path) else "TARGET"
    file_name = export.path_for_engine(Path()).name
    yield "## Use"
    yield ""
    yield (
        "DRAFT is this folder if the engine reads its format, otherwise the folder that `fastdraft export` makes from "
        "it; llama.cpp opens the file in it. TARGET is the target in the same format."
    )
    for engine, snippet in USAGE.items():
        source = f"{code(file_name)} in this folder" if file_name else "this folder"
        source = source if snippet.format == export.format else f"`fastdraft export DRAFT --format {snippet.format}`"
        target = hub_id if snippet.format == "huggingface" else "TARGET"
        yield f"\n{engine} ({source}):\n\n```{snippet.language}\n{snippet.filled(target, 'DRAFT', gamma)}```"


def _reproduction(evidence: Evidence) -> Iterator[str]:
    yield "## Reproduction"
    yield ""
    if evidence.recipe is None:
        yield "Not recorded."
        return
    last = evidence.commands[-1] if evidence.commands else Command()
    packages = ", ".join(f"{name} {version}" for name, version in last.versions.items()) or "not recorded"
    commit = next((each.commit for each in reversed(evidence.commands) if each.commit), "not recorded")
    yield "`recipe.yaml`, next to this card, gives the origin of each value."
    yield ""
    yield "```bash\nfastdraft run recipe.yaml\n```"
    yield ""
    seed = "not recorded" if last.seed is None else last.seed
    yield f"Seed {seed}, commit {plain(commit)}; {plain(packages)}."
