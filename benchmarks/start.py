"""Where should a draft's weights start? The demo, once for each way of `draft.init` and each seed, at equal tokens.

    python benchmarks/start.py runs/start                       # all of it
    python benchmarks/start.py runs/start --fraction 0.1 --seeds 7 # a tenth of the tokens, one seed: does it run?

Every draft has the shape of the demo's, whatever it starts from: a donor loses layers and width to come down to it.
What does not depend on the start is made once a seed and linked: tokens, what the target wrote for training, and its
completions of held-out prompts. The same command goes on where it was stopped, and prints the tables again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import runs as demo
from fastdraft import init
from fastdraft.config.resolve import resolve
from fastdraft.models.draft import DraftCard
from fastdraft.results.evaluation import EvaluationCard, TaskResult
from fastdraft.system.cards import read_card
from runs import PHASES, RECIPE, spread, table

DONOR = Path("../shared/targets/pycoder-7m")  # another tokenizer, beside the repository; left out where it is absent
GAMMAS = (3, 5)


class Run(NamedTuple):
    """A draft by one start and seed: what was measured after each phase, and what it took."""

    way: str
    seed: int
    results: tuple[TaskResult, ...]
    tokens: int
    seconds: float
    held_out_nats: dict[str, float]


def ways() -> list[str]:
    """The starts that can be compared here."""
    found = ["random", "target_embedding", "prune:demo"]
    if (DONOR / "config.json").is_file():
        return [*found, f"transplant:{DONOR}"]
    print(f"left out: transplant, whose donor is not at {DONOR}, beside the repository", file=sys.stderr)
    return found


def keys(way: str, seed: int, fraction: float) -> dict[str, Any]:
    """The demo with another start and seed, at a share of its tokens, in the shape that it has with a random start."""
    recipe = resolve(RECIPE).recipe
    shape = init.shape_of(recipe.target, recipe.draft)
    found = demo.demo_at(fraction, seed, "start") | {"draft.init": way}
    if recipe.draft.params_millions is not None and ":" in way:
        sizes = ("hidden_size", "layers", "heads", "kv_heads", "intermediate_size")
        found |= {f"draft.{size}": getattr(shape, size) for size in sizes}
    return found


def made(way: str, seed: int, fraction: float, threads: int, root: Path) -> Run:
    """One run, from its folder where it is done."""
    folder = root / f"seed-{seed}" / way.partition(":")[0]
    demo.made(folder, root / f"seed-{seed}" / "random", keys(way, seed, fraction), threads)
    cards = [read_card(folder / phase, DraftCard) for phase in PHASES]
    return Run(
        way=way.partition(":")[0],
        seed=seed,
        results=read_card(folder / "evaluate", EvaluationCard).results,
        tokens=sum(card.trained_tokens for card in cards),
        seconds=sum(card.cost.seconds for card in cards),
        held_out_nats=cards[-1].held_out_nats,
    )


def measured(runs: list[Run], phase: str, gamma: int | None) -> list[list[str]]:
    """A row for each start: alpha, or block efficiency at gamma, on each task and distribution after a phase."""

    def number(result: TaskResult) -> float:
        if gamma is None:
            return result.alpha.value
        return next(at.block_efficiency.value for at in result.gammas if at.gamma == gamma)

    rows = []
    for way in dict.fromkeys(run.way for run in runs):
        mine = [r for run in runs if run.way == way for r in run.results if r.stage == phase]
        places = sorted({(r.task, r.temperature) for r in mine})
        cells = [[number(r) for r in mine if (r.task, r.temperature) == place] for place in places]
        whole = [mean(numbers) for numbers in zip(*cells, strict=True)]
        rows.append([way, *map(spread, cells), spread(whole)])
    return rows


def report(runs: list[Run], fraction: float) -> str:
    """The tables: acceptance after each phase, block efficiency of the last draft, and what it took."""
    last = sorted({(r.task, r.temperature) for r in runs[0].results})
    header = ["start", *(f"{task}, {f'T = {t:g}' if t else 'greedy'}" for task, t in last), "mean"]
    seeds = sorted({run.seed for run in runs})
    told = [f"The demo at {fraction:g} of its tokens, seeds {', '.join(map(str, seeds))}: mean ± standard deviation."]
    told += [table(f"alpha after {phase}", header, measured(runs, phase, None)) for phase in PHASES]
    told += [table(f"block efficiency at gamma {g} after align", header, measured(runs, "align", g)) for g in GAMMAS]
    rows = []
    for way in dict.fromkeys(run.way for run in runs):
        mine = [run for run in runs if run.way == way]
        nats = [spread([run.held_out_nats[name] for run in mine]) for name in sorted(mine[0].held_out_nats)]
        rows.append([way, f"{mean(run.tokens for run in mine):,.0f}", spread([run.seconds for run in mine], 0), *nats])
    names = [f"held-out {name}, nats" for name in sorted(runs[0].held_out_nats)]
    told.append(table("training, all phases", ["start", "tokens", "seconds", *names], rows))
    return "\n".join(told)


def main() -> None:
    """Make what is not made yet; print the tables of what is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the demo's tokens and prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 11, 13])
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    runs = []
    for seed in asked.seeds:
        for way in ways():
            runs.append(made(way, seed, asked.fraction, asked.threads, asked.folder))
            alphas = {f"{r.task}, {r.temperature:g}": r.alpha.value for r in runs[-1].results if r.stage == "align"}
            print(f"{way}, seed {seed}: {json.dumps(alphas)}", file=sys.stderr)
    text = report(runs, asked.fraction)
    (asked.folder / "report.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
