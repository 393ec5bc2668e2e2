"""Compare one-pass evaluation with speculative decoding by transformers for gamma 1 to 8: agreement and cost.

    .venv/bin/python benchmarks/evaluation.py DRAFT [--target demo] [--task humaneval=FILE] [--prompts 24]
        [--max-new-tokens 64] [--temperature 0.6]

Both are measured on the same prompts, but speculative decoding generates texts of its own. Its cost is scaled by the
square of (width of its intervals / width of the one-pass intervals), which is the ratio of prompts that it would need
for intervals of the same width. There is one ratio for all gammas, because widths over few prompts are noisy. The
target's completions, which are made once and reused for every draft, are timed separately. Times are CPU seconds of
this process, which other processes disturb less than wall-clock time. The first prompt is decoded once before the
measurement.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from fastdraft.config import TargetPart
from fastdraft.evaluation.assisted import decode
from fastdraft.evaluation.one_pass import evaluate, pooled, resampled_prompts
from fastdraft.evaluation.tasks import tasks_of
from fastdraft.models import pretrained, target
from fastdraft.results.evaluation import Estimate, TaskResult
from fastdraft.results.formatting import interval
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Completion, Request, SamplingParams
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_transformers import complete

GAMMAS, RESAMPLES, SEED, REPEATS = range(1, 9), 2000, 7, 3


@dataclass(frozen=True)
class Pair:
    """The models and the ids that end a text."""

    target: PreTrainedModel
    draft: PreTrainedModel
    max_new_tokens: int
    eos: frozenset[int]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and the result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def one_pass(pair: Pair, rows: Sequence[Completion]) -> TaskResult:
    """The one-pass evaluation of all gammas."""
    c = pair.draft.num_parameters() / pair.target.num_parameters()
    return evaluate(pair.draft, rows, GAMMAS, stage="draft", task="task", c=c, resamples=RESAMPLES, seed=SEED)


def speculative(pair: Pair, rows: Sequence[Completion], gamma: int) -> Estimate:
    """Block efficiency of speculative decoding after the same prompts."""
    torch.manual_seed(SEED + gamma)
    runs = [decode(row, pair.target, pair.draft, gamma, pair.max_new_tokens, pair.eos) for row in rows]
    tokens_B = torch.tensor([len(run.tokens) for run in runs])
    forwards_B = torch.tensor([run.forwards for run in runs])
    return pooled(tokens_B, forwards_B, resampled_prompts(len(rows), RESAMPLES, SEED))


def completions_of(pair: Pair, task: str, part: TargetPart, sampling: SamplingParams, prompts: int) -> list[Completion]:
    """The target's completions of the task's prompts."""
    tokenizer = pretrained.open_tokenizer(part)
    context = int(pair.target.config.get_text_config().max_position_embeddings)
    (task_prompts,) = tasks_of([task], tokenizer, context, prompts, pair.max_new_tokens)
    requests = [Request(prompt, sampling) for prompt in task_prompts.prompts]
    params = DecodingParams(pair.max_new_tokens, pair.eos, SEED, "", 64, min(pair.eos))
    with TemporaryDirectory() as folder:
        return complete(pair.target, requests, params, CompletionStore(Path(folder)), "completions")


def width(estimate: Estimate) -> float:
    """The width of the interval."""
    return estimate.high - estimate.low


def report(pair: Pair, rows: Sequence[Completion], writing_seconds: float) -> None:
    """Print a table row per gamma, and the summary."""
    decode(rows[0], pair.target, pair.draft, 2, pair.max_new_tokens, pair.eos)
    timings = [timed(lambda: one_pass(pair, rows)) for _ in range(REPEATS)]
    seconds, result = sorted(timings, key=lambda timing: timing[0])[REPEATS // 2]
    print(f"{len(rows)} prompts, {result.tokens:,} tokens, {rows[0].sampling}, {torch.get_num_threads()} threads")
    print(f"one pass, {len(GAMMAS)} gammas: {seconds:.3f} s, the target's completions {writing_seconds:.1f} s\n")
    print("| gamma | block efficiency, one pass | speculative decoding | its s |")
    print("|---|---|---|---|", flush=True)
    measured = []
    for at in result.gammas:
        cost, tau = timed(partial(speculative, pair, rows, at.gamma))
        measured.append((cost, tau))
        print(f"| {at.gamma} | {interval(at.block_efficiency)} | {interval(tau)} | {cost:.1f} |", flush=True)
    summary(measured, [at.block_efficiency for at in result.gammas], seconds, rows[0].sampling.greedy)


def summary(measured: Sequence[tuple[float, Estimate]], one: Sequence[Estimate], seconds: float, greedy: bool) -> None:
    """Print the agreement, and the ratio of costs at equal interval width."""
    taus = [tau for _, tau in measured]
    agree = [tau == estimate if greedy else overlap(tau, estimate) for tau, estimate in zip(taus, one, strict=True)]
    prompts = 1.0 if greedy else sum(width(tau) ** 2 for tau in taus) / sum(width(estimate) ** 2 for estimate in one)
    cost = sum(seconds for seconds, _ in measured)
    print(f"\nagree at {sum(agree)} of {len(agree)} gammas")
    print(f"speculative decoding: {cost:.1f} s, {cost / seconds:.0f}x one pass")
    cost *= prompts
    print(f"with {prompts:.2f}x the prompts, for equal intervals: {cost:.1f} s, {cost / seconds:.0f}x")


def overlap(left: Estimate, right: Estimate) -> bool:
    """Whether two intervals overlap."""
    return left.low <= right.high and right.low <= left.high


def main() -> None:

    parser = argparse.ArgumentParser()
    parser.add_argument("draft", type=Path)
    parser.add_argument("--target", default="demo")
    parser.add_argument("--task", default="humaneval")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.6)
    options = parser.parse_args()
    disable_progress_bar()
    part, cpu = TargetPart(path=options.target), torch.device("cpu")
    draft = pretrained.open_model(TargetPart(path=str(options.draft.resolve())), cpu)
    eos = frozenset(cast("Sequence[int]", target.card(part)["eos_ids"]))
    pair = Pair(pretrained.open_model(part, cpu), draft, options.max_new_tokens, eos)
    seconds, rows = timed(
        lambda: completions_of(pair, options.task, part, SamplingParams(options.temperature), options.prompts)
    )
    report(pair, rows, seconds)


if __name__ == "__main__":
    main()
