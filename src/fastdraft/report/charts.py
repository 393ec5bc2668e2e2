"""Draw a `Figure`: as JSON for plotly, and as a PNG by matplotlib."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastdraft.report.figures import DASHES, Figure, Line
from fastdraft.system.files import atomic_write
from fastdraft.system.optional_packages import need

# plotly gets the names of CSS variables (--s0 to --s5, bands --b0 to --b5). report.js replaces them with the colours of
# the light or the dark page.
COLORS = 6
MARKERS = ("circle", "square", "diamond", "triangle-up")
# For matplotlib: the colours of the light page, and its own names of the dashes and markers.
PNG_COLORS = ("#2457a6", "#b4530a", "#1f7a4d", "#7d3c98", "#8a6d00", "#5b6472")
PNG_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
PNG_MARKERS = "osD^"


def plotly(figure: Figure) -> dict[str, Any]:
    """Data and layout for `Plotly.react`."""
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": figure.x_label}} | ({"dtick": 1} if figure.integer_x else {}),
        "yaxis": {"title": {"text": figure.y_label}},
    }
    if figure.break_even is not None:
        layout["shapes"] = [
            {
                "type": "line",
                "layer": "below",
                "line": {"color": "--faint", "width": 1, "dash": "dot"},
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": figure.break_even,
                "y1": figure.break_even,
            }
        ]
    bands = [_band(line) for line in figure.lines if line.low]
    return {"data": [*bands, *map(_trace, figure.lines)], "layout": layout}


def _trace(line: Line) -> dict[str, Any]:
    color = f"--s{line.color % COLORS}"
    trace: dict[str, Any] = {
        "type": "scatter",
        # plotly interprets some markup in names.
        "name": html.escape(line.name, quote=False),
        "legendgroup": line.name,
        "x": line.x,
        "y": _rounded(line.y),
        "mode": "lines+markers" if line.dots else "lines",
        "line": {"color": color, "width": 2 if line.dots else 1.5, "dash": DASHES[line.dash % len(DASHES)]},
        "marker": {"color": color, "size": 6, "symbol": MARKERS[line.dash % len(MARKERS)]},
        "hovertemplate": "%{y:.4~g}",
    }
    if line.low:
        trace["customdata"] = [list(pair) for pair in zip(_rounded(line.low), _rounded(line.high), strict=True)]
        trace["hovertemplate"] = "%{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]"
    return trace


def _band(line: Line) -> dict[str, Any]:
    return {
        "type": "scatter",
        "legendgroup": line.name,
        "x": [*line.x, *reversed(line.x)],
        "y": _rounded([*line.low, *reversed(line.high)]),
        "mode": "lines",
        "line": {"width": 0},
        "fill": "toself",
        "fillcolor": f"--b{line.color % COLORS}",
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _rounded(values: Iterable[float]) -> list[float | None]:
    """Five digits, which is more than a screen resolves, keep the page small. JSON has no NaN and no infinity."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def write_pngs(figures: Iterable[Figure], folder: Path) -> list[Path]:
    """Write each figure to `folder`/NAME.png. Needs matplotlib (extra `view`)."""
    need("matplotlib", "view").use("Agg")
    return [_write_png(figure, folder) for figure in figures]


def _write_png(figure: Figure, folder: Path) -> Path:
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    canvas = Canvas(figsize=(7, 4.4), layout="constrained")
    axes = canvas.add_subplot()
    for line in figure.lines:
        _draw(axes, line)
    if figure.break_even is not None:
        axes.axhline(figure.break_even, color="#8a93a0", linewidth=0.9, linestyle=":")
    if figure.integer_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=_escaped(figure.x_label), ylabel=_escaped(figure.y_label), title=_escaped(figure.title))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', figure.name)}.png"
    with atomic_write(path) as part:
        canvas.savefig(part, format="png", dpi=160)
    return path


def _draw(axes: Any, line: Line) -> None:
    color = PNG_COLORS[line.color % COLORS]
    style = {"linestyle": PNG_DASHES[DASHES[line.dash % len(DASHES)]], "linewidth": 1.6 if line.dots else 1.1}
    if line.dots:
        style |= {"marker": PNG_MARKERS[line.dash % len(PNG_MARKERS)], "markersize": 4}
    if line.low:
        axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.15, linewidth=0)
    axes.plot(line.x, line.y, color=color, label=_escaped(line.name), **style)


def _escaped(label: str) -> str:
    """matplotlib reads text between dollar signs as mathematics."""
    return label.replace("$", r"\$")
