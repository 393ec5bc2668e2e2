"""The end of a run on a terminal: acceptance by stage and task, the verification, the cost of stages, how to use the
draft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastdraft.results.evaluation import Estimate, GammaResult, TaskResult, VerificationResult
from fastdraft.system.cards import Cost
from fastdraft.system.energy import Spent, energy_text, spent

# The gamma at which the paper states acceptance (tables 1 and 2).
PAPER_GAMMA = 3


def results(measured: Sequence[TaskResult]) -> RenderableType:
    """Stage x task, as in the paper's table 1; what the last draft gives; how much the target repeats itself."""
    return Group(_stages(measured), _last_draft(measured), _loops(measured))


def _stages(measured: Sequence[TaskResult]) -> Table:
    gamma = PAPER_GAMMA if all(PAPER_GAMMA in _gammas(r) for r in measured) else measured[0].gammas[0].gamma
    table = Table(title=f"Acceptance rate at gamma {gamma} on held-out prompts, with its 95 % interval over prompts")
    table.add_column("after stage")
    columns = sorted({(r.task, r.temperature) for r in measured})
    for task, temperature in columns:
        table.add_column(f"{task}, {sampling_text(temperature)}", justify="right")
    for stage in dict.fromkeys(r.stage for r in measured):
        cells = {(r.task, r.temperature): _at(r, gamma).acceptance_rate for r in measured if r.stage == stage}
        table.add_row(stage, *(interval(cells[column]) for column in columns))
    return table


def _last_draft(measured: Sequence[TaskResult]) -> Table:
    last = [r for r in measured if r.stage == measured[-1].stage]
    table = Table(title=f"The draft after {last[0].stage}, {last[0].c:.3f} of the target's parameters")
    for name in ("task", "alpha", "alpha, no loops", "best gamma", "block efficiency", "no loops", "MBSU"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for result in sorted(last, key=lambda r: (r.task, r.temperature)):
        best = _at(result, result.best_gamma)
        table.add_row(
            f"{result.task}, {sampling_text(result.temperature)}",
            interval(result.alpha),
            _or_dash(result.alpha_without_loops),
            str(result.best_gamma),
            interval(best.block_efficiency),
            _or_dash(best.block_efficiency_without_loops),
            interval(best.mbsu),
        )
    return table


def verified(verdicts: Mapping[str, Sequence[VerificationResult]]) -> RenderableType:
    """Real speculative decoding beside the one pass; what is printed has agreed, or the run would have stopped."""
    table = Table(title="Verification: real speculative decoding (transformers) with the last draft")
    for name in ("task", "sampling", "gamma", "prompts equal", "near ties", "block efficiency, real", "one pass"):
        table.add_column(name, justify="left" if name in ("task", "sampling") else "right")
    for task, verdict in ((task, verdict) for task, of_task in verdicts.items() for verdict in of_task):
        greedy = verdict.temperature == 0
        table.add_row(
            task,
            sampling_text(verdict.temperature),
            str(verdict.gamma),
            f"{verdict.compared} of {verdict.prompts}" if greedy else "-",
            str(len(verdict.near_ties)) if greedy else "-",
            interval(verdict.real),
            interval(verdict.one_pass),
        )
    return table


def costs(by_stage: Mapping[str, Cost]) -> RenderableType:
    """Seconds, tokens and tokens per second of every stage, and energy where the machine told."""
    table = Table(title="Cost")
    table.add_column("stage")
    total = spent([cost.joules for cost in by_stage.values()])
    for name in ("seconds", "tokens", "tokens/s", *(["energy"] if total.joules is not None else [])):
        table.add_column(name, justify="right")
    for stage, cost in by_stage.items():
        rate = f"{cost.tokens_per_second:,.0f}" if cost.tokens else "-"
        row = stage, f"{cost.seconds:.1f}", f"{cost.tokens:,}" if cost.tokens else "-", rate
        table.add_row(*row, *_energy(spent([cost.joules]), total))
    seconds = sum(cost.seconds for cost in by_stage.values())
    table.add_row("all", f"{seconds:.1f}", "", "", *_energy(total, total), style="bold")
    return table


def _energy(found: Spent, total: Spent) -> list[str]:
    """The cell of a column that is there where any stage was told its energy."""
    known = "-" if found.joules is None else f"{energy_text(found.joules)} ({found.of})"
    return [] if total.joules is None else [known]


def usage(target: Path | str, draft: Path) -> RenderableType:
    """Where the draft lies, and three lines of Python that use it."""
    return Text(
        f"the draft: {draft}\n\n"
        f"from transformers import pipeline\n"
        f'write = pipeline("text-generation", "{target}", assistant_model="{draft}")\n'
        f'print(write("def main(", max_new_tokens=64)[0]["generated_text"])\n'
    )


def _loops(measured: Sequence[TaskResult]) -> RenderableType:
    """How much of what the target wrote repeats itself, which flatters a draft."""
    seen = {(r.task, r.temperature): r for r in measured}
    told = ["What the target wrote:"]
    told += [
        f"{task}, {sampling_text(temperature)}: {result.repeated_8grams:.1%} of 8-grams "
        f"repeat, {result.looping_fraction:.1%} of completions loop"
        for (task, temperature), result in sorted(seen.items())
    ]
    return Text("\n".join(told))


def sampling_text(temperature: float, top_k: int = 0, top_p: float = 1.0) -> str:
    """In words; what leaves the whole distribution alone is not said."""
    cuts = (f", top-k {top_k}" if top_k else "") + (f", top-p {top_p:g}" if top_p < 1 else "")
    return "greedy" if temperature == 0 else f"T = {temperature:g}{cuts}"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _at(result: TaskResult, gamma: int) -> GammaResult:
    return next(at for at in result.gammas if at.gamma == gamma)


def _gammas(result: TaskResult) -> list[int]:
    return [at.gamma for at in result.gammas]


def interval(estimate: Estimate) -> str:
    """A rate with its 95 % interval."""
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
