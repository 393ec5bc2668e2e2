"""A plan on a terminal: the target, the drafts that it can have, what they would give, what making one costs."""

from __future__ import annotations

from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastdraft.planning.devices import Device
from fastdraft.planning.plan import Candidate, Guide, Plan, StageCost

RIGHT: Literal["right"] = "right"


def plan(made: Plan) -> RenderableType:
    """All tables of a plan."""
    return Group(
        _target(made),
        _drafts(made),
        _speedups(made),
        _guide(made.guide),
        _stages(made),
        *_notes(made.drafts),
        _words(made),
    )


def _target(made: Plan) -> Table:
    table = Table(title=f"The target {made.target.name}")
    for name in ("family", "parameters", "vocabulary rows", "embeddings", "context", *made.target.bytes_at, "a step"):
        table.add_column(name, justify="left" if name in ("family", "embeddings") else RIGHT)
    subject = made.target
    table.add_row(
        subject.family,
        _count(subject.parameters),
        f"{subject.vocab_rows:,}",
        "tied" if subject.tied else "not tied",
        f"{subject.context_tokens:,}",
        *(_bytes(size) for size in subject.bytes_at.values()),
        _seconds(subject.step_seconds),
    )
    return table


def _drafts(made: Plan) -> Table:
    table = Table(title=f"Drafts for it, {made.weights}, on {made.device.name}; > is what a recipe would take")
    for name in ("", "width x depth", "heads", "MLP", "parameters", "embedding", "rest", "c", *made.target.bytes_at):
        table.add_column(name, justify="left" if name in ("", "width x depth", "heads") else RIGHT)
    for name in ("a step", "break-even alpha"):
        table.add_column(name, justify=RIGHT)
    for draft in made.drafts:
        table.add_row(
            ">" if draft.recommended else "",
            f"{draft.hidden_size} x {draft.layers}",
            f"{draft.heads}/{draft.kv_heads}",
            str(draft.intermediate_size),
            *(_count(n) for n in (draft.parameters, draft.embedding_parameters, draft.other_parameters)),
            f"{draft.c:.4f}",
            *(_bytes(size) for size in draft.bytes_at.values()),
            _seconds(draft.step_seconds),
            "never pays" if draft.break_even_alpha is None else f"{draft.break_even_alpha:.2f}",
            style="bold" if draft.recommended else "",
        )
    return table


def _speedups(made: Plan) -> RenderableType:
    """Speed-up over plain decoding at the best gamma, which stands behind it."""
    table = Table(title="Predicted speed-up at the best gamma (in brackets), by acceptance alpha")
    table.add_column("draft")
    for pays in made.drafts[0].pays:
        table.add_column(f"{pays.alpha:g}", justify=RIGHT)
    for draft in made.drafts:
        cells = (f"{pays.speedup:.2f}x ({pays.best_gamma})" for pays in draft.pays)
        table.add_row(f"{draft.hidden_size} x {draft.layers}", *cells, style="bold" if draft.recommended else "")
    return Group(table, _by_gamma(made))


def _by_gamma(made: Plan) -> Table:
    """Of the recommended draft alone: every gamma."""
    draft = next(draft for draft in made.drafts if draft.recommended)
    table = Table(title=f"The same for {draft.hidden_size} x {draft.layers} at every gamma")
    table.add_column("alpha")
    for gamma in draft.pays[0].speedup_at:
        table.add_column(f"gamma {gamma}", justify=RIGHT)
    for pays in draft.pays:
        table.add_row(f"{pays.alpha:g}", *(f"{speedup:.2f}" for speedup in pays.speedup_at.values()))
    return table


def _guide(guides: tuple[Guide, ...]) -> Table:
    table = Table(title="What to expect: the paper's drafts after PT, CP, FT (T = 0.6, gamma 3), its rate as alpha")
    table.add_column("draft")
    for task in guides[0].acceptance_rate:
        table.add_column(task, justify=RIGHT)
    for guide in guides:
        cells = (f"{rate:.3f}, alpha {guide.alpha[task]:.2f}" for task, rate in guide.acceptance_rate.items())
        table.add_row(guide.draft, *cells)
    return table


def _stages(made: Plan) -> Table:
    table = Table(title=f"What the draft would cost with the recipe `{made.recipe}`")
    table.add_column("stage")
    for name in ("tokens", "FLOPs", f"hours on {_one(made.training_device)}", "on the paper's 8 Gaudi 2", "disk"):
        table.add_column(name, justify=RIGHT)
    for stage in made.stages:
        table.add_row(stage.stage, _count(stage.tokens), *_work(stage), _bytes(stage.disk_bytes))
    hours, paper = (sum(getattr(stage, name) for stage in made.stages) for name in ("hours", "paper_hours"))
    flops, disk = sum(stage.flops for stage in made.stages), sum(stage.disk_bytes for stage in made.stages)
    table.add_row("all", "", f"{flops:.2g}", _hours(hours), _hours(paper), _bytes(disk), style="bold")
    return table


def _work(stage: StageCost) -> tuple[str, str, str]:
    if not stage.flops:
        return "-", "-", "-"
    return f"{stage.flops:.2g}", _hours(stage.hours), _hours(stage.paper_hours)


def _notes(drafts: tuple[Candidate, ...]) -> list[Text]:
    """Each thing to know about the drafts once, and which widths quantisers like."""
    said = dict.fromkeys(note for draft in drafts for note in draft.notes)
    widths = [f"{draft.hidden_size} x {draft.layers}: {draft.widths}" for draft in drafts]
    return [Text(f"note: {note}") for note in said] + [Text(f"widths: {line}") for line in dict.fromkeys(widths)]


def _words(made: Plan) -> Text:
    return Text(f"{_device(made.device)}\nA step is one token with {made.context_tokens} tokens behind it.")


def _one(device: Device) -> str:
    return device.name if device.kind == "cpu" else f"one {device.name}"


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
