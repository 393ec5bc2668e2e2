"""`evaluate`: the draft of each phase on each task, and verification by real speculative decoding."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from fastdraft.config import EvaluatePart
from fastdraft.evaluation import marked_tokens, one_pass, verification
from fastdraft.evaluation.run_recording import evaluation_requests
from fastdraft.models import pretrained
from fastdraft.models.run_context import RunContext
from fastdraft.pipeline.stage_result import StageResult
from fastdraft.results.evaluation import TaskResult, VerificationResult
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Completion
from fastdraft.synthesize.decoding_params import decoding_params
from fastdraft.synthesize.engine_transformers import complete

# (task, temperature) -> the target's completions
Completions = dict[tuple[str, float], list[Completion]]


def make_evaluation(run_context: RunContext, folder: Path) -> StageResult:
    """Score the draft of each phase on the target's completions of held-out prompts, and verify the last draft."""
    part = run_context.recipe.evaluate
    assert part is not None, "a stage without a part is not in the pipeline"
    precision = run_context.target_precision(folder, part.precision)
    model = run_context.open_target(precision.dtype)
    completions = complete_tasks(run_context, part, model, CompletionStore(folder / "completions"))
    phases = run_context.drafts()
    results = [result for phase in phases for result in score_draft(run_context, part, phase, completions)]
    verified = _verify(run_context, part, model, completions, folder) if part.verify_prompts else {}
    marked_tokens.write_marked(
        folder,
        run_context.open_draft(phases[-1]),
        zip(results[-len(completions) :], completions.values(), strict=True),
        pretrained.open_tokenizer(run_context.recipe.target),
        run_context.recipe.seed,
    )
    tokens = sum(len(completion.tokens) for of_task in completions.values() for completion in of_task)
    return StageResult({"precision": precision, "results": tuple(results), "verified": verified}, tokens)


def complete_tasks(
    run_context: RunContext, part: EvaluatePart, model: PreTrainedModel, store: CompletionStore
) -> Completions:
    """The target's completions of every task's prompts at every temperature."""
    decoding = decoding_params(run_context, part, part.batch_size)
    return {
        (task, temperature): complete(model, requests, decoding, store, f"{task} at temperature {temperature:g}")
        for (task, temperature), requests in evaluation_requests(run_context, part).items()
    }


def score_draft(run_context: RunContext, part: EvaluatePart, phase: str, completions: Completions) -> list[TaskResult]:
    """The draft of one phase on every task at every temperature."""
    model = run_context.open_draft(phase)
    c = model.num_parameters() / run_context.target_card().parameters
    return [
        one_pass.evaluate(
            model,
            of_task,
            part.gammas,
            stage=phase,
            task=task,
            c=c,
            resamples=part.bootstrap_resamples,
            seed=run_context.recipe.seed,
        )
        for (task, _), of_task in completions.items()
    ]


def _verify(
    run_context: RunContext, part: EvaluatePart, model: PreTrainedModel, completions: Completions, folder: Path
) -> dict[str, tuple[VerificationResult, ...]]:
    """Real speculative decoding with the last draft, on the first prompts of each task.

    It is compared with the completions of the fp32 target, which are written first if `model` computes in bf16.
    """
    first = {key: of_task[: part.verify_prompts] for key, of_task in completions.items()}
    if model.dtype != torch.float32:
        model, decoding = run_context.open_target(torch.float32), decoding_params(run_context, part, part.batch_size)
        store = CompletionStore(folder / "verification")
        first = {
            (task, temperature): verification.complete_in_fp32(model, task, of_task, decoding, store)
            for (task, temperature), of_task in first.items()
        }
    pair = verification.Verifier(
        target=model,
        draft=run_context.open_draft(run_context.drafts()[-1]),
        gamma=part.verify_gamma,
        max_new_tokens=part.max_new_tokens,
        eos=frozenset(run_context.target_card().eos_ids),
        resamples=part.bootstrap_resamples,
        seed=run_context.recipe.seed,
    )
    return {task: tuple(verification.verify(pair, first[task, at]) for at in part.temperatures) for task in part.tasks}
