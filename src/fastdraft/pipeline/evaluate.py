"""`evaluate`: every draft of the run on every task, and verification by real speculative decoding."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from fastdraft.config import EvaluatePart
from fastdraft.evaluate import marked_tokens, one_pass, verification
from fastdraft.evaluate.run_prompts import asked
from fastdraft.models import target
from fastdraft.models.run_context import RunContext
from fastdraft.pipeline.stage_result import StageResult
from fastdraft.results.evaluation import TaskResult, VerificationResult
from fastdraft.synthesize.completions import Completion, CompletionStore
from fastdraft.synthesize.engine_transformers import complete
from fastdraft.synthesize.run_decoding import decoding

# (task, temperature) -> completions
Written = dict[tuple[str, float], list[Completion]]


def make_evaluation(run_context: RunContext, folder: Path) -> StageResult:
    """Every draft of the run scored on what the target writes after held-out prompts, and the verification's word."""
    part = run_context.recipe.evaluate
    assert part is not None, "a stage without a part is not in the pipeline"
    precision = run_context.target_precision(folder, part.precision)
    model = run_context.open_target(precision.dtype)
    texts = written(run_context, part, model, CompletionStore(folder / "completions"))
    results = [result for phase in run_context.drafts() for result in _evaluated(run_context, part, phase, texts)]
    verified = _verified(run_context, part, model, texts, folder) if part.verify_prompts else {}
    _mark(run_context, folder, results[-len(texts) :], texts)
    tokens = sum(len(row.tokens) for rows in texts.values() for row in rows)
    return StageResult({"precision": precision, "results": tuple(results), "verified": verified}, tokens)


def written(run_context: RunContext, part: EvaluatePart, model: PreTrainedModel, store: CompletionStore) -> Written:
    """The target's completions of all that it is asked."""
    how = decoding(run_context, part, part.batch_size)
    return {
        (task, temperature): complete(model, requests, how, store, f"{task} at temperature {temperature:g}")
        for (task, temperature), requests in asked(run_context, part).items()
    }


def _evaluated(run_context: RunContext, part: EvaluatePart, phase: str, written: Written) -> list[TaskResult]:
    model = run_context.open_draft(phase)
    c = model.num_parameters() / run_context.target_card().parameters
    return [
        one_pass.evaluate(
            model,
            rows,
            part.gammas,
            one_pass.Subject(phase, task, c),
            part.bootstrap_resamples,
            run_context.recipe.seed,
        )
        for (task, _), rows in written.items()
    ]


def _mark(run_context: RunContext, folder: Path, results: list[TaskResult], written: Written) -> None:
    """The last draft's acceptances, and some texts with every token marked, for people to look at."""
    draft, tokenizer = (
        run_context.open_draft(run_context.drafts()[-1]),
        target.open_tokenizer(run_context.recipe.target),
    )
    marked_tokens.write_marked(
        folder, draft, zip(results, written.values(), strict=True), tokenizer, run_context.recipe.seed
    )


def _verified(
    run_context: RunContext, part: EvaluatePart, model: PreTrainedModel, written: Written, folder: Path
) -> dict[str, tuple[VerificationResult, ...]]:
    """Real speculative decoding with the last draft, on the first prompts of each task.

    It is compared with what the fp32 target writes: where `model` is another, that target answers these prompts too.
    """
    first = {at: rows[: part.verify_prompts] for at, rows in written.items()}
    if model.dtype != torch.float32:
        model, how = run_context.open_target(torch.float32), decoding(run_context, part, part.batch_size)
        first = verification.in_fp32(model, first, how, CompletionStore(folder / "verification"))
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
