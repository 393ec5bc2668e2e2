"""Muon for matrices and AdamW for the rest, or AdamW alone? The demo's draft at equal tokens, over several seeds.

    python benchmarks/optimizers.py runs/optimizers               # half of the demo's PT and CP tokens, three seeds
    python benchmarks/optimizers.py runs/optimizers --fraction 1

One phase on code and text in equal parts. Each way first tries a few learning rates with the first seed; the one that
ends with the highest block efficiency is run with all. Curves are the rows of metrics.jsonl: held-out loss and block
efficiency against tokens and against seconds of training. Runs take one thread; seconds are only comparable where
nothing else runs on their core. The same command goes on where it was stopped.
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

# What of each way is tried: its own rate. Under Muon AdamW's is the demo's.
TRIED: dict[str, dict[str, tuple[float, ...]]] = {
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
Row = dict[str, float]


class Run(NamedTuple):
    """A way at one learning rate with one seed: the measured rows of its metrics."""

    way: str
    rate: float
    seed: int
    rows: tuple[Row, ...]


def made(way: str, rate: float, seed: int, asked: argparse.Namespace) -> Run:
    """One run, from its folder where it is done."""
    tokens = sum(demo.tokens_of(phase, asked.fraction) for phase in ("pretrain", "continue"))
    (key,) = TRIED[way]
    keys: dict[str, Any] = {"seed": seed, "name": "optimizers", "continue": "null", "synthesize": "null"}
    keys |= {"align": "null", "pretrain.mix": "{code: 1, text: 1}", "pretrain.train_tokens": tokens}
    keys |= {"pretrain.optimizer": way, f"pretrain.{key}": rate, "pretrain.held_out_every_tokens": tokens // MEASURES}
    keys |= dict(key.split("=", 1) for key in asked.keys)
    folder = asked.folder / f"seed-{seed}"
    first = folder / f"muon-{TRIED['muon']['muon_learning_rate'][0]:g}"
    demo.made(folder / f"{way}-{rate:g}", first, keys, threads=1, until="pretrain")
    lines = (folder / f"{way}-{rate:g}" / "pretrain" / "metrics.jsonl").read_text().splitlines()
    rows = tuple(row for line in lines if "block_efficiency" in (row := json.loads(line)))
    print(f"{NAMES[way]}, rate {rate:g}, seed {seed}: {rows[-1]['block_efficiency']:.3f}", file=sys.stderr)
    return Run(way, rate, seed, rows)


def tried(asked: argparse.Namespace) -> list[Run]:
    """Every rate of every way, with the first seed."""
    return [
        made(way, rate, asked.seeds[0], asked) for way, rates in TRIED.items() for rate in next(iter(rates.values()))
    ]


def best(runs: Sequence[Run]) -> dict[str, float]:
    """The rate of each way that ends with the highest block efficiency."""
    last = {(run.way, run.rate): run.rows[-1]["block_efficiency"] for run in runs}
    return {way: max((rate for w, rate in last if w == way), key=lambda rate: last[way, rate]) for way in TRIED}


def reached(run: Run, curve: str, wanted: float, by: str) -> float | None:
    """Tokens or seconds (`by`) at which a curve first comes to a value, between two measures, if ever."""
    sign = 1 if curve == "block_efficiency" else -1
    before: Row | None = None
    for row in run.rows:
        if sign * row[curve] >= sign * wanted:
            if before is None:
                return row[by]
            fraction = (wanted - before[curve]) / (row[curve] - before[curve])
            return before[by] + fraction * (row[by] - before[by])
        before = row
    return None


def rates_table(runs: Sequence[Run]) -> str:
    """Where each rate that was tried has ended."""
    rows = [[NAMES[r.way], f"{r.rate:g}", *(f"{r.rows[-1][curve]:.3f}" for curve in CURVES)] for r in runs]
    return table(f"rates tried with seed {runs[0].seed}, at the end", ["way", "rate", *CURVES.values()], rows)


def ends_table(runs: Sequence[Run]) -> str:
    """Where each way ends, over the seeds."""
    rows = []
    for way in TRIED:
        mine = [run for run in runs if run.way == way]
        ends = [spread([run.rows[-1][curve] for run in mine]) for curve in CURVES]
        took = [
            f"{mean(run.rows[-1]['tokens'] for run in mine):,.0f}",
            spread([run.rows[-1]["seconds"] for run in mine], 0),
        ]
        rows.append([NAMES[way], f"{mine[0].rate:g}", *took, *ends])
    return table("each at its best rate", ["way", "rate", "tokens", "seconds", *CURVES.values()], rows)


def sooner_table(runs: Sequence[Run]) -> str:
    """What Muon + AdamW takes to come to where AdamW alone ends, as a share of what that took, seed by seed."""
    rows = []
    for curve, name in CURVES.items():
        cells = []
        for by in ("tokens", "seconds"):
            pairs = [
                (run, next(o for o in runs if (o.way, o.seed) == ("adamw", run.seed)))
                for run in runs
                if run.way == "muon"
            ]
            shares = [(reached(run, curve, o.rows[-1][curve], by), o.rows[-1][by]) for run, o in pairs]
            known = [found / whole for found, whole in shares if found is not None]
            cells.append(spread(known, 2) + f" ({len(known)} of {len(shares)} seeds)" if known else "never")
        rows.append([name, *cells])
    return table(
        "share of AdamW's tokens and seconds after which Muon + AdamW is where AdamW ends",
        ["", "tokens", "seconds"],
        rows,
    )


def draw(runs: Sequence[Run], figure: Any) -> None:
    """A curve for each seed: what is measured down, tokens and seconds across."""
    from matplotlib.ticker import EngFormatter

    grid = figure.subplots(len(CURVES), 2, sharex="col", sharey="row")
    for line, (curve, name) in zip(grid, CURVES.items(), strict=True):
        for axes, by in zip(line, ("tokens", "seconds"), strict=True):
            for run in runs:
                colour, label = ("C0", "C1")[list(TRIED).index(run.way)], NAMES[run.way]
                shown = label if run.seed == runs[0].seed else None
                axes.plot([row[by] for row in run.rows], [row[curve] for row in run.rows], colour, lw=1, label=shown)
        line[0].set_ylabel(name)
    grid[0][0].legend()
    for axes, by in zip(grid[-1], ("tokens", "seconds of training"), strict=True):
        axes.set_xlabel(by)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def main() -> None:
    """Make what is not made yet; print the tables and draw the curves of what is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fraction", type=float, default=0.5, help="share of the demo's tokens of PT and CP")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 11, 13])
    parser.add_argument("--keys", nargs="*", default=[], metavar="KEY=VALUE", help="further keys of the recipe")
    asked = parser.parse_args()
    need("matplotlib", "view").use("Agg")
    from matplotlib.figure import Figure

    first = tried(asked)
    chosen = best(first)
    runs = [made(way, rate, seed, asked) for seed in asked.seeds for way, rate in chosen.items()]
    told = [
        f"The demo's draft at {asked.fraction:g} of its PT and CP tokens, seeds {', '.join(map(str, asked.seeds))}."
    ]
    told += [rates_table(first), ends_table(runs), sooner_table(runs)]
    picture = Figure(figsize=(9, 9), layout="constrained")
    draw(runs, picture)
    picture.savefig(asked.folder / "optimizers.png", dpi=120)
    (asked.folder / "report.md").write_text("\n".join(told) + "\n", encoding="utf-8")
    print("\n".join(told))


if __name__ == "__main__":
    main()
