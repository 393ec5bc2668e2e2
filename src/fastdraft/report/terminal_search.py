"""A search on the terminal and as a plot: predicted speed-up against depth."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastdraft.pipeline.pilots import Search, Served
from fastdraft.results.formatting import sampling_text
from fastdraft.system.files import atomic_write
from fastdraft.system.optional_packages import need


def search(result: Search) -> RenderableType:
    """Every pilot, shallowest first, and the best one."""
    longest = max(result.target_seconds)
    step, block = result.target_seconds[1] * 1e3, result.target_seconds[longest] * 1e3
    explanation = Text(
        f"A step of {result.timed}: {step:.2f} ms on one token, {block:.2f} ms on {longest}. A cell is the predicted "
        f"speed-up at its best gamma (in brackets); the last column is the geometric mean.\n"
        f"Best: hidden_size {result.best.hidden_size}, layers {result.best.layers}."
    )
    return Group(_pilots(result), explanation)


def _pilots(result: Search) -> Table:
    table = Table(title=f"Pilots for {result.target}: {result.fraction:g} of the recipe's tokens, {result.engine}")
    for name in ("", "layers", "width", "parameters", "tokens", "step, ms"):
        table.add_column(name, justify="right")
    for served in result.pilots[0].served:
        table.add_column(_title(served), justify="right")
    table.add_column("speed-up", justify="right")
    for pilot in result.pilots:
        best = pilot == result.best
        table.add_row(
            ">" if best else "",
            str(pilot.layers),
            str(pilot.hidden_size),
            f"{pilot.parameters:,}",
            f"{pilot.trained_tokens:,}",
            f"{pilot.step_seconds * 1e3:.2f}",
            *(f"{served.speedup:.2f}x ({served.best_gamma})" for served in pilot.served),
            f"{pilot.speedup:.3f}x",
            style="bold" if best else "",
        )
    return table


def _title(served: Served) -> str:
    """The task and its temperature."""
    return f"{served.task}, {sampling_text(served.temperature)}"


def plot(result: Search, path: Path) -> None:
    """Plot predicted speed-up, with intervals, against depth into a .png or .svg file.

    Needs matplotlib (extra `view`).
    """
    need("matplotlib", "view").use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    depths = [pilot.layers for pilot in result.pilots]
    for number, marker in zip(range(len(result.pilots[0].served)), "osD^vP*X", strict=False):
        served = [pilot.served[number] for pilot in result.pilots]
        axes.errorbar(
            depths,
            [each.speedup for each in served],
            yerr=([each.speedup - each.low for each in served], [each.high - each.speedup for each in served]),
            marker=marker,
            capsize=3,
            linewidth=1,
            label=_title(served[0]),
        )
    axes.plot(depths, [pilot.speedup for pilot in result.pilots], "k--", linewidth=2, label="geometric mean")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log", base=2)
    ticks = [f"{pilot.layers}\nx {pilot.hidden_size}" for pilot in result.pilots]
    axes.set_xticks(depths, ticks)
    axes.minorticks_off()
    axes.set_xlabel("layers x width")
    axes.set_ylabel(f"predicted speed-up ({result.engine})")
    axes.set_title(f"Drafts of about {max(p.parameters for p in result.pilots) / 1e6:.2g}M for {result.target}")
    figure.legend(loc="outside right upper")
    with atomic_write(path) as part:
        figure.savefig(part, format=path.suffix.lstrip("."), dpi=120)
