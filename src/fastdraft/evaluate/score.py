"""`evaluate DRAFT`: a draft, and another beside it, scored on what their target wrote; real decoding as the
verification.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastdraft.evaluate import one_pass, verification
from fastdraft.evaluate.comparison import Side, compare
from fastdraft.evaluate.inputs import EvaluateOptions, Material, Subjected, trained_for
from fastdraft.evaluate.one_pass import Subject
from fastdraft.evaluate.rate_names import ELSEWHERE
from fastdraft.evaluate.recording import Recorded, Written
from fastdraft.models import target
from fastdraft.results.evaluation import Comparison, Result, TaskResult, VerificationResult
from fastdraft.synthesize.completions import Completion, CompletionStore
from fastdraft.synthesize.engine_transformers import Decoding
from fastdraft.system.errors import RecordingError
from fastdraft.system.progress import Bar


class Task(Result):
    """A task under one distribution. `left_out`: rows without a prompt, by reason; `too_long`: texts beyond a
    context.
    """

    name: str
    version: int
    source: str
    temperature: float
    max_new_tokens: int
    left_out: dict[str, int]
    too_long: int


class Scores(Result):
    """All that was measured. `results`: of the draft, then of the other; `names`: what others call the rates."""

    target: str
    target_digest: str
    recording: str
    parameters: dict[str, int]
    notes: tuple[str, ...]
    tasks: tuple[Task, ...]
    results: tuple[TaskResult, ...]
    comparisons: tuple[Comparison, ...]
    names: dict[str, dict[str, str]]


def score(options: EvaluateOptions, given: Material) -> Scores:
    """Every draft on every task and distribution, at every gamma; the difference where there are two."""
    card = given.recording.card.target
    parts = list(_within(given, given.drafts))
    sides = [[_side(options, given, subject, part) for part in parts] for subject in given.drafts]
    pairs = zip(*sides, strict=True) if len(sides) == 2 else ()
    return Scores(
        target=card.name,
        target_digest=card.digest,
        recording=str(given.folder),
        parameters={card.name: card.parameters} | {each.name: each.model.num_parameters() for each in given.drafts},
        notes=tuple(_notes(given, parts)),
        tasks=tuple(_task(whole, part) for whole, part in zip(given.recording.parts, parts, strict=True)),
        results=tuple(side.result for of_draft in sides for side in of_draft),
        comparisons=tuple(compare(ours, theirs, options.resamples, options.seed) for ours, theirs in pairs),
        names={rate.ours: {k: v for k, v in rate._asdict().items() if k != "ours" and v} for rate in ELSEWHERE},
    )


def verify(
    options: EvaluateOptions, given: Material, prompts: int, gamma: int
) -> dict[str, tuple[VerificationResult, ...]]:
    """Real speculative decoding with the draft on the first prompts of each task; VerificationError where it
    disagrees.
    """
    card = given.recording.card.target
    if (digest := target.digest(given.target)) != card.digest:
        raise RecordingError(
            f"{given.folder} was written by {card.name} (files' digest {card.digest}); what is now at "
            f"{given.target.path} has {digest}\n  do: name the very target that wrote it with --target"
        )
    model = target.open_model(given.target, options.device)
    parts = [(part.written, part.completions[:prompts]) for part in _within(given, given.drafts[:1])]
    found: dict[str, tuple[VerificationResult, ...]] = {}
    with Bar("verify", sum(len(rows) for _, rows in parts), "prompts") as bar:
        for written, rows in parts:
            pair = verification.Verifier(
                target=model,
                draft=given.drafts[0].model,
                gamma=gamma,
                max_new_tokens=written.max_new_tokens,
                eos=frozenset(card.eos_ids),
                resamples=options.resamples,
                seed=options.seed,
            )
            if given.recording.card.precision.name != "fp32":
                rows = _in_fp32(pair, written, rows, given.folder)
            verdict = verification.verify(pair, rows)
            found[written.task] = (*found.get(written.task, ()), verdict)
            bar.advance(verdict.prompts)
    return found


def _in_fp32(pair: verification.Verifier, written: Written, rows: list[Completion], folder: Path) -> list[Completion]:
    """What the fp32 target writes after the prompts of these rows."""
    how = Decoding(written.max_new_tokens, pair.eos, written.seed, target_revision="fp32", batch_size=len(rows))
    at = written.task, written.temperature
    return verification.in_fp32(pair.target, {at: rows}, how, CompletionStore(folder / "verification"))[at]


def _side(options: EvaluateOptions, given: Material, subject: Subjected, part: Recorded) -> Side:
    rows, written = part.completions, part.written
    c = subject.model.num_parameters() / given.recording.card.target.parameters
    what = f"{subject.name} on {written.task} at temperature {written.temperature:g}"
    with Bar(what, len(rows), "completions") as bar:
        found = one_pass.acceptances(subject.model, rows, bar.advance)
    named = Subject(subject.name, written.task, c)
    return Side(found, one_pass.scored(found, rows, options.gammas, named, options.resamples, options.seed))


def _within(given: Material, drafts: list[Subjected]) -> Iterator[Recorded]:
    """The recorded parts without texts that are longer than a draft's context; RecordingError where none is left."""
    tokens = min(_context_tokens(subject) for subject in drafts)
    for part in given.recording.parts:
        kept = [row for row in part.completions if len(row.prompt) + len(row.tokens) <= tokens]
        if not kept:
            raise RecordingError(
                f"all {len(part.completions)} texts of {part.written.task} are longer than the draft's context of "
                f"{tokens} tokens\n  do: leave the task out with --tasks, or record shorter texts"
            )
        yield part._replace(completions=kept)


def _context_tokens(subject: Subjected) -> float:
    found = getattr(subject.model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) else float("inf")


def _task(whole: Recorded, part: Recorded) -> Task:
    written = whole.written
    return Task(
        name=written.task,
        version=written.version,
        source=written.source,
        temperature=written.temperature,
        max_new_tokens=written.max_new_tokens,
        left_out=written.left_out,
        too_long=len(whole.completions) - len(part.completions),
    )


def _notes(given: Material, parts: list[Recorded]) -> Iterator[str]:
    """What a reader of the figures must know."""
    digest = given.recording.card.target.digest
    for subject in given.drafts:
        other = trained_for(subject.origin)
        if other not in (None, digest):
            yield f"{subject.name} was made for another target, or another revision of it: {other}, this is {digest}"
    for whole, part in zip(given.recording.parts, parts, strict=True):
        if gone := len(whole.completions) - len(part.completions):
            yield f"{part.written.task}: {gone} texts are longer than a draft's context and left out"
