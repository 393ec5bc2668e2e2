"""Compare Muon (for matrices, with AdamW for the rest) and AdamW on the demo's draft at equal tokens.

    python benchmarks/optimizers.py runs/optimizers               # half of the PT and CP tokens, three seeds
    python benchmarks/optimizers.py runs/optimizers --fraction 1

Training is one phase on code and text in equal parts. Several learning rates of each optimizer are tried with the first
seed, and the one with the highest final block efficiency is run with all seeds. The curves show held-out loss and block
efficiency (from metrics.jsonl) against tokens and against seconds of training. Each run uses one thread; seconds are
only comparable if nothing else runs on its core. The same command resumes an interrupted benchmark.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import runs as demo
from fastdraft.system.optional_packages import need
from runs import spread, table

# The learning rates that are tried. With Muon, the rate of AdamW is the demo's.
RATES: dict[str, dict[str, tuple[float, ...]]] = {
    "muon": {"muon_learning_rate": (0.01, 0.02, 0.04, 0.08)},
    "adamw": {"learning_rate": (0.0015, 0.003, 0.006, 0.012, 0.024)},
}
NAMES = {"muon": "Muon + AdamW", "adamw": "AdamW"}
MEASURES = 16
CURVES = {
    "block_efficiency": "block efficiency",
    "held_out_code_nats": "held-out code, nats",
    "held_out_text_nats": "held-out text, nats",
}
Metrics = dict[str, float]


class Run(NamedTuple):
    """An optimizer with one learning rate and seed, and its metrics at each validation."""

    optimizer: str
    rate: float
    seed: int
    rows: tuple[Metrics, ...]


def run_one(optimizer: str, rate: float, seed: int, options: argparse.Namespace) -> Run:
    """The results of a run, which is made unless its folder has it."""
    tokens = sum(demo.tokens_of(phase, options.fraction) for phase in ("pretrain", "continue"))
    (key,) = RATES[optimizer]
    keys: dict[str, Any] = {"seed": seed, "name": "optimizers", "continue": "null", "synthesize": "null"}
    keys |= {"align": "null", "pretrain.mix": "{code: 1, text: 1}", "pretrain.train_tokens": tokens}
    keys |= {
        "pretrain.optimizer": optimizer,
        f"pretrain.{key}": rate,
        "pretrain.held_out_every_tokens": tokens // MEASURES,
    }
    keys |= dict(key.split("=", 1) for key in options.keys)
    folder = options.folder / f"seed-{seed}"
    first = folder / f"muon-{RATES['muon']['muon_learning_rate'][0]:g}"
    demo.run_once(folder / f"{optimizer}-{rate:g}", first, keys, threads=1, until="pretrain")
    lines = (folder / f"{optimizer}-{rate:g}" / "pretrain" / "metrics.jsonl").read_text().splitlines()
    rows = tuple(row for line in lines if "block_efficiency" in (row := json.loads(line)))
    print(f"{NAMES[optimizer]}, rate {rate:g}, seed {seed}: {rows[-1]['block_efficiency']:.3f}", file=sys.stderr)
    return Run(optimizer, rate, seed, rows)


def try_rates(options: argparse.Namespace) -> list[Run]:
    """Runs with every rate of every optimizer and the first seed."""
    return [
        run_one(optimizer, rate, options.seeds[0], options)
        for optimizer, rates in RATES.items()
        for rate in next(iter(rates.values()))
    ]


def best(runs: Sequence[Run]) -> dict[str, float]:
    """For each optimizer the rate with the highest final block efficiency."""
    last = {(run.optimizer, run.rate): run.rows[-1]["block_efficiency"] for run in runs}
    return {
        optimizer: max((rate for w, rate in last if w == optimizer), key=lambda rate: last[optimizer, rate])
        for optimizer in RATES
    }


def first_reached(run: Run, curve: str, value: float, by: str) -> float | None:
    """The tokens or seconds (`by`) at which a curve first reaches a value, interpolated; None if never."""
    sign = 1 if curve == "block_efficiency" else -1
    before: Metrics | None = None
    for row in run.rows:
        if sign * row[curve] >= sign * value:
            if before is None:
                return row[by]
            fraction = (value - before[curve]) / (row[curve] - before[curve])
            return before[by] + fraction * (row[by] - before[by])
        before = row
    return None


def rates_table(runs: Sequence[Run]) -> str:
    """A table of the final values for all rates that were tried."""
    rows = [[NAMES[r.optimizer], f"{r.rate:g}", *(f"{r.rows[-1][curve]:.3f}" for curve in CURVES)] for r in runs]
    return table(f"rates tried with seed {runs[0].seed}, at the end", ["optimizer", "rate", *CURVES.values()], rows)


def ends_table(runs: Sequence[Run]) -> str:
    """A table of the final values of each optimizer at its best rate, over the seeds."""
    rows = []
    for optimizer in RATES:
        own = [run for run in runs if run.optimizer == optimizer]
        ends = [spread([run.rows[-1][curve] for run in own]) for curve in CURVES]
        cost = [
            f"{mean(run.rows[-1]['tokens'] for run in own):,.0f}",
            spread([run.rows[-1]["seconds"] for run in own], 0),
        ]
        rows.append([NAMES[optimizer], f"{own[0].rate:g}", *cost, *ends])
    return table("each at its best rate", ["optimizer", "rate", "tokens", "seconds", *CURVES.values()], rows)


def sooner_table(runs: Sequence[Run]) -> str:
    """A table of the fraction of AdamW's cost after which Muon + AdamW reaches AdamW's final value, seed by seed."""
    rows = []
    for curve, name in CURVES.items():
        cells = []
        for by in ("tokens", "seconds"):
            pairs = [
                (run, next(o for o in runs if (o.optimizer, o.seed) == ("adamw", run.seed)))
                for run in runs
                if run.optimizer == "muon"
            ]
            fractions = [(first_reached(run, curve, o.rows[-1][curve], by), o.rows[-1][by]) for run, o in pairs]
            known = [reached / whole for reached, whole in fractions if reached is not None]
            cells.append(spread(known, 2) + f" ({len(known)} of {len(fractions)} seeds)" if known else "never")
        rows.append([name, *cells])
    return table(
        "fraction of AdamW's tokens and seconds after which Muon + AdamW reaches AdamW's final value",
        ["", "tokens", "seconds"],
        rows,
    )


def draw(runs: Sequence[Run], figure: Any) -> None:
    """Plot a curve for each seed: one row per measure, one column each for tokens and seconds."""
    from matplotlib.ticker import EngFormatter

    grid = figure.subplots(len(CURVES), 2, sharex="col", sharey="row")
    for line, (curve, name) in zip(grid, CURVES.items(), strict=True):
        for axes, by in zip(line, ("tokens", "seconds"), strict=True):
            for run in runs:
                colour, label = ("C0", "C1")[list(RATES).index(run.optimizer)], NAMES[run.optimizer]
                legend = label if run.seed == runs[0].seed else None
                axes.plot([row[by] for row in run.rows], [row[curve] for row in run.rows], colour, lw=1, label=legend)
        line[0].set_ylabel(name)
    grid[0][0].legend()
    for axes, by in zip(grid[-1], ("tokens", "seconds of training"), strict=True):
        axes.set_xlabel(by)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def main() -> None:
    """Make the missing runs, print the tables and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fraction", type=float, default=0.5, help="fraction of the demo's tokens of PT and CP")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 11, 13])
    parser.add_argument("--keys", nargs="*", default=[], metavar="KEY=VALUE", help="further keys of the recipe")
    options = parser.parse_args()
    need("matplotlib", "view").use("Agg")
    from matplotlib.figure import Figure

    first = try_rates(options)
    chosen = best(first)
    runs = [run_one(optimizer, rate, seed, options) for seed in options.seeds for optimizer, rate in chosen.items()]
    lines = [
        f"The demo's draft at {options.fraction:g} of its PT and CP tokens, seeds {', '.join(map(str, options.seeds))}."
    ]
    lines += [rates_table(first), ends_table(runs), sooner_table(runs)]
    figure = Figure(figsize=(9, 9), layout="constrained")
    draw(runs, figure)
    figure.savefig(options.folder / "optimizers.png", dpi=120)
    (options.folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
