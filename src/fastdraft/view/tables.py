"""The end of a run on a terminal: acceptance by stage and task, the judge, the cost of stages, how to use the draft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastdraft.evaluate.records import Estimate, GammaResult, JudgeResult, TaskResult
from fastdraft.records import Cost

# The gamma at which the paper states acceptance (tables 1 and 2).
PAPER_GAMMA = 3


def results(measured: Sequence[TaskResult]) -> RenderableType:
    """Stage x task: a row a stage, task and temperature."""
    table = Table(title="Acceptance on held-out prompts, one pass, 95 % interval over prompts")
    for name in ("stage", "task", "T"):
        table.add_column(name)
    for name in ("alpha", "alpha, no loops", f"acceptance rate, gamma {PAPER_GAMMA}", "best gamma"):
        table.add_column(name, justify="right")
    for name in ("block efficiency at it", "MBSU at it"):
        table.add_column(name, justify="right")
    for result in sorted(measured, key=lambda r: (r.task, r.temperature)):
        best = _at(result, result.best_gamma)
        table.add_row(
            result.stage,
            result.task,
            "greedy" if result.temperature == 0 else f"{result.temperature:g}",
            _interval(result.alpha),
            "-" if result.alpha_without_loops is None else f"{result.alpha_without_loops:.3f}",
            _interval(_at(result, PAPER_GAMMA).acceptance_rate) if PAPER_GAMMA in _gammas(result) else "-",
            str(result.best_gamma),
            _interval(best.block_efficiency),
            f"{best.mbsu.value:.2f}",
        )
    return Group(table, _loops(measured))


def judged(verdicts: Mapping[str, Sequence[JudgeResult]]) -> RenderableType:
    """Real speculative decoding beside the one pass; what is printed has agreed, or the run would have stopped."""
    table = Table(title="The judge: real speculative decoding (transformers) with the last draft")
    for name in ("task", "T", "gamma", "prompts equal", "near ties", "block efficiency, real", "one pass"):
        table.add_column(name, justify="left" if name in ("task", "T") else "right")
    for task, verdict in ((task, verdict) for task, of_task in verdicts.items() for verdict in of_task):
        greedy = verdict.temperature == 0
        table.add_row(
            task,
            "greedy" if greedy else f"{verdict.temperature:g}",
            str(verdict.gamma),
            f"{verdict.compared} of {verdict.prompts}" if greedy else "-",
            str(len(verdict.near_ties)) if greedy else "-",
            _interval(verdict.real),
            _interval(verdict.one_pass),
        )
    return table


def costs(by_stage: Mapping[str, Cost]) -> RenderableType:
    """Seconds, tokens and tokens per second of every stage."""
    table = Table(title="Cost")
    table.add_column("stage")
    for name in ("seconds", "tokens", "tokens/s"):
        table.add_column(name, justify="right")
    for stage, cost in by_stage.items():
        rate = f"{cost.tokens_per_second:,.0f}" if cost.tokens else "-"
        table.add_row(stage, f"{cost.seconds:.1f}", f"{cost.tokens:,}" if cost.tokens else "-", rate)
    table.add_row("all", f"{sum(cost.seconds for cost in by_stage.values()):.1f}", "", "", style="bold")
    return table


def usage(target: Path | str, draft: Path) -> RenderableType:
    """Where the draft lies, and three lines of Python that use it."""
    return Text(
        f"the draft: {draft}\n\n"
        f"from transformers import AutoModelForCausalLM as Model, AutoTokenizer as Tokenizer\n"
        f"target, draft, tokenizer = (c.from_pretrained(p) for c, p in zip((Model, Model, Tokenizer), "
        f'("{target}", "{draft}", "{target}")))\n'
        f'print(tokenizer.decode(target.generate(**tokenizer("def main(", return_tensors="pt"), '
        f"assistant_model=draft, max_new_tokens=64)[0]))\n"
    )


def _loops(measured: Sequence[TaskResult]) -> RenderableType:
    """How much of what the target wrote repeats itself, which flatters a draft."""
    seen = {(r.task, r.temperature): r for r in measured}
    told = [
        f"{task} at {'greedy' if temperature == 0 else f'T {temperature:g}'}: {result.repeated_8grams:.1%} of 8-grams "
        f"repeat, {result.looping_share:.1%} of completions loop"
        for (task, temperature), result in sorted(seen.items())
    ]
    return Text("\n".join(told))


def _at(result: TaskResult, gamma: int) -> GammaResult:
    return next(at for at in result.gammas if at.gamma == gamma)


def _gammas(result: TaskResult) -> list[int]:
    return [at.gamma for at in result.gammas]


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
