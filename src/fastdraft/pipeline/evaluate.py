"""`evaluate`: every draft of the run on every task, and verification by real speculative decoding."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from fastdraft.config import EvaluatePart
from fastdraft.evaluate import marked_tokens, one_pass, verification
from fastdraft.evaluate.run_prompts import asked
from fastdraft.models import target
from fastdraft.models.run_context import Journey
from fastdraft.pipeline.stage_result import Made
from fastdraft.results.evaluation import JudgeResult, TaskResult
from fastdraft.synthesize.completions import Completion, CompletionStore
from fastdraft.synthesize.engine_transformers import complete
from fastdraft.synthesize.run_decoding import decoding

# (task, temperature) -> completions
Written = dict[tuple[str, float], list[Completion]]


def make_evaluation(journey: Journey, folder: Path) -> Made:
    """Every draft of the run scored on what the target writes after held-out prompts, and the judge's word."""
    part = journey.recipe.evaluate
    assert part is not None, "a stage without a part is not on the road"
    precision = journey.target_precision(folder, part.precision)
    model = journey.open_target(precision.dtype)
    texts = written(journey, part, model, CompletionStore(folder / "completions"))
    results = [result for phase in journey.drafts() for result in _evaluated(journey, part, phase, texts)]
    judged = _judged(journey, part, model, texts, folder) if part.judge_prompts else {}
    _mark(journey, folder, results[-len(texts) :], texts)
    tokens = sum(len(row.tokens) for rows in texts.values() for row in rows)
    return Made({"precision": precision, "results": tuple(results), "judged": judged}, tokens)


def written(journey: Journey, part: EvaluatePart, model: PreTrainedModel, store: CompletionStore) -> Written:
    """The target's completions of all that it is asked."""
    how = decoding(journey, part, part.batch_prompts)
    return {
        (task, temperature): complete(model, requests, how, store, f"{task} at temperature {temperature:g}")
        for (task, temperature), requests in asked(journey, part).items()
    }


def _evaluated(journey: Journey, part: EvaluatePart, phase: str, written: Written) -> list[TaskResult]:
    model = journey.open_draft(phase)
    c = model.num_parameters() / journey.target_card().parameters
    return [
        one_pass.evaluate(
            model, rows, part.gammas, one_pass.Subject(phase, task, c), part.bootstrap_resamples, journey.recipe.seed
        )
        for (task, _), rows in written.items()
    ]


def _mark(journey: Journey, folder: Path, results: list[TaskResult], written: Written) -> None:
    """The last draft's acceptances, and some texts with every token marked, for people to look at."""
    draft, tokenizer = journey.open_draft(journey.drafts()[-1]), target.open_tokenizer(journey.recipe.target)
    marked_tokens.write_marked(
        folder, draft, zip(results, written.values(), strict=True), tokenizer, journey.recipe.seed
    )


def _judged(
    journey: Journey, part: EvaluatePart, model: PreTrainedModel, written: Written, folder: Path
) -> dict[str, tuple[JudgeResult, ...]]:
    """Real speculative decoding with the last draft, on the first prompts of each task.

    It is compared with what the fp32 target writes: where `model` is another, that target answers these prompts too.
    """
    first = {at: rows[: part.judge_prompts] for at, rows in written.items()}
    if model.dtype != torch.float32:
        model, how = journey.open_target(torch.float32), decoding(journey, part, part.batch_prompts)
        first = verification.in_fp32(model, first, how, CompletionStore(folder / "verification"))
    pair = verification.Judge(
        target=model,
        draft=journey.open_draft(journey.drafts()[-1]),
        gamma=part.judge_gamma,
        completion_tokens=part.completion_tokens,
        eos=frozenset(journey.target_card().eos_ids),
        resamples=part.bootstrap_resamples,
        seed=journey.recipe.seed,
    )
    return {task: tuple(verification.judge(pair, first[task, at]) for at in part.temperatures) for task in part.tasks}
