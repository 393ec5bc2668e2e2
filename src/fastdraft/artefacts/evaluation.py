"""`evaluate`: every draft of the run on every task, and real speculative decoding as the judge."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from transformers import PreTrainedModel

from fastdraft import target
from fastdraft.artefacts.completions import decoding
from fastdraft.artefacts.journey import Journey, Made
from fastdraft.corpus.shards import Tokens
from fastdraft.evaluate import judge, marked, onepass
from fastdraft.evaluate.records import JudgeResult, TaskResult
from fastdraft.precision import Precision
from fastdraft.recipe import EvaluatePart
from fastdraft.records import Card
from fastdraft.synthesize.completions import Completion, CompletionStore, Law, Request
from fastdraft.synthesize.generate import complete
from fastdraft.synthesize.prompts import document_prompts

# (task, temperature) -> completions
Written = dict[tuple[str, float], list[Completion]]


class EvaluationCard(Card):
    """Every draft of the run on every task and law, and real speculative decoding with the last one.

    `precision` is what the target computed in while it wrote.
    """

    kind: ClassVar[str] = "evaluation"
    precision: Precision
    results: tuple[TaskResult, ...]
    judged: dict[str, tuple[JudgeResult, ...]]


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


def asked(journey: Journey, part: EvaluatePart) -> dict[tuple[str, float], list[Request]]:
    """The held-out prompts of each task at each temperature; the same prompts for all."""
    prompts = {task: evaluation_prompts(journey, part, task) for task in part.tasks}
    return {(task, at): [Request(p, Law(at)) for p in prompts[task]] for task in prompts for at in part.temperatures}


def evaluation_prompts(journey: Journey, part: EvaluatePart, task: str) -> list[Tokens]:
    """The held-out prompts of a task."""
    generator = np.random.default_rng([journey.recipe.seed, part.tasks.index(task)])
    return list(document_prompts(journey.shards(task, "held_out"), part.prompts, part.prompt_tokens, 1, generator))


def _evaluated(journey: Journey, part: EvaluatePart, phase: str, written: Written) -> list[TaskResult]:
    model = journey.open_draft(phase)
    c = model.num_parameters() / journey.target_card().parameters
    return [
        onepass.evaluate(
            model, rows, part.gammas, onepass.Subject(phase, task, c), part.bootstrap_resamples, journey.recipe.seed
        )
        for (task, _), rows in written.items()
    ]


def _mark(journey: Journey, folder: Path, results: list[TaskResult], written: Written) -> None:
    """The last draft's acceptances, and some texts with every token marked, for people to look at."""
    draft, tokenizer = journey.open_draft(journey.drafts()[-1]), target.open_tokenizer(journey.recipe.target)
    marked.write_marked(folder, draft, zip(results, written.values(), strict=True), tokenizer, journey.recipe.seed)


def _judged(
    journey: Journey, part: EvaluatePart, model: PreTrainedModel, written: Written, folder: Path
) -> dict[str, tuple[JudgeResult, ...]]:
    """Real speculative decoding with the last draft, on the first prompts of each task.

    It is compared with what the fp32 target writes: where `model` is another, that target answers these prompts too.
    """
    first = {at: rows[: part.judge_prompts] for at, rows in written.items()}
    if model.dtype != torch.float32:
        model, how = journey.open_target(torch.float32), decoding(journey, part, part.batch_prompts)
        first = judge.in_fp32(model, first, how, CompletionStore(folder / "verification"))
    pair = judge.Judge(
        target=model,
        draft=journey.open_draft(journey.drafts()[-1]),
        gamma=part.judge_gamma,
        completion_tokens=part.completion_tokens,
        eos=frozenset(journey.target_card().eos_ids),
        resamples=part.bootstrap_resamples,
        seed=journey.recipe.seed,
    )
    return {task: tuple(judge.judge(pair, first[task, at]) for at in part.temperatures) for task in part.tasks}
