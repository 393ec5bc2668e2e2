"""One-pass scoring beside real speculative decoding (transformers), gamma 1 to 8: the same numbers, at what cost?

    .venv/bin/python benchmarks/evaluation.py DRAFT [--target demo] [--task humaneval=FILE] [--prompts 24]
        [--max-new-tokens 64] [--temperature 0.6]

Real decoding writes texts of its own. Both are measured on the same prompts; the cost of real decoding is then scaled
by the square of (width of its intervals / width of the one-pass intervals), the share of prompts that it would need to
be as sure; one factor for all gammas, since a width over few prompts is itself noisy. What the target writes, once and
for every draft after, is counted apart. Seconds are the process's own: others on the machine disturb them less than
the clock's. A first prompt is decoded without being counted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

from fastdraft.config import TargetPart
from fastdraft.evaluate.assisted import decode
from fastdraft.evaluate.one_pass import Subject, acceptances, pooled, resampled_prompts, scored
from fastdraft.evaluate.tasks import tasks_of
from fastdraft.models import target
from fastdraft.results.evaluation import Estimate, TaskResult
from fastdraft.synthesize.completions import Completion, CompletionStore, Request, SamplingParams
from fastdraft.synthesize.engine_transformers import complete
from fastdraft.synthesize.write import Decoding

GAMMAS, RESAMPLES, SEED, REPEATS = range(1, 9), 2000, 7, 3


@dataclass(frozen=True)
class Pair:
    """The models, and how texts end."""

    target: PreTrainedModel
    draft: PreTrainedModel
    max_new_tokens: int
    eos: frozenset[int]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and what came of it."""
    started = time.process_time()
    made = work()
    return time.process_time() - started, made


def one_pass(pair: Pair, rows: Sequence[Completion]) -> TaskResult:
    """Every gamma."""
    subject = Subject("draft", "task", pair.draft.num_parameters() / pair.target.num_parameters())
    return scored(acceptances(pair.draft, rows), rows, GAMMAS, subject, RESAMPLES, SEED)


def real(pair: Pair, rows: Sequence[Completion], gamma: int) -> Estimate:
    """Block efficiency of real decoding after the same prompts."""
    torch.manual_seed(SEED + gamma)
    runs = [decode(row, pair.target, pair.draft, gamma, pair.max_new_tokens, pair.eos) for row in rows]
    tokens_B = torch.tensor([len(run.tokens) for run in runs])
    forwards_B = torch.tensor([run.forwards for run in runs])
    return pooled(tokens_B, forwards_B, resampled_prompts(len(rows), RESAMPLES, SEED))


def written(pair: Pair, task: str, part: TargetPart, sampling: SamplingParams, prompts: int) -> list[Completion]:
    """What the target writes once."""
    tokenizer, context = target.open_tokenizer(part), int(pair.target.config.get_text_config().max_position_embeddings)
    (found,) = tasks_of([task], tokenizer, context, prompts, pair.max_new_tokens)
    requests = [Request(prompt, sampling) for prompt in found.prompts]
    how = Decoding(pair.max_new_tokens, pair.eos, SEED, "", 64, min(pair.eos))
    with TemporaryDirectory() as folder:
        return complete(pair.target, requests, how, CompletionStore(Path(folder)), "completions")


def width(estimate: Estimate) -> float:
    """Of its interval."""
    return estimate.high - estimate.low


def shown(estimate: Estimate) -> str:
    """In a table."""
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def report(pair: Pair, rows: Sequence[Completion], writing_seconds: float) -> None:
    """A row a gamma, then the whole."""
    decode(rows[0], pair.target, pair.draft, 2, pair.max_new_tokens, pair.eos)
    found = [timed(lambda: one_pass(pair, rows)) for _ in range(REPEATS)]
    seconds, result = sorted(found, key=lambda each: each[0])[REPEATS // 2]
    print(f"{len(rows)} prompts, {result.tokens:,} tokens, {rows[0].sampling}, {torch.get_num_threads()} threads")
    print(
        f"one pass, {len(GAMMAS)} gammas: {seconds:.3f} s, the target's completions before it {writing_seconds:.1f} s\n"
    )
    print("| gamma | block efficiency, one pass | real | real, s |")
    print("|---|---|---|---|", flush=True)
    measured = []
    for at in result.gammas:
        cost, tau = timed(lambda gamma=at.gamma: real(pair, rows, gamma))
        measured.append((cost, tau))
        print(f"| {at.gamma} | {shown(at.block_efficiency)} | {shown(tau)} | {cost:.1f} |", flush=True)
    whole(measured, [at.block_efficiency for at in result.gammas], seconds, rows[0].sampling.greedy)


def whole(measured: Sequence[tuple[float, Estimate]], one: Sequence[Estimate], seconds: float, greedy: bool) -> None:
    """Agreement, and the factor at equal interval width."""
    taus = [tau for _, tau in measured]
    same = [tau == each if greedy else overlap(tau, each) for tau, each in zip(taus, one, strict=True)]
    prompts = 1.0 if greedy else sum(width(tau) ** 2 for tau in taus) / sum(width(each) ** 2 for each in one)
    cost = sum(each for each, _ in measured)
    print(f"\nagree at {sum(same)} of {len(same)} gammas")
    print(f"real decoding: {cost:.1f} s, {cost / seconds:.0f}x one pass; {prompts:.2f} times the prompts for intervals")
    print(f"as narrow: {cost * prompts:.1f} s, {cost * prompts / seconds:.0f}x")


def overlap(left: Estimate, right: Estimate) -> bool:
    """Do two intervals share a value?"""
    return left.low <= right.high and right.low <= left.high


def main() -> None:
    """Print a table of one distribution."""
    parser = argparse.ArgumentParser()
    parser.add_argument("draft", type=Path)
    parser.add_argument("--target", default="demo")
    parser.add_argument("--task", default="humaneval")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.6)
    options = parser.parse_args()
    target.quiet()
    part, cpu = TargetPart(path=options.target), torch.device("cpu")
    models = [target.open_model(each, cpu) for each in (part, TargetPart(path=str(options.draft.resolve())))]
    pair = Pair(models[0], models[1], options.max_new_tokens, frozenset(target.card(part)["eos_ids"]))
    seconds, rows = timed(
        lambda: written(pair, options.task, part, SamplingParams(options.temperature), options.prompts)
    )
    report(pair, rows, seconds)


if __name__ == "__main__":
    main()
