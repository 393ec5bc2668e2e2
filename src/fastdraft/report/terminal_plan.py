"""A plan on the terminal: the target, possible drafts, their predicted speed-up, and the cost of training one."""

from __future__ import annotations

from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastdraft.planning.devices import Device
from fastdraft.planning.plan import Candidate, Guide, Plan, StageCost

RIGHT: Literal["right"] = "right"


def plan(result: Plan) -> RenderableType:
    """All tables of a plan."""
    return Group(
        _target(result),
        _drafts(result),
        _speedups(result),
        _speedups_of_costed(result),
        _guide(result.guide),
        _stages(result),
        *_notes(result.drafts),
        Text(f"{_device(result.device)}\nA step is one token after a context of {result.context_tokens} tokens."),
    )


def _target(result: Plan) -> Table:
    table = Table(title=f"The target {result.target.name}")
    for name in ("family", "parameters", "vocabulary rows", "embeddings", "context", *result.target.bytes_at, "a step"):
        table.add_column(name, justify="left" if name in ("family", "embeddings") else RIGHT)
    target = result.target
    table.add_row(
        target.family,
        _count(target.parameters),
        f"{target.vocab_rows:,}",
        "tied" if target.tied else "not tied",
        f"{target.context_tokens:,}",
        *(_bytes(size) for size in target.bytes_at.values()),
        _seconds(target.step_seconds),
    )
    return table


def _drafts(result: Plan) -> Table:
    marked = {"recipe": f"that of the recipe `{result.recipe}`", "budget": "that of this budget"}
    mark = f"> marks {marked.get(result.draft_from, 'the recommended one')}"
    table = Table(title=f"Drafts for it, {result.weights}, on {result.device.name}; {mark}")
    for name in ("", "width x depth", "heads", "MLP", "parameters", "embedding", "rest", "c", *result.target.bytes_at):
        table.add_column(name, justify="left" if name in ("", "width x depth", "heads") else RIGHT)
    for name in ("a step", "break-even alpha"):
        table.add_column(name, justify=RIGHT)
    for draft in result.drafts:
        table.add_row(
            ">" if draft.costed else "",
            f"{draft.hidden_size} x {draft.layers}",
            f"{draft.heads}/{draft.kv_heads}",
            str(draft.intermediate_size),
            *(_count(n) for n in (draft.parameters, draft.embedding_parameters, draft.other_parameters)),
            f"{draft.c:.4f}",
            *(_bytes(size) for size in draft.bytes_at.values()),
            _seconds(draft.step_seconds),
            "never pays" if draft.break_even_alpha is None else f"{draft.break_even_alpha:.2f}",
            style="bold" if draft.costed else "",
        )
    return table


def _speedups(result: Plan) -> Table:
    table = Table(title="Predicted speed-up at the best gamma (in brackets), by acceptance alpha")
    table.add_column("draft")
    for pays in result.drafts[0].pays:
        table.add_column(f"{pays.alpha:g}", justify=RIGHT)
    for draft in result.drafts:
        cells = (f"{pays.speedup:.2f}x ({pays.best_gamma})" for pays in draft.pays)
        table.add_row(f"{draft.hidden_size} x {draft.layers}", *cells, style="bold" if draft.costed else "")
    return table


def _speedups_of_costed(result: Plan) -> Table:
    draft = next(draft for draft in result.drafts if draft.costed)
    table = Table(title=f"The same for {draft.hidden_size} x {draft.layers} at every gamma")
    table.add_column("alpha")
    for gamma in draft.pays[0].speedup_at:
        table.add_column(f"gamma {gamma}", justify=RIGHT)
    for pays in draft.pays:
        table.add_row(f"{pays.alpha:g}", *(f"{speedup:.2f}" for speedup in pays.speedup_at.values()))
    return table


def _guide(guides: tuple[Guide, ...]) -> Table:
    table = Table(title="Acceptance rate of the paper's drafts after PT, CP, FT (T = 0.6, gamma 3), and its alpha")
    table.add_column("draft")
    for task in guides[0].acceptance_rate:
        table.add_column(task, justify=RIGHT)
    for guide in guides:
        cells = (f"{rate:.3f}, alpha {guide.alpha[task]:.2f}" for task, rate in guide.acceptance_rate.items())
        table.add_row(guide.draft, *cells)
    return table


def _stages(result: Plan) -> Table:
    draft = next(draft for draft in result.drafts if draft.costed)
    size = f"{draft.hidden_size} x {draft.layers}"
    table = Table(title=f"What the draft of {size} would cost with the recipe `{result.recipe}`")
    table.add_column("stage")
    device = result.training_device
    training_device = device.name if device.kind == "cpu" else f"one {device.name}"
    for name in ("tokens", "FLOPs", f"hours on {training_device}", "on the paper's 8 Gaudi 2", "disk"):
        table.add_column(name, justify=RIGHT)
    for stage in result.stages:
        table.add_row(stage.stage, _count(stage.tokens), *_work(stage), _bytes(stage.disk_bytes))
    hours, paper = (sum(getattr(stage, name) for stage in result.stages) for name in ("hours", "paper_hours"))
    flops, disk = sum(stage.flops for stage in result.stages), sum(stage.disk_bytes for stage in result.stages)
    table.add_row("all", "", f"{flops:.2g}", _hours(hours), _hours(paper), _bytes(disk), style="bold")
    return table


def _work(stage: StageCost) -> tuple[str, str, str]:
    if not stage.flops:
        return "-", "-", "-"
    return f"{stage.flops:.2g}", _hours(stage.hours), _hours(stage.paper_hours)


def _notes(drafts: tuple[Candidate, ...]) -> list[Text]:
    """Each note about the drafts once, and which quantisers support their widths."""
    notes = dict.fromkeys(note for draft in drafts for note in draft.notes)
    widths = [f"{draft.hidden_size} x {draft.layers}: {draft.widths}" for draft in drafts]
    return [Text(f"note: {note}") for note in notes] + [Text(f"widths: {line}") for line in dict.fromkeys(widths)]


def _device(device: Device) -> str:
    bandwidth = device.memory_bandwidth_bytes_per_second / 1e9
    rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in device.rates.items())
    return f"{device.name}: {bandwidth:.3g} GB/s, {rates} ({device.source})"


def _count(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


def _bytes(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"
