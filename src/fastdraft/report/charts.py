"""A figure as plotly reads it, and as a PNG."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastdraft.report.figures import DASHES, Figure, Line
from fastdraft.system.files import atomic_write
from fastdraft.system.optional_packages import need

# The page's own colours by name: it puts their values in, light or dark. The first is the accent.
COLORS = 6
MARKERS = ("circle", "square", "diamond", "triangle-up")
# The light ones of the page, for pictures.
LIGHT = ("#2457a6", "#b4530a", "#1f7a4d", "#7d3c98", "#8a6d00", "#5b6472")
DASHES_OF_PICTURES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
MARKERS_OF_PICTURES = "osD^"


def plotly(figure: Figure) -> dict[str, Any]:
    """Data and layout; a colour is the name of one of the page's own, which begins with two dashes."""
    x_axis = {"title": {"text": figure.x_label}} | ({"dtick": 1} if figure.counted else {})
    layout: dict[str, Any] = {"xaxis": x_axis, "yaxis": {"title": {"text": figure.y_label}}}
    if figure.even is not None:
        line = {"color": "--faint", "width": 1, "dash": "dot"}
        at = {"xref": "paper", "x0": 0, "x1": 1, "y0": figure.even, "y1": figure.even}
        layout["shapes"] = [{"type": "line", "layer": "below", "line": line} | at]
    bands = [_band(line) for line in figure.lines if line.low]
    return {"data": [*bands, *map(_trace, figure.lines)], "layout": layout}


def _trace(line: Line) -> dict[str, Any]:
    color = f"--s{line.color % COLORS}"
    trace: dict[str, Any] = {
        # plotly reads some markup in names: ours is text.
        **{"type": "scatter", "name": html.escape(line.name, quote=False), "x": line.x, "y": _rounded(line.y)},
        **{"mode": "lines+markers" if line.dots else "lines", "legendgroup": line.name},
        **{"line": {"color": color, "width": 2 if line.dots else 1.5, "dash": DASHES[line.dash % len(DASHES)]}},
        **{"marker": {"color": color, "size": 6, "symbol": MARKERS[line.dash % len(MARKERS)]}},
    }
    if line.low:
        trace["customdata"] = [list(pair) for pair in zip(_rounded(line.low), _rounded(line.high), strict=True)]
        trace["hovertemplate"] = "%{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]"
    else:
        trace["hovertemplate"] = "%{y:.4~g}"
    return trace


def _band(line: Line) -> dict[str, Any]:
    return {
        **{"type": "scatter", "x": [*line.x, *reversed(line.x)], "legendgroup": line.name},
        **{"y": _rounded([*line.low, *reversed(line.high)]), "fill": "toself", "mode": "lines", "line": {"width": 0}},
        **{"fillcolor": f"--b{line.color % COLORS}", "hoverinfo": "skip", "showlegend": False},
    }


def _rounded(values: Iterable[float]) -> list[float]:
    """Five digits are more than a screen shows."""
    return [float(f"{value:.5g}") for value in values]


def write_pngs(figures: Iterable[Figure], folder: Path) -> list[Path]:
    """Each figure as NAME.png; needs matplotlib (extra `view`)."""
    need("matplotlib", "view").use("Agg")
    return [_png(figure, folder) for figure in figures]


def _png(figure: Figure, folder: Path) -> Path:
    from matplotlib.figure import Figure as Picture
    from matplotlib.ticker import MaxNLocator

    picture = Picture(figsize=(7, 4.4), layout="constrained")
    axes = picture.add_subplot()
    for line in figure.lines:
        _draw(axes, line)
    if figure.even is not None:
        axes.axhline(figure.even, color="#8a93a0", linewidth=0.9, linestyle=":")
    if figure.counted:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=_text(figure.x_label), ylabel=_text(figure.y_label), title=_text(figure.title))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', figure.name)}.png"
    with atomic_write(path) as part:
        picture.savefig(part, format="png", dpi=160)
    return path


def _draw(axes: Any, line: Line) -> None:
    color = LIGHT[line.color % COLORS]
    look = {"linestyle": DASHES_OF_PICTURES[DASHES[line.dash % len(DASHES)]], "linewidth": 1.6 if line.dots else 1.1}
    if line.dots:
        look |= {"marker": MARKERS_OF_PICTURES[line.dash % len(MARKERS_OF_PICTURES)], "markersize": 4}
    if line.low:
        axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.15, linewidth=0)
    axes.plot(line.x, line.y, color=color, label=_text(line.name), **look)


def _text(label: str) -> str:
    """A label without what matplotlib reads as mathematics."""
    return label.replace("$", r"\$")
