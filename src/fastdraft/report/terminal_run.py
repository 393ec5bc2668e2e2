"""The results of a run on the terminal: evaluation, verification, cost of the stages, and how to use the draft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastdraft.results.evaluation import TaskResult, VerificationResult
from fastdraft.results.formatting import disagreements, interval, or_dash, sampling_text
from fastdraft.system.cards import Cost
from fastdraft.system.energy import TotalJoules, energy_text, total_joules

# The gamma at which the paper states acceptance rates (tables 1 and 2).
PAPER_GAMMA = 3


def results(measured: Sequence[TaskResult]) -> RenderableType:
    """Acceptance by stage and task as in the paper's table 1, the last draft, and repetition in the target's texts."""
    return Group(_stages(measured), _last_draft(measured), _loops(measured))


def _stages(measured: Sequence[TaskResult]) -> Table:
    gammas = [[at.gamma for at in result.gammas] for result in measured]
    gamma = PAPER_GAMMA if all(PAPER_GAMMA in each for each in gammas) else gammas[0][0]
    table = Table(title=f"Acceptance rate at gamma {gamma} on held-out prompts, with its 95 % interval over prompts")
    table.add_column("after stage")
    columns = sorted({(r.task, r.temperature) for r in measured})
    for task, temperature in columns:
        table.add_column(f"{task}, {sampling_text(temperature)}", justify="right")
    for stage in dict.fromkeys(r.stage for r in measured):
        cells = {(r.task, r.temperature): r.at(gamma).acceptance_rate for r in measured if r.stage == stage}
        table.add_row(stage, *(interval(cells[column]) for column in columns))
    return table


def _last_draft(measured: Sequence[TaskResult]) -> Table:
    last = [r for r in measured if r.stage == measured[-1].stage]
    table = Table(title=f"The draft after {last[0].stage}, {last[0].c:.3f} of the target's parameters")
    for name in ("task", "alpha", "alpha, no loops", "best gamma", "block efficiency", "no loops", "MBSU"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for result in sorted(last, key=lambda r: (r.task, r.temperature)):
        best = result.at(result.best_gamma)
        table.add_row(
            f"{result.task}, {sampling_text(result.temperature)}",
            interval(result.alpha),
            or_dash(result.alpha_without_loops),
            str(result.best_gamma),
            interval(best.block_efficiency),
            or_dash(best.block_efficiency_without_loops),
            interval(best.mbsu),
        )
    return table


def _loops(measured: Sequence[TaskResult]) -> RenderableType:
    """How much of the target's text repeats itself, which raises acceptance."""
    by_task = {(r.task, r.temperature): r for r in measured}
    lines = [
        f"{task}, {sampling_text(temperature)}: {result.repeated_8grams:.1%} of 8-grams repeat, "
        f"{result.looping_fraction:.1%} of completions loop"
        for (task, temperature), result in sorted(by_task.items())
    ]
    return Text("\n".join(["Repetition in the target's completions:", *lines]))


def verified(by_task: Mapping[str, Sequence[VerificationResult]]) -> RenderableType:
    """Block efficiency of real speculative decoding next to that of the one pass; what disagrees is red."""
    table = Table(title="Verification: real speculative decoding (transformers) with the last draft")
    for name in ("task", "sampling", "gamma", "prompts equal", "near ties", "block efficiency, real", "one pass"):
        table.add_column(name, justify="left" if name in ("task", "sampling") else "right")
    for task, verifications in by_task.items():
        for result in verifications:
            greedy = result.temperature == 0
            table.add_row(
                task,
                sampling_text(result.temperature),
                str(result.gamma),
                f"{result.compared} of {result.prompts}" if greedy else "-",
                str(len(result.near_ties)) if greedy else "-",
                interval(result.real),
                interval(result.one_pass),
                style="red" if result.disagreements else None,
            )
    return Group(table, *(Text(line, style="red") for line in disagreements(by_task)))


def costs(by_stage: Mapping[str, Cost]) -> RenderableType:
    """Seconds, tokens and tokens per second of every stage, and energy if it was measured."""
    table = Table(title="Cost")
    table.add_column("stage")
    total = total_joules([cost.joules for cost in by_stage.values()])
    with_energy = total.joules is not None
    for name in ("seconds", "tokens", "tokens/s", *(["energy"] if with_energy else [])):
        table.add_column(name, justify="right")
    for stage, cost in by_stage.items():
        row = [
            stage,
            f"{cost.seconds:.1f}",
            f"{cost.tokens:,}" if cost.tokens else "-",
            f"{cost.tokens_per_second:,.0f}" if cost.tokens else "-",
        ]
        table.add_row(*row, *([_energy(total_joules([cost.joules]))] if with_energy else []))
    seconds = sum(cost.seconds for cost in by_stage.values())
    table.add_row("all", f"{seconds:.1f}", "", "", *([_energy(total)] if with_energy else []), style="bold")
    return table


def _energy(energy: TotalJoules) -> str:
    return "-" if energy.joules is None else f"{energy_text(energy.joules)} ({energy.of})"


def usage(target: Path | str, draft: Path) -> RenderableType:
    """The folder of the draft, and three lines of Python that use it."""
    return Text(
        f"the draft: {draft}\n\n"
        f"from transformers import pipeline\n"
        f'generate = pipeline("text-generation", "{target}", assistant_model="{draft}")\n'
        f'print(generate("def main(", max_new_tokens=64)[0]["generated_text"])\n'
    )
