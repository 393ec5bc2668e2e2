"""The model card: what was measured of a draft, and how to use it; nothing that no card of its run says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

from huggingface_hub import ModelCard, ModelCardData

from fastdraft.corpus.licences import PERMISSIVE
from fastdraft.evaluate.records import Estimate, GammaResult, TaskResult
from fastdraft.export.evidence import Evidence
from fastdraft.export.records import ExportCard
from fastdraft.export.usage import GAMMA, USAGE
from fastdraft.recipe import SourcePart

FILE = "README.md"
LIBRARIES = {"huggingface": "transformers", "openvino": "openvino", "gguf": "gguf"}
SIZES = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
# What a source's licences are by the way it is read; of others the run knows nothing.
LICENCES = {
    kind: "permissive, as the packages declare them: "
    + ", ".join(PERMISSIVE.pattern.removeprefix(r"\b(").removesuffix(r")\b").replace("\\", "").split("|"))
    for kind in ("python_code", "python_docstrings")
}


def model_card(known: Evidence, export: ExportCard) -> str:
    """The text of README.md, its metadata in front."""
    metadata = ModelCardData(
        base_model=known.part.path if is_hub_id(known.part.path) else None,
        library_name=LIBRARIES[export.format],
        pipeline_tag="text-generation",
        tags=["speculative-decoding", "draft-model", "fastdraft"],
    )
    sections = (_what, _proof, _shape, _training, _data, _acceptance, _speed, _gamma, _weak, _use, _again)
    body = "\n\n".join("\n".join(section(known, export)) for section in sections)
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"))


def is_hub_id(path: str) -> bool:
    """Whether a target's name means something on another machine."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).exists()


def name_of(path: str) -> str:
    """A target's name as another machine knows it; of a local folder its own name."""
    return path if is_hub_id(path) else Path(path).name


def best_gamma(results: Sequence[TaskResult]) -> int:
    """The block length with the best memory-bound speed-up, in the mean over tasks and laws."""
    if not results:
        return GAMMA
    gammas = set.intersection(*({at.gamma for at in result.gammas} for result in results))
    return max(sorted(gammas), key=lambda gamma: fmean(_at(result, gamma).mbsu.value for result in results))


def _what(known: Evidence, export: ExportCard) -> Iterator[str]:
    share = known.parameters / known.target.parameters
    revision = f", revision `{known.part.revision}`" if known.part.revision else ""
    yield f"# A draft for {name_of(known.part.path)}"
    yield ""
    yield (
        f"{known.parameters:,} parameters, {share:.3f} of its target's {known.target.parameters:,}, for speculative "
        f"decoding: it proposes tokens, the target accepts or replaces them, and what is written is the target's own. "
        f"It is of no use by itself."
    )
    yield ""
    yield f"- Target: `{name_of(known.part.path)}`{revision}, files' digest `{export.target_digest}`"
    yield f"- This folder: {export.format}, weights {export.weights}"
    yield f"- Vocabulary: {known.target.vocab_rows:,} rows, the target's padded one, with its very tokenizer files"
    phases = ", ".join(known.phases) or "how is not recorded"
    yield f"- Made by FastDraft ([arXiv:2411.11055](https://arxiv.org/abs/2411.11055)): {phases}"
    for note in export.notes:
        yield f"- Note: {note}"


def _proof(known: Evidence, export: ExportCard) -> Iterator[str]:
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
            [_law(kept.temperature), str(kept.prompts), _interval(kept.original), _interval(kept.exported)]
            for kept in proof.kept
        ]
        gamma = proof.kept[0].gamma
        names = ["law", "prompts", f"block efficiency at gamma {gamma}, original", "this file"]
        yield from _table(names, rows)
    yield ""
    yield "Accepted as a draft of this target by the rule of"
    yield ""
    yield from (f"- {accepted.engine}: {accepted.why}" for accepted in export.accepted)


def _shape(known: Evidence, export: ExportCard) -> Iterator[str]:
    yield "## Shape"
    yield ""
    found = [
        (name, known.config[name])
        for name in (*SIZES, "intermediate_size", "vocab_size", "tie_word_embeddings")
        if name in known.config
    ]
    yield from _table([name for name, _ in found], [[str(value) for _, value in found]])


def _training(known: Evidence, export: ExportCard) -> Iterator[str]:
    yield "## Training"
    yield ""
    if not known.phases:
        yield "Not recorded: this draft did not come with its run."
        return
    rows = [
        [
            name,
            f"{phase.card.trained_tokens:,}",
            phase.part.objective,
            ", ".join(f"{source} {weight:g}" for source, weight in phase.part.mix.items()),
            ", ".join(f"{source} {nats:.3f}" for source, nats in phase.card.held_out_nats.items()),
            _hours(phase.card.cost.seconds),
        ]
        for name, phase in known.phases.items()
    ]
    yield from _table(["phase", "tokens", "objective", "mix", "held-out nats per token after it", "time"], rows)
    machines = dict.fromkeys(str(command.get("device")) for command in known.commands)
    yield ""
    yield f"Hardware: {'; '.join(machines) or 'not recorded'}. All stages: {_hours(_seconds(known))}."


