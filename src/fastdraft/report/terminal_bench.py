"""A bench on the terminal: timings by setting, task and temperature, equality of greedy texts, and the advice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from statistics import median

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastdraft.results.bench import ArmResult, BenchResult, Cell, Equality, Model
from fastdraft.results.formatting import sampling_text, speedup_range

COLUMNS = (
    "decoding",
    "ms per token",
    "first, ms",
    "speed-up [lowest, highest]",
    "predicted",
    "tokens per forward",
    "predicted",
    "equal texts",
    "widest gap",
)


def bench(result: BenchResult) -> RenderableType:
    """The whole result."""
    advised = [cell for cell in result.cells if cell.setting == result.advice.setting]
    tables = [*map(_cell, result.cells), *map(_positions, advised), _steps(result)]
    return Group(*_head(result), *tables, Text(), *_advice(result))


def _head(result: BenchResult) -> Iterator[Text]:
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items() if name != result.engine)
    yield Text(f"{result.engine} on {result.device}: {result.hardware}; {versions}")
    yield Text(f"target: {_model(result.target)}\ndraft: {_model(result.draft)}")
    prompts = ", ".join(f"{count} of {task}" for task, count in result.prompts.items())
    yield Text(
        f"prompts: {prompts}; up to {result.max_new_tokens} tokens each, batch 1, all decoding methods in turn, "
        f"{result.repeats} repeats; medians [lowest, highest]"
    )
    if result.equality is not None:
        yield Text(_equality(result.equality))


def _model(model: Model) -> str:
    line = f"{model.path}, {model.parameters:,} parameters, {model.weights}"
    return f"{line}; A STAND-IN, NOT A LARGE MODEL: {model.stand_in}" if model.stand_in else line


def _equality(equality: Equality) -> str:
    line = f"exact ({equality.setting}): {equality.equal} of {equality.texts} greedy texts equal those without a draft"
    if not equality.near_ties:
        return line
    first = equality.near_ties[0]
    gap = max(tie.gap for tie in equality.near_ties)
    return (
        f"{line}; the others differ from a near tie on, where logits differ by at most {gap:.2g}; first: {first.task} "
        f"{first.prompt}, {first.arm} gamma {first.gamma}, token {first.position}: {first.tokens[1]} instead of "
        f"{first.tokens[0]}"
    )


def _cell(cell: Cell) -> Table:
    table = _table(_title(cell), COLUMNS)
    for arm in cell.arms:
        predicted = arm.predicted
        table.add_row(
            _name(arm),
            f"{arm.milliseconds_a_token.value:.2f}",
            f"{arm.first_token_milliseconds.value:.3g}",
            speedup_range(arm.speedup.value, arm.speedup.low, arm.speedup.high),
            f"{predicted.speedup:.2f}x" if predicted else "",
            f"{arm.block_efficiency:.2f}",
            f"{predicted.block_efficiency:.2f}" if predicted else "",
            "" if arm.equal_fraction is None or arm.arm == "none" else f"{arm.equal_fraction:.0%}",
            "" if arm.widest_gap is None else f"{arm.widest_gap:.2g}",
        )
    return table


def _title(cell: Cell) -> str:
    return f"{cell.task}, {sampling_text(cell.temperature)}, {cell.setting}"


def _table(title: str, columns: Iterable[str]) -> Table:
    """A table with the first column on the left and numbers on the right."""
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def _name(arm: ArmResult) -> str:
    return {"none": "no draft", "lookup": "prompt lookup", "draft": f"gamma {arm.gamma}"}[arm.arm]


def _positions(cell: Cell) -> Table:
    """Fraction of blocks in which each drafted token was accepted: measured in the engine, and predicted."""
    longest = max(arm.gamma for arm in cell.drafts)
    columns = ["drafted token", *map(str, range(1, longest + 1))]
    table = _table(f"{_title(cell)}: fraction of blocks in which it was accepted, engine | one pass", columns)
    for arm in cell.drafts:
        predicted = arm.predicted.position_acceptance if arm.predicted else ()
        pairs = zip_longest((f"{fraction:.2f}" for fraction in arm.position_acceptance), predicted)
        table.add_row(_name(arm), *(f"{measured or '-'} | {fraction:.2f}" for measured, fraction in pairs))
    return table


def _steps(result: BenchResult) -> Table:
    gammas = [arm.gamma for arm in result.cells[0].drafts]
    columns = ["setting", "no draft", *(f"gamma {gamma}" for gamma in gammas)]
    table = _table(
        "Steps, ms, medians over repeats: one token without a draft; a drafted token | the rest of a block", columns
    )
    for setting, temperature in dict.fromkeys((steps.setting, steps.temperature) for steps in result.steps):
        repeats = [steps for steps in result.steps if (steps.setting, steps.temperature) == (setting, temperature)]
        cells = [_median_ms(steps.target_seconds for steps in repeats)]
        for gamma in gammas:
            drafted = _median_ms(steps.draft_seconds.get(gamma) for steps in repeats)
            rest = _median_ms(steps.block_seconds.get(gamma) for steps in repeats)
            cells.append(f"{drafted} | {rest}")
        table.add_row(f"{setting}, {sampling_text(temperature)}", *cells)
    return table


def _median_ms(seconds: Iterable[float | None]) -> str:
    known = [each for each in seconds if each is not None]
    return f"{1e3 * median(known):.3g}" if known else "-"


def _advice(result: BenchResult) -> Iterator[Text]:
    if result.target.stand_in:
        yield Text("Measured on a stand-in for a large target: its outputs are those of the small model.")
    yield from (Text(line) for line in result.advice.lines)
