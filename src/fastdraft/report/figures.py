"""The figures of a report as plain data: drawn by plotly in the page, by matplotlib as PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from fastdraft.report.read import Account
from fastdraft.report.terminal_run import sampling_text
from fastdraft.results.bench import ArmResult, BenchResult
from fastdraft.results.evaluation import Estimate, GammaResult, TaskResult

TOKENS, GAMMA = "tokens trained on, in millions", "gamma: drafted tokens in a block"
# Points of a line: more are not seen, and the page would grow with the run.
POINTS = 120
TIMES = "times plain decoding"
BAND = "The band is the 95 % interval over prompts."
MEANS = "Each point is the mean of neighbouring steps."
DASHES = ("solid", "dash", "dot", "dashdot")


class Line(NamedTuple):
    """Points in order; `low` and `high` are its band. `color` and `dash` count within the figure's own."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int
    dash: int = 0
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dots: bool = False


class Figure(NamedTuple):
    """`even`: the height at which nothing is gained; `counted`: only whole numbers on the x axis."""

    name: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    even: float | None = None
    counted: bool = False
    note: str = ""


def of_run(account: Account) -> list[Figure]:
    """All figures of one run that it has data for."""
    found = [*_blocks(account), *map(measured, account.benches), *_training(account)]
    return [figure for figure in found if any(line.x for line in figure.lines)]


def of_runs(accounts: Sequence[Account], names: Sequence[str]) -> list[Figure]:
    """Several runs in one figure: block efficiency for each task and distribution, and the loss."""
    told = list(zip(names, accounts, strict=True))
    places = dict.fromkeys((r.task, r.temperature) for account in accounts for r in account.last)
    figures = [_side_by_side(told, *place) for place in sorted(places)]
    losses = [
        line._replace(name=f"{name}: {line.name}", color=number, dash=line.color)
        for number, (name, account) in enumerate(told)
        for line in _phases(account, "loss_nats")
    ]
    note = f"{MEANS} Losses of different objectives are not comparable."
    figures.append(Figure("loss", "Training loss", TOKENS, "nats a token", tuple(losses), note=note))
    return [figure for figure in figures if any(line.x for line in figure.lines)]


# Blocks.


def _blocks(account: Account) -> Iterator[Figure]:
    """Block efficiency, acceptance by position and speed-up of the last draft."""
    results = sorted(account.last, key=lambda r: (r.task, r.temperature))
    tau = tuple(_by_gamma(results, lambda found: found.block_efficiency))
    mbsu = tuple(_by_gamma(results, lambda found: found.mbsu))
    yield Figure(
        "block-efficiency", "Tokens for each pass of the target", GAMMA, "block efficiency", tau, 1.0, True, BAND
    )
    note = "In the longest block that was measured: how often the draft gets that far."
    places, fraction = "position in the block", "share of blocks"
    yield Figure("position", "Accepted at least so far", places, fraction, tuple(_positions(results)), None, True, note)
    title = "Expected speed-up where memory bounds the target"
    note = f"Block efficiency / (c gamma + 1), c being the draft's share of the target's parameters. {BAND}"
    yield Figure("mbsu", title, GAMMA, TIMES, mbsu, 1.0, True, note)


def _styled(results: Sequence[TaskResult]) -> Iterator[tuple[TaskResult, str, int, int]]:
    """Each result with its name, the colour of its task and the dash of its distribution."""
    tasks = list(dict.fromkeys(result.task for result in results))
    sampling_settings = sorted({result.temperature for result in results})
    for result in results:
        name = f"{result.task}, {sampling_text(result.temperature)}"
        yield result, name, tasks.index(result.task), sampling_settings.index(result.temperature)


def _by_gamma(results: Sequence[TaskResult], rate: Callable[[GammaResult], Estimate]) -> Iterator[Line]:
    for result, name, color, dash in _styled(results):
        yield _banded(name, [found.gamma for found in result.gammas], map(rate, result.gammas), color, dash)


def _banded(name: str, x: Sequence[float], estimates: Iterable[Estimate], color: int, dash: int = 0) -> Line:
    values = list(estimates)
    y, low, high = ([getattr(value, part) for value in values] for part in ("value", "low", "high"))
    return Line(name, x, y, color, dash, low, high, dots=True)


def _positions(results: Sequence[TaskResult]) -> Iterator[Line]:
    for result, name, color, dash in _styled(results):
        shares = result.gammas[-1].position_acceptance
        yield Line(name, list(range(1, len(shares) + 1)), list(shares), color, dash, dots=True)