def _data(known: Evidence, export: ExportCard) -> Iterator[str]:
    yield "## Data"
    yield ""
    if not known.sources:
        yield "Not recorded."
        return
    rows = [
        [
            name,
            _place(part),
            LICENCES.get(part.source, "not recorded: see the source"),
            f"{card.train.documents:,}",
            f"{card.train.tokens:,}",
            f"{card.held_out.tokens:,}",
        ]
        for name, (part, card) in known.sources.items()
    ]
    yield from _table(["source", "from", "licence", "documents", "tokens", "tokens held out"], rows)
    if known.written is not None:
        laws = ", ".join(_law(temperature) for temperature in known.written.part.temperatures)
        yield ""
        yield (
            f"For alignment the target itself wrote {known.written.tokens:,} tokens in {known.written.completions:,} "
            f"completions ({laws})."
        )


def _acceptance(known: Evidence, export: ExportCard) -> Iterator[str]:
    yield "## Acceptance"
    yield ""
    if not known.results:
        yield "Not measured."
        return
    yield (
        "On held-out prompts, in one pass over what the target wrote, pooled over tokens, with 95 % intervals over "
        "prompts. alpha is the mean acceptance of a token; block efficiency the tokens emitted per target forward."
    )
    yield ""
    names = [
        "task",
        "law",
        "prompts",
        "alpha",
        "alpha without looping texts",
        "best gamma",
        "acceptance rate",
        "block efficiency",
        "MBSU",
    ]
    yield from _table(names, [_result(result) for result in known.last])
    verdicts = [(task, verdict) for task, found in known.judged.items() for verdict in found]
    if verdicts:
        agreed = ", ".join(
            f"{task} {_law(v.temperature)} {v.real.value:.3f} for {v.one_pass.value:.3f}" for task, v in verdicts
        )
        yield ""
        yield (
            f"Real speculative decoding (transformers, gamma {verdicts[0][1].gamma}) agreed; block efficiency {agreed}."
        )


def _result(result: TaskResult) -> list[str]:
    at = _at(result, result.best_gamma)
    loopless = "-" if result.alpha_without_loops is None else f"{result.alpha_without_loops:.3f}"
    return [
        result.task,
        _law(result.temperature),
        str(result.prompts),
        _interval(result.alpha),
        loopless,
        str(result.best_gamma),
        _interval(at.acceptance_rate),
        _interval(at.block_efficiency),
        _interval(at.mbsu),
    ]


def _speed(known: Evidence, export: ExportCard) -> Iterator[str]:
    yield "## Speed-up"
    yield ""
    if not known.speeds:
        yield "Not measured. It depends on engine, device and prompts: `fastdraft bench TARGET DRAFT` measures it."
        return
    rows = [
        [
            speed.where,
            speed.task,
            _law(speed.temperature),
            str(speed.gamma),
            f"{speed.speedup:.2f}x [{speed.low:.2f}, {speed.high:.2f}]",
        ]
        for speed in known.speeds
    ]
    yield from _table(["where", "task", "law", "gamma", "wall clock with over without"], rows)


def _gamma(known: Evidence, export: ExportCard) -> Iterator[str]:
    yield "## Which gamma"
    yield ""
    yield from known.advice
    if known.results:
        each = ", ".join(f"{r.task} {_law(r.temperature)}: {r.best_gamma}" for r in known.last)
        yield (
            f"Where memory bounds the target, gamma {best_gamma(known.last)} is best in the mean over tasks ({each}). "
            f"Where a block costs more than a token, as on CPUs, a smaller one may be."
        )
    else:
        yield f"Not measured. Begin with {GAMMA}."


def _weak(known: Evidence, export: ExportCard) -> Iterator[str]:
    yield "## Where it is weak"
    yield ""
    tasks = dict.fromkeys(result.task for result in known.last)
    if len(tasks) < 2:
        yield "Not measured: it takes results on more than one task."
        return
    mean = {task: fmean(result.alpha.value for result in known.last if result.task == task) for task in tasks}
    worst = sorted(tasks, key=lambda task: mean[task])[: len(tasks) // 2]
    told = ", ".join(f"{task} (alpha {mean[task]:.3f} in the mean over laws)" for task in worst)
    yield f"Of what was measured, least accepted: {told}. Nothing is known of texts unlike those measured above."


def _use(known: Evidence, export: ExportCard) -> Iterator[str]:
    gamma = best_gamma(known.last)
    target = known.part.path if is_hub_id(known.part.path) else "TARGET"
    yield "## Use"
    yield ""
    yield "DRAFT is this folder where it is the form that the engine reads, or what `fastdraft export` makes for it."
    for engine, snippet in USAGE.items():
        here = (
            "this folder" if snippet.format == export.format else f"`fastdraft export DRAFT --format {snippet.format}`"
        )
        yield f"\n{engine} ({here}):\n\n```{snippet.language}\n{snippet.filled(target, 'DRAFT', gamma)}```"


def _again(known: Evidence, export: ExportCard) -> Iterator[str]:
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


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _place(part: SourcePart) -> str:
    """Where documents came from; of a local path the last part, which is all that means something elsewhere."""
    if part.path is None:
        return part.source
    where = part.path if part.source == "hub" else Path(part.path).name
    return f"{part.source} {where}" + (f" ({part.subset})" if part.subset else "")


def _seconds(known: Evidence) -> float:
    return sum(cost.seconds for cost in known.costs.values())


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _law(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"T = {temperature:g}"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _at(result: TaskResult, gamma: int) -> GammaResult:
    return next(at for at in result.gammas if at.gamma == gamma)
