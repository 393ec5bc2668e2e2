"""A bench on a terminal: every arm by setting, task and distribution, what was proved, and the advice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from statistics import median

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastdraft.report.terminal_run import sampling_text
from fastdraft.results.bench import ArmResult, BenchResult, Cell, Equality, Model

COLUMNS = (
    *("decoding", "ms a token", "first, ms", "speed-up [least, greatest]", "predicted"),
    *("tokens a forward", "predicted", "equal texts", "widest gap"),
)


def bench(result: BenchResult) -> RenderableType:
    """The record in words and tables."""
    advised = [cell for cell in result.cells if cell.setting == result.advice.setting]
    tables = [*map(_cell, result.cells), *map(_positions, advised), _steps(result)]
    return Group(*_head(result), *tables, Text(), *_advice(result))


def _head(result: BenchResult) -> Iterator[Text]:
    about = ", ".join(f"{name} {version}" for name, version in result.versions.items() if name != result.engine)
    yield Text(f"{result.engine} on {result.device}: {result.hardware}; {about}")
    yield Text(f"target: {_model(result.target)}\ndraft: {_model(result.draft)}")
    prompts = ", ".join(f"{count} of {task}" for task, count in result.prompts.items())
    yield Text(
        f"prompts: {prompts}; up to {result.max_new_tokens} tokens each, batch 1, all arms in turn "
        f"{result.repeats} times; medians, [least, greatest]"
    )
    if result.equality is not None:
        yield Text(_equality(result.equality))


def _model(model: Model) -> str:
    said = f"{model.path}, {model.parameters:,} parameters, {model.weights}"
    return f"{said}; A STAND-IN, NOT A LARGE MODEL: {model.stand_in}" if model.stand_in else said


def _equality(equality: Equality) -> str:
    said = f"exact ({equality.setting}): {equality.equal} of {equality.texts} greedy texts are those without a draft"
    if not equality.near_ties:
        return said
    first = equality.near_ties[0]
    gap = max(found.gap for found in equality.near_ties)
    return (
        f"{said}; the others part at near ties, of {gap:.2g} of a logit at most, first {first.task} {first.prompt}, "
        f"{first.arm} gamma {first.gamma}, token {first.position}: {first.tokens[1]} for {first.tokens[0]}"
    )


def _cell(cell: Cell) -> Table:
    table = _table(_title(cell), COLUMNS)
    for arm in cell.arms:
        table.add_row(*_row(arm))
    return table


def _title(cell: Cell) -> str:
    return f"{cell.task}, {sampling_text(cell.temperature)}, {cell.setting}"


def _table(title: str, columns: Iterable[str]) -> Table:
    """The first column to the left, figures to the right."""
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def _row(arm: ArmResult) -> Iterator[str]:
    yield _name(arm)
    yield f"{arm.milliseconds_a_token.value:.2f}"
    yield f"{arm.first_token_milliseconds.value:.3g}"
    yield f"{arm.speedup.value:.2f}x [{arm.speedup.low:.2f}, {arm.speedup.high:.2f}]"
    yield f"{arm.predicted.speedup:.2f}x" if arm.predicted else ""
    yield f"{arm.block_efficiency:.2f}"
    yield f"{arm.predicted.block_efficiency:.2f}" if arm.predicted else ""
    yield "" if arm.equal_fraction is None or arm.arm == "none" else f"{arm.equal_fraction:.0%}"
    yield "" if arm.widest_gap is None else f"{arm.widest_gap:.2g}"


def _name(arm: ArmResult) -> str:
    return {"none": "no draft", "lookup": "prompt lookup", "draft": f"gamma {arm.gamma}"}[arm.arm]


def _positions(cell: Cell) -> Table:
    """Share of blocks in which each drafted token was accepted: as the engine has it, and in one pass."""
    longest = max(arm.gamma for arm in cell.drafts)
    columns = ["drafted token", *map(str, range(1, longest + 1))]
    table = _table(f"{_title(cell)}: blocks in which it was accepted, engine | one pass", columns)
    for arm in cell.drafts:
        told = arm.predicted.position_acceptance if arm.predicted else ()
        pairs = zip_longest((f"{fraction:.2f}" for fraction in arm.position_acceptance), told)
        table.add_row(_name(arm), *(f"{said or '-'} | {fraction:.2f}" for said, fraction in pairs))
    return table


def _steps(result: BenchResult) -> Table:
    gammas = [arm.gamma for arm in result.cells[0].drafts]
    columns = ["setting", "no draft", *(f"gamma {gamma}" for gamma in gammas)]
    table = _table(
        "Steps, ms, medians over repeats: one token without a draft; a drafted token | the rest of a block", columns
    )
    for setting, temperature in dict.fromkeys((steps.setting, steps.temperature) for steps in result.steps):
        found = [steps for steps in result.steps if (steps.setting, steps.temperature) == (setting, temperature)]
        alone = _middle(steps.target_seconds for steps in found)
        drafted = (_middle(steps.draft_seconds.get(gamma) for steps in found) for gamma in gammas)
        others = (_middle(steps.block_seconds.get(gamma) for steps in found) for gamma in gammas)
        table.add_row(
            f"{setting}, {sampling_text(temperature)}", alone, *map(" | ".join, zip(drafted, others, strict=True))
        )
    return table


def _middle(seconds: Iterable[float | None]) -> str:
    """The median over repeats, in ms; a dash where there is none."""
    known = [each for each in seconds if each is not None]
    return f"{1e3 * median(known):.3g}" if known else "-"


def _advice(result: BenchResult) -> Iterator[Text]:
    if result.target.stand_in:
        yield Text("Measured on a stand-in for a large target: its outputs are the small model's.")
    yield from (Text(line) for line in result.advice.lines)
