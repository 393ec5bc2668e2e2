"""`evaluate DRAFT` on the terminal: rates, rates by gamma, comparison with another draft, names in other software."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastdraft.evaluation.rate_names import RATE_NAMES
from fastdraft.evaluation.score import Scores
from fastdraft.report.terminal_run import PAPER_GAMMA
from fastdraft.results.evaluation import Comparison, Gap, TaskResult
from fastdraft.results.formatting import interval, sampling_text, signed_interval


def scores(all_scores: Scores) -> RenderableType:
    """All tables."""
    parts: list[RenderableType] = []
    for name in dict.fromkeys(result.stage for result in all_scores.results):
        results = [result for result in all_scores.results if result.stage == name]
        parts += [_rates(name, results, all_scores), _by_gamma(name, results)]
    if all_scores.comparisons:
        parts.append(_compared(all_scores.comparisons))
    return Group(*parts, _names(), Text("\n".join(_notes(all_scores))))


def _rates(name: str, results: Sequence[TaskResult], all_scores: Scores) -> Table:
    gammas = [at.gamma for at in results[0].gammas]
    stated = PAPER_GAMMA if PAPER_GAMMA in gammas else gammas[0]
    fraction = all_scores.parameters[name] / all_scores.parameters[all_scores.target]
    table = _table(
        f"{name} as a draft of {all_scores.target}, {fraction:.3f} of its parameters; 95 % intervals over prompts"
    )
    columns = (
        "task",
        "prompts",
        "alpha",
        f"acceptance rate at {stated}",
        "best gamma",
        "block efficiency there",
        "MBSU",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "task" else "right")
    for result in results:
        best = result.at(result.best_gamma)
        table.add_row(
            _title(result),
            str(result.prompts),
            interval(result.alpha),
            interval(result.at(stated).acceptance_rate),
            str(result.best_gamma),
            interval(best.block_efficiency),
            interval(best.mbsu),
        )
    return table


def _by_gamma(name: str, results: Sequence[TaskResult]) -> Table:
    longest = results[0].gammas[-1].gamma
    table = _table(f"{name} by gamma; position acceptance: of token 1, 2, .. in blocks of {longest}")
    table.add_column("task")
    table.add_column("rate")
    for at in results[0].gammas:
        table.add_column(str(at.gamma), justify="right")
    for result in results:
        by_position = result.gammas[-1].position_acceptance
        table.add_row(result.task, "acceptance rate", *(f"{at.acceptance_rate.value:.2f}" for at in result.gammas))
        table.add_row(
            _sampling(result), "block efficiency", *(f"{at.block_efficiency.value:.2f}" for at in result.gammas)
        )
        table.add_row("", "MBSU", *(f"{at.mbsu.value:.2f}" for at in result.gammas))
        table.add_row(
            "",
            "position acceptance",
            *(f"{by_position[at.gamma - 1]:.2f}" for at in result.gammas),
            end_section=True,
        )
    return table


def _compared(comparisons: Sequence[Comparison]) -> Table:
    table = _table(f"Difference from {comparisons[0].other} on the same completions, paired by prompt; 95 % intervals")
    columns = ("task", "prompts", "alpha", "best gammas", "MBSU, each at its best gamma", "verdict")
    for column in columns:
        table.add_column(column, justify="left" if column in ("task", "verdict") else "right")
    for each in comparisons:
        table.add_row(
            _title(each),
            str(each.prompts),
            signed_interval(each.alpha),
            f"{each.best_gammas[0]}, {each.best_gammas[1]}",
            signed_interval(each.best_mbsu),
            _verdict(each.best_mbsu),
        )
    return table


def _verdict(gap: Gap) -> str:
    if not gap.more_than_noise:
        return "no more than noise"
    return "better" if gap.value > 0 else "worse"


def _names() -> Table:
    table = _table("Names of the rates in other software")
    for column in ("FastDraft", "vLLM", "SGLang", "OpenVINO GenAI", "the paper"):
        table.add_column(column)
    for rate in RATE_NAMES:
        table.add_row(*(name or "-" for name in rate))
    return table


def _notes(all_scores: Scores) -> Iterator[str]:
    for task, result in zip(all_scores.tasks, all_scores.results, strict=False):
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in task.left_out.items())
        yield (
            f"{_title(result)}: task version {task.version}, {result.tokens:,} tokens, "
            f"{result.looping_fraction:.0%} of completions loop" + (f"; left out: {left_out}" if left_out else "")
        )
    yield from (f"note: {note}" for note in all_scores.notes)
    yield f"To score another draft of this target: fastdraft evaluate DRAFT --data {all_scores.recording}"


def _table(title: str) -> Table:
    """A table without lines between its columns, so that twenty of them fit."""
    return Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)


def _title(result: TaskResult | Comparison) -> str:
    return f"{result.task}, {_sampling(result)}"


def _sampling(result: TaskResult | Comparison) -> str:
    return sampling_text(result.temperature, result.top_k, result.top_p)
