"""The figures of a report as plain data: plotly draws them in the page, matplotlib as PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from fastdraft.report.run_data import RunData
from fastdraft.results.bench import ArmResult, BenchResult
from fastdraft.results.evaluation import Estimate, GammaResult, TaskResult
from fastdraft.results.formatting import sampling_text

TOKENS, GAMMA = "tokens trained on, in millions", "gamma: drafted tokens per block"
# Longer lines are averaged to this many points: a screen shows no more, and the page stays small.
MAX_POINTS = 120
SPEEDUP = "times plain decoding"
BAND = "The band is the 95 % interval over prompts."
MEANS = "Each point is the mean of neighbouring steps."
DASHES = ("solid", "dash", "dot", "dashdot")


class Line(NamedTuple):
    """Points in order of x. `low` and `high` bound its band. `color` and `dash` are indices within the figure."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int
    dash: int = 0
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dots: bool = False


class Figure(NamedTuple):
    """`break_even`: the y value at which nothing is gained; `integer_x`: only whole numbers on the x axis."""

    name: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    break_even: float | None = None
    integer_x: bool = False
    note: str = ""


def of_run(run: RunData) -> list[Figure]:
    """All figures of one run, without those that have no data."""
    figures = [*_block_figures(run), *map(measured_speedup, run.benches), *_training_figures(run)]
    return [figure for figure in figures if any(line.x for line in figure.lines)]


def of_runs(runs: Sequence[RunData], names: Sequence[str]) -> list[Figure]:
    """Several runs in one figure: block efficiency for each task and temperature, and the training loss."""
    named = list(zip(names, runs, strict=True))
    settings = dict.fromkeys((r.task, r.temperature) for run in runs for r in run.last_results)
    figures = [_side_by_side(named, task, temperature) for task, temperature in sorted(settings)]
    losses = [
        line._replace(name=f"{name}: {line.name}", color=number, dash=line.color)
        for number, (name, run) in enumerate(named)
        for line in _phases(run, "loss_nats")
    ]
    note = f"{MEANS} Losses of different objectives are not comparable."
    figures.append(Figure("loss", "Training loss", TOKENS, "nats per token", tuple(losses), note=note))
    return [figure for figure in figures if any(line.x for line in figure.lines)]


# Evaluation.


def _block_figures(run: RunData) -> Iterator[Figure]:
    """Block efficiency, acceptance by position and expected speed-up of the last draft."""
    results = sorted(run.last_results, key=lambda r: (r.task, r.temperature))
    yield Figure(
        name="block-efficiency",
        title="Tokens per target pass",
        x_label=GAMMA,
        y_label="block efficiency",
        lines=tuple(_by_gamma(results, lambda result: result.block_efficiency)),
        break_even=1.0,
        integer_x=True,
        note=BAND,
    )
    yield Figure(
        name="position",
        title="Blocks accepted up to a position",
        x_label="position in the block",
        y_label="fraction of blocks",
        lines=tuple(_positions(results)),
        integer_x=True,
        note="In the longest measured block: how often the draft is accepted at least this far.",
    )
    yield Figure(
        name="mbsu",
        title="Expected speed-up if memory bandwidth bounds the target",
        x_label=GAMMA,
        y_label=SPEEDUP,
        lines=tuple(_by_gamma(results, lambda result: result.mbsu)),
        break_even=1.0,
        integer_x=True,
        note="Block efficiency / (c gamma + 1), where c is the draft's parameters divided by the target's. " + BAND,
    )


def _styled(results: Sequence[TaskResult]) -> Iterator[tuple[TaskResult, str, int, int]]:
    """Each result with its name, a colour for its task and a dash for its temperature."""
    tasks = list(dict.fromkeys(result.task for result in results))
    temperatures = sorted({result.temperature for result in results})
    for result in results:
        name = f"{result.task}, {sampling_text(result.temperature)}"
        yield result, name, tasks.index(result.task), temperatures.index(result.temperature)


def _by_gamma(results: Sequence[TaskResult], rate: Callable[[GammaResult], Estimate]) -> Iterator[Line]:
    for result, name, color, dash in _styled(results):
        yield _banded(name, [each.gamma for each in result.gammas], map(rate, result.gammas), color, dash)


def _banded(name: str, x: Sequence[float], estimates: Iterable[Estimate], color: int, dash: int = 0) -> Line:
    values = list(estimates)
    y, low, high = ([getattr(value, part) for value in values] for part in ("value", "low", "high"))
    return Line(name, x, y, color, dash, low, high, dots=True)


def _positions(results: Sequence[TaskResult]) -> Iterator[Line]:
    for result, name, color, dash in _styled(results):
        fractions = result.gammas[-1].position_acceptance
        yield Line(name, list(range(1, len(fractions) + 1)), list(fractions), color, dash, dots=True)