def _side_by_side(told: Sequence[tuple[str, Account]], task: str, temperature: float) -> Figure:
    lines = [
        _banded(name, [at.gamma for at in r.gammas], [at.block_efficiency for at in r.gammas], number, number)
        for number, (name, account) in enumerate(told)
        for r in account.last
        if (r.task, r.temperature) == (task, temperature)
    ]
    name, title = f"block-efficiency-{task}-{temperature:g}", f"{task}, {sampling_text(temperature)}"
    return Figure(name, title, GAMMA, "block efficiency", tuple(lines), 1.0, True, BAND)


# Measured in engines.


def measured(bench: BenchResult) -> Figure:
    """Wall clock of greedy decoding against what one pass predicts, by gamma, in the setting that is advised."""
    cells = [each for each in bench.cells if each.setting == bench.advice.setting and each.temperature == 0]
    lines = tuple(line for color, cell in enumerate(cells) for line in _timed(cell.task, cell.drafts, color))
    name, title = f"measured-{bench.engine}-{bench.device}", f"Measured: {bench.engine}, {bench.device}"
    note = f"Greedy, setting {bench.advice.setting}. The band is the least and the greatest repeat."
    return Figure(name, title, GAMMA, TIMES, lines, 1.0, True, note)


def _timed(task: str, arms: Sequence[ArmResult], color: int) -> Iterator[Line]:
    spreads = [arm.speedup for arm in arms]
    y, low, high = ([getattr(each, part) for each in spreads] for part in ("value", "low", "high"))
    yield Line(f"{task}, measured", [arm.gamma for arm in arms], y, color, 0, low, high, dots=True)
    told = [(arm.gamma, arm.predicted.speedup) for arm in arms if arm.predicted]
    yield Line(f"{task}, predicted", [x for x, _ in told], [y for _, y in told], color, 1)


# Training.


def _training(account: Account) -> Iterator[Figure]:
    """Against tokens, phase behind phase."""
    keys = _keys(account)
    held_out = [line for key in keys if key.startswith("held_out_") for line in _phases(account, key)]
    losses = [line._replace(name=f"{line.name}, training") for line in _phases(account, "loss_nats")]
    yield Figure("loss", "Loss", TOKENS, "nats a token", (*losses, *_now_and_then(held_out)), note=MEANS)
    measures = [line for key in keys if key.startswith("block_efficiency_") for line in _phases(account, key)]
    title, note = "Block efficiency while it trains", "On prompts that the evaluation does not use."
    yield Figure("efficiency", title, TOKENS, "block efficiency", _now_and_then(measures), 1.0, note=note)
    rates = tuple(_phases(account, "tokens_per_second"))
    yield Figure("throughput", "Throughput", TOKENS, "tokens a second", rates, note=MEANS)


def _keys(account: Account) -> list[str]:
    """Every key of the metrics, each once."""
    return list(dict.fromkeys(key for rows in account.metrics.values() for row in rows for key in row))


def _now_and_then(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Measures taken now and then: a dash for each task, dots where they were taken."""
    tasks = list(dict.fromkeys(line.name.partition(", ")[2] for line in lines))
    return tuple(line._replace(dash=1 + tasks.index(line.name.partition(", ")[2]), dots=True) for line in lines)


def _phases(account: Account, key: str) -> Iterator[Line]:
    """One line a phase, where its tokens stand behind those of the phases before."""
    before = 0.0
    task = key.removeprefix("held_out_").removeprefix("block_efficiency_").removesuffix("_nats")
    label = "" if key in ("loss_nats", "tokens_per_second") else f", {task}" + " held out" * key.startswith("held_out_")
    for number, (phase, rows) in enumerate(account.metrics.items()):
        found = [row for row in rows if key in row]
        x, y = _thinned([(before + row["tokens"]) / 1e6 for row in found], [row[key] for row in found])
        if x:
            yield Line(f"{phase}{label}", x, y, number)
        before += rows[-1]["tokens"]


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most POINTS points, each the mean of neighbours."""
    if len(x) <= POINTS:
        return list(x), list(y)
    ends = [round(part * len(x) / POINTS) for part in range(POINTS + 1)]
    xs, ys = ([sum(values[a:b]) / (b - a) for a, b in pairwise(ends)] for values in (x, y))
    return xs, ys
