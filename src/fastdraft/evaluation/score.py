"""`evaluate DRAFT`: score one or two drafts on recorded completions, and verify by real speculative decoding."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from fastdraft.evaluation import one_pass, verification
from fastdraft.evaluation.comparison import ScoredDraft, compare
from fastdraft.evaluation.inputs import EvaluateOptions, EvaluationInputs, OpenedDraft, open_inputs, target_digest
from fastdraft.evaluation.rate_names import RATE_NAMES
from fastdraft.evaluation.recording import TaskCompletions
from fastdraft.models import pretrained
from fastdraft.results.evaluation import Comparison, Result, TaskResult, VerificationResult
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.system.errors import RecordingError
from fastdraft.system.progress import Bar


class Task(Result):
    """A task under one set of sampling parameters.

    `left_out`: rows that gave no prompt, by reason. `too_long`: completions longer than a draft's context.
    """

    name: str
    version: int
    source: str
    temperature: float
    max_new_tokens: int
    left_out: dict[str, int]
    too_long: int


class Scores(Result):
    """The results of one or two drafts, in this order.

    `names`: what engines and the paper call the rates. `verified`: real speculative decoding with the first draft.
    """

    target: str
    target_digest: str
    recording: str
    parameters: dict[str, int]
    notes: tuple[str, ...]
    tasks: tuple[Task, ...]
    results: tuple[TaskResult, ...]
    comparisons: tuple[Comparison, ...]
    names: dict[str, dict[str, str]]
    verified: dict[str, tuple[VerificationResult, ...]] = Field(default_factory=dict)


def evaluate_draft(options: EvaluateOptions) -> Scores:
    """Score the drafts and, if `options.verify_prompts` is set, verify the first one; raises as `verify` does."""
    inputs = open_inputs(options)
    scores = score(options, inputs)
    if not options.verify_prompts:
        return scores
    verified = verify(options, inputs, options.verify_prompts, options.verify_gamma)
    return scores.model_copy(update={"verified": verified})


def score(options: EvaluateOptions, inputs: EvaluationInputs) -> Scores:
    """Every draft on every task at every gamma; with two drafts also their differences."""
    card = inputs.recording.card.target
    tasks = list(_fitting(inputs, inputs.drafts))
    scored = [[_score(options, inputs, draft, task) for task in tasks] for draft in inputs.drafts]
    pairs = zip(*scored, strict=True) if len(scored) == 2 else ()
    return Scores(
        target=card.name,
        target_digest=card.digest,
        recording=str(inputs.folder),
        parameters={card.name: card.parameters} | {d.name: d.model.num_parameters() for d in inputs.drafts},
        notes=tuple(_notes(inputs, tasks)),
        tasks=tuple(_task(whole, task) for whole, task in zip(inputs.recording.tasks, tasks, strict=True)),
        results=tuple(task.result for draft in scored for task in draft),
        comparisons=tuple(compare(draft, baseline, options.resamples, options.seed) for draft, baseline in pairs),
        names={
            rate.fastdraft: {system: name for system, name in rate._asdict().items() if system != "fastdraft" and name}
            for rate in RATE_NAMES
        },
    )


def verify(
    options: EvaluateOptions, inputs: EvaluationInputs, prompts: int, gamma: int
) -> dict[str, tuple[VerificationResult, ...]]:
    """Real speculative decoding with the first draft on the first prompts of each task.

    RecordingError if the target's files have changed.
    """
    card = inputs.recording.card.target
    if (digest := pretrained.digest(inputs.target)) != card.digest:
        raise RecordingError(
            f"{inputs.folder} was written by {card.name} (files' digest {card.digest}); the files at "
            f"{inputs.target.path} have {digest}\n  do: name the target that wrote it with --target"
        )
    target = pretrained.open_model(inputs.target, options.device)
    tasks = [(task.recorded, task.completions[:prompts]) for task in _fitting(inputs, inputs.drafts[:1])]
    results: dict[str, tuple[VerificationResult, ...]] = {}
    with Bar("verify", sum(len(completions) for _, completions in tasks), "prompts") as bar:
        for recorded, completions in tasks:
            verifier = verification.Verifier(
                target=target,
                draft=inputs.drafts[0].model,
                gamma=gamma,
                max_new_tokens=recorded.max_new_tokens,
                eos=frozenset(card.eos_ids),
                resamples=options.resamples,
                seed=options.seed,
            )
            if inputs.recording.card.precision.name != "fp32":
                decoding = DecodingParams(
                    max_new_tokens=recorded.max_new_tokens,
                    eos=verifier.eos,
                    seed=recorded.seed,
                    target_revision="fp32",
                    batch_size=len(completions),
                )
                store = CompletionStore(inputs.folder / "verification")
                completions = verification.complete_in_fp32(target, recorded.task, completions, decoding, store)
            result = verification.verify(verifier, completions)
            results[recorded.task] = (*results.get(recorded.task, ()), result)
            bar.advance(result.prompts)
    return results


def _score(
    options: EvaluateOptions, inputs: EvaluationInputs, draft: OpenedDraft, task: TaskCompletions
) -> ScoredDraft:
    recorded, completions = task
    title = f"{draft.name} on {recorded.task} at temperature {recorded.temperature:g}"
    with Bar(title, len(completions), "completions") as bar:
        acceptances = one_pass.acceptances(draft.model, completions, bar.advance)
    result = one_pass.task_result(
        acceptances,
        completions,
        options.gammas,
        stage=draft.name,
        task=recorded.task,
        c=draft.model.num_parameters() / inputs.recording.card.target.parameters,
        resamples=options.resamples,
        seed=options.seed,
    )
    return ScoredDraft(acceptances, result)


def _fitting(inputs: EvaluationInputs, drafts: list[OpenedDraft]) -> Iterator[TaskCompletions]:
    """The tasks without the completions that exceed a draft's context; RecordingError if a task has none left."""
    context_tokens = min(_context_tokens(draft) for draft in drafts)
    for task in inputs.recording.tasks:
        fitting = [row for row in task.completions if len(row.prompt) + len(row.tokens) <= context_tokens]
        if not fitting:
            raise RecordingError(
                f"all {len(task.completions)} texts of {task.recorded.task} are longer than the draft's context of "
                f"{context_tokens} tokens\n  do: leave the task out with --tasks, or record shorter texts"
            )
        yield task._replace(completions=fitting)


def _context_tokens(draft: OpenedDraft) -> float:
    tokens = getattr(draft.model.config.get_text_config(), "max_position_embeddings", None)
    return tokens if isinstance(tokens, int) else float("inf")


def _task(whole: TaskCompletions, fitting: TaskCompletions) -> Task:
    recorded = whole.recorded
    return Task(
        name=recorded.task,
        version=recorded.version,
        source=recorded.source,
        temperature=recorded.temperature,
        max_new_tokens=recorded.max_new_tokens,
        left_out=recorded.left_out,
        too_long=len(whole.completions) - len(fitting.completions),
    )


def _notes(inputs: EvaluationInputs, tasks: list[TaskCompletions]) -> Iterator[str]:
    """Warnings about how comparable the rates are."""
    digest = inputs.recording.card.target.digest
    for draft in inputs.drafts:
        made_for = target_digest(draft.origin)
        if made_for not in (None, digest):
            yield f"{draft.name} was made for another target, or another revision of it: {made_for}, this is {digest}"
    for whole, fitting in zip(inputs.recording.tasks, tasks, strict=True):
        if too_long := len(whole.completions) - len(fitting.completions):
            yield f"{whole.recorded.task}: {too_long} texts are longer than a draft's context and left out"
