"""`evaluate DRAFT` on a terminal: rates with intervals, by gamma, against another draft, and their names elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastdraft.evaluate.rate_names import ELSEWHERE
from fastdraft.evaluate.score import Scores
from fastdraft.report.terminal_run import PAPER_GAMMA, interval, sampling_text
from fastdraft.results.evaluation import Comparison, GammaResult, Gap, TaskResult


def scores(found: Scores) -> RenderableType:
    """All of it."""
    shown: list[RenderableType] = []
    for name in dict.fromkeys(result.stage for result in found.results):
        results = [result for result in found.results if result.stage == name]
        shown += [_rates(name, results, found), _by_gamma(name, results)]
    if found.comparisons:
        shown.append(_compared(found.comparisons))
    return Group(*shown, _names(), Text("\n".join(_notes(found))))


def _rates(name: str, results: Sequence[TaskResult], found: Scores) -> Table:
    gammas = [at.gamma for at in results[0].gammas]
    stated = PAPER_GAMMA if PAPER_GAMMA in gammas else gammas[0]
    fraction = found.parameters[name] / found.parameters[found.target]
    table = _table(
        f"{name} as a draft of {found.target}, {fraction:.3f} of its parameters; 95 % intervals over prompts"
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
        best = _at(result, result.best_gamma)
        table.add_row(
            *(_named(result), str(result.prompts), interval(result.alpha)),
            interval(_at(result, stated).acceptance_rate),
            str(result.best_gamma),
            interval(best.block_efficiency),
            interval(best.mbsu),
        )
    return table


def _by_gamma(name: str, results: Sequence[TaskResult]) -> Table:
    longest = results[0].gammas[-1].gamma
    table = _table(f"{name} by gamma; position acceptance: that of token 1, 2, .. of blocks of {longest}")
    table.add_column("task")
    table.add_column("rate")
    for at in results[0].gammas:
        table.add_column(str(at.gamma), justify="right")
    for result in results:
        places = [f"{result.gammas[-1].position_acceptance[at.gamma - 1]:.2f}" for at in result.gammas]
        table.add_row(result.task, "acceptance rate", *_each(result, "acceptance_rate"))
        table.add_row(_sampling_text(result), "block efficiency", *_each(result, "block_efficiency"))
        table.add_row("", "MBSU", *_each(result, "mbsu"))
        table.add_row("", "position acceptance", *places, end_section=True)
    return table


def _each(result: TaskResult, rate: str) -> Iterator[str]:
    return (f"{getattr(at, rate).value:.2f}" for at in result.gammas)


def _compared(comparisons: Sequence[Comparison]) -> Table:
    table = _table(f"Minus {comparisons[0].other}, on the same completions, prompt by prompt; 95 % intervals")
    columns = ("task", "prompts", "alpha", "best gammas", "MBSU, each at its best gamma", "verdict")
    for column in columns:
        table.add_column(column, justify="left" if column in ("task", "verdict") else "right")
    for each in comparisons:
        table.add_row(
            *(_named(each), str(each.prompts), _signed(each.alpha)),
            f"{each.best_gammas[0]}, {each.best_gammas[1]}",
            _signed(each.best_mbsu),
            _verdict(each.best_mbsu),
        )
    return table


def _verdict(gap: Gap) -> str:
    if not gap.more_than_noise:
        return "no more than noise"
    return "better" if gap.value > 0 else "worse"


def _signed(gap: Gap) -> str:
    return f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"


def _names() -> Table:
    table = _table("What others call it")
    for column in ("here", "vLLM", "SGLang", "OpenVINO GenAI", "the paper"):
        table.add_column(column)
    for rate in ELSEWHERE:
        table.add_row(*(name or "-" for name in rate))
    return table


def _notes(found: Scores) -> Iterator[str]:
    for task, result in zip(found.tasks, found.results, strict=False):
        yield (
            f"{_named(result)}: task version {task.version}, {result.tokens:,} tokens, "
            f"{result.looping_fraction:.0%} of completions loop" + _left_out(task.left_out)
        )
    yield from (f"note: {note}" for note in found.notes)
    yield f"Any draft of this target: fastdraft evaluate DRAFT --data {found.recording}"


def _left_out(reasons: Mapping[str, int]) -> str:
    told = ", ".join(f"{count:,} {why}" for why, count in reasons.items())
    return f"; left out: {told}" if told else ""


def _table(title: str) -> Table:
    """Without lines between columns: twenty of them fit."""
    return Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)


def _named(result: TaskResult | Comparison) -> str:
    return f"{result.task}, {_sampling_text(result)}"


def _sampling_text(result: TaskResult | Comparison) -> str:
    return sampling_text(result.temperature, result.top_k, result.top_p)


def _at(result: TaskResult, gamma: int) -> GammaResult:
    return next(at for at in result.gammas if at.gamma == gamma)
