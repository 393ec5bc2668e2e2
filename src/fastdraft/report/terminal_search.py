"""A search on a terminal and as a picture: predicted speed-up against depth."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastdraft.pipeline.pilots import Pilot, Search, Served
from fastdraft.system.files import atomic_write
from fastdraft.system.optional_packages import need


def search(found: Search) -> RenderableType:
    """Every pilot, shallowest first, and the words that name the best."""
    return Group(_pilots(found), _words(found))


def _pilots(found: Search) -> Table:
    table = Table(title=f"Pilots for {found.target}: {found.fraction:g} of the recipe's tokens, {found.engine}")
    for name in ("", "layers", "width", "parameters", "tokens", "a step, ms"):
        table.add_column(name, justify="right")
    for served in found.pilots[0].served:
        table.add_column(title_of(served), justify="right")
    table.add_column("speed-up", justify="right")
    for pilot in found.pilots:
        best = pilot == found.best
        sizes = (str(pilot.layers), str(pilot.hidden_size), f"{pilot.parameters:,}", f"{pilot.trained_tokens:,}")
        cells = (f"{s.speedup:.2f}x ({s.best_gamma})" for s in pilot.served)
        row = (">" if best else "", *sizes, f"{pilot.step_seconds * 1e3:.2f}", *cells, f"{pilot.speedup:.3f}x")
        table.add_row(*row, style="bold" if best else "")
    return table


def _words(found: Search) -> Text:
    longest = max(found.target_seconds)
    step, block = found.target_seconds[1] * 1e3, found.target_seconds[longest] * 1e3
    return Text(
        f"A step of {found.timed}: {step:.2f} ms on one token, {block:.2f} ms on {longest}. "
        f"A cell is the predicted speed-up at its best gamma (in brackets); the last column their geometric mean.\n"
        f"Best: hidden_size {found.best.hidden_size}, layers {found.best.layers}."
    )


def title_of(served: Served) -> str:
    """A task and its distribution."""
    return f"{served.task}, {'greedy' if served.temperature == 0 else f'T = {served.temperature:g}'}"


def picture(found: Search, path: Path) -> None:
    """Predicted speed-up against depth, a line for each task and distribution with its interval; PNG or SVG by the
    suffix.

    The picture needs matplotlib (extra `view`).
    """
    need("matplotlib", "view").use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for number, marker in zip(range(len(found.pilots[0].served)), "osD^vP*X", strict=False):
        line = [(pilot, pilot.served[number]) for pilot in found.pilots]
        depth, values = [pilot.layers for pilot, _ in line], [served.speedup for _, served in line]
        below = [served.speedup - served.low for _, served in line]
        above = [served.high - served.speedup for _, served in line]
        label = title_of(found.pilots[0].served[number])
        axes.errorbar(depth, values, yerr=(below, above), marker=marker, capsize=3, linewidth=1, label=label)
    mean = [pilot.speedup for pilot in found.pilots]
    axes.plot([pilot.layers for pilot in found.pilots], mean, "k--", linewidth=2, label="geometric mean")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks([pilot.layers for pilot in found.pilots], [_tick(pilot) for pilot in found.pilots])
    axes.minorticks_off()
    axes.set_xlabel("layers x width")
    axes.set_ylabel(f"predicted speed-up ({found.engine})")
    axes.set_title(f"Drafts of about {max(p.parameters for p in found.pilots) / 1e6:.2g}M for {found.target}")
    figure.legend(loc="outside right upper")
    with atomic_write(path) as part:
        figure.savefig(part, format=path.suffix.lstrip("."), dpi=120)


def _tick(pilot: Pilot) -> str:
    return f"{pilot.layers}\nx {pilot.hidden_size}"
