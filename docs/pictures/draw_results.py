"""Draw docs/pictures/results.png from the tables of docs/results.md: python docs/pictures/draw_results.py"""

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

DOCS = Path(__file__).parents[1]
TEXT = (DOCS / "results.md").read_text(encoding="utf-8")
COLOURS = {"code, greedy": "#b5520b", "code, T = 0.6": "#e0a070", "text, greedy": "#1f4e9c", "text, T = 0.6": "#85a8dd"}
STAGES = ("pretrain", "continue", "align")


def cells(row: str) -> list[str]:
    """The cells of the first table row of the page that begins with this cell."""
    line = next(line for line in TEXT.splitlines() if line.startswith(f"| {row} |"))
    return [cell.strip().strip("*") for cell in line.strip("| ").split("|")][1:]


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d*\.?\d+", cell)]


def main() -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.6), dpi=110)
    for place, (task, colour) in enumerate(COLOURS.items()):
        values = [numbers(cells(stage)[place]) for stage in STAGES]
        heights = [value for value, _, _ in values]
        errors = [[value - low for value, low, _ in values], [high - value for value, _, high in values]]
        left.bar([x + 0.2 * place for x in range(3)], heights, 0.18, color=colour, label=task, yerr=errors, capsize=2)
    left.set_xticks([x + 0.3 for x in range(3)], ["after pretrain (PT)", "after continue (CP)", "after align (FT)"])
    left.set_ylabel("acceptance rate, gamma 3")
    left.legend(frameon=False, fontsize=8)

    gammas = [3, 4, 5, 6, 8]
    for task, colour in (("code", COLOURS["code, greedy"]), ("text", COLOURS["text, greedy"])):
        _, lookup, *speed_ups = [numbers(cell)[0] for cell in cells(f"{task}, f32 inference")]
        right.plot(gammas, speed_ups, "o-", color=colour, label=f"{task}, with the draft")
        right.axhline(lookup, color=colour, linestyle=":", label=f"{task}, prompt lookup")
    right.axhline(1, color="#888", linewidth=0.8)
    right.set_xticks(gammas)
    right.set_ylim(bottom=0)
    right.set_xlabel("gamma: tokens drafted in a block")
    right.set_ylabel("speed-up, greedy (no draft = 1)")
    right.legend(edgecolor="none", facecolor="white", framealpha=1, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(DOCS / "pictures" / "results.png")


if __name__ == "__main__":
    main()