def _side_by_side(named: Sequence[tuple[str, RunData]], task: str, temperature: float) -> Figure:
    lines = [
        _banded(name, [at.gamma for at in r.gammas], [at.block_efficiency for at in r.gammas], number, number)
        for number, (name, run) in enumerate(named)
        for r in run.last_results
        if (r.task, r.temperature) == (task, temperature)
    ]
    return Figure(
        name=f"block-efficiency-{task}-{temperature:g}",
        title=f"{task}, {sampling_text(temperature)}",
        x_label=GAMMA,
        y_label="block efficiency",
        lines=tuple(lines),
        break_even=1.0,
        integer_x=True,
        note=BAND,
    )


# Benches.


def measured_speedup(bench: BenchResult) -> Figure:
    """Measured and predicted speed-up of greedy decoding by gamma, in the setting that the bench recommends."""
    setting = bench.advice.setting
    cells = [cell for cell in bench.cells if cell.setting == setting and cell.temperature == 0]
    return Figure(
        name=f"measured-{bench.engine}-{bench.device}",
        title=f"Measured: {bench.engine}, {bench.device}",
        x_label=GAMMA,
        y_label=SPEEDUP,
        lines=tuple(line for color, cell in enumerate(cells) for line in _timed(cell.task, cell.drafts, color)),
        break_even=1.0,
        integer_x=True,
        note=f"Greedy, setting {setting}. The band spans the lowest and the highest repeat.",
    )


def _timed(task: str, arms: Sequence[ArmResult], color: int) -> Iterator[Line]:
    speedups = [arm.speedup for arm in arms]
    y, low, high = ([getattr(speedup, part) for speedup in speedups] for part in ("value", "low", "high"))
    yield Line(f"{task}, measured", [arm.gamma for arm in arms], y, color, 0, low, high, dots=True)
    predicted = [(arm.gamma, arm.predicted.speedup) for arm in arms if arm.predicted]
    yield Line(f"{task}, predicted", [x for x, _ in predicted], [y for _, y in predicted], color, 1)


# Training.


def _training_figures(run: RunData) -> Iterator[Figure]:
    """Loss, block efficiency and throughput against trained tokens, one phase after the other."""
    keys = list(dict.fromkeys(key for rows in run.metrics.values() for row in rows for key in row))
    losses = [line._replace(name=f"{line.name}, training") for line in _phases(run, "loss_nats")]
    held_out = [line for key in keys if key.startswith("held_out_") for line in _phases(run, key)]
    block_efficiency = [line for key in keys if key.startswith("block_efficiency_") for line in _phases(run, key)]
    yield Figure("loss", "Loss", TOKENS, "nats per token", (*losses, *_intermittent(held_out)), note=MEANS)
    yield Figure(
        name="efficiency",
        title="Block efficiency during training",
        x_label=TOKENS,
        y_label="block efficiency",
        lines=_intermittent(block_efficiency),
        break_even=1.0,
        note="On prompts that the evaluation does not use.",
    )
    rates = tuple(_phases(run, "tokens_per_second"))
    yield Figure("throughput", "Throughput", TOKENS, "tokens per second", rates, note=MEANS)


def _intermittent(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Lines of measurements that are taken from time to time: a dash for each task, a dot for each measurement."""
    tasks = list(dict.fromkeys(line.name.partition(", ")[2] for line in lines))
    return tuple(line._replace(dash=1 + tasks.index(line.name.partition(", ")[2]), dots=True) for line in lines)


def _phases(run: RunData, key: str) -> Iterator[Line]:
    """One line per phase; x counts the tokens of the phases before it too."""
    previous_tokens = 0.0
    task = key.removeprefix("held_out_").removeprefix("block_efficiency_").removesuffix("_nats")
    label = "" if key in ("loss_nats", "tokens_per_second") else f", {task}" + " held out" * key.startswith("held_out_")
    for number, (phase, rows) in enumerate(run.metrics.items()):
        with_key = [row for row in rows if key in row]
        x, y = _thinned([(previous_tokens + row["tokens"]) / 1e6 for row in with_key], [row[key] for row in with_key])
        if x:
            yield Line(f"{phase}{label}", x, y, number)
        previous_tokens += rows[-1]["tokens"]


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most MAX_POINTS points, each the mean of neighbours."""
    if len(x) <= MAX_POINTS:
        return list(x), list(y)
    ends = [round(part * len(x) / MAX_POINTS) for part in range(MAX_POINTS + 1)]
    xs, ys = ([sum(values[a:b]) / (b - a) for a, b in pairwise(ends)] for values in (x, y))
    return xs, ys
