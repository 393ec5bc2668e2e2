"""Compare the kinds of `draft.init` on the demo with equal training tokens, over several seeds.

    python benchmarks/inits.py runs/inits                             # everything
    python benchmarks/inits.py runs/inits --fraction 0.1 --seeds 7    # a tenth of the tokens, one seed: does it run?

Every draft has the shape of the demo's draft; donors are cut to this shape. Stages that do not depend on the init run
once per seed and are linked: token shards, the target's completions for training and of held-out prompts. The same
command resumes an interrupted benchmark and prints the tables again.
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

DONOR = Path("../shared/targets/pycoder-7m")  # has another tokenizer; left out if it is not next to the repository
GAMMAS = (3, 5)


class Run(NamedTuple):
    """A draft with one init and seed: the evaluation after each phase, and the cost of training."""

    kind: str
    seed: int
    results: tuple[TaskResult, ...]
    tokens: int
    seconds: float
    held_out_nats: dict[str, float]


def available_inits() -> list[str]:
    """The inits that can be compared on this machine."""
    inits = ["random", "target_embedding", "prune:demo"]
    if (DONOR / "config.json").is_file():
        return [*inits, f"transplant:{DONOR}"]
    print(f"left out: transplant, whose donor is not at {DONOR}", file=sys.stderr)
    return inits


def keys(kind: str, seed: int, fraction: float) -> dict[str, Any]:
    """The recipe keys of the demo with this init and seed, and with the shape of a random init."""
    recipe = resolve(RECIPE).recipe
    shape = init.shape_of(recipe.target, recipe.draft)
    result = demo.demo_at(fraction, seed, "inits") | {"draft.init": kind}
    if ":" in kind:  # a donor would give its own sizes
        sizes = ("hidden_size", "layers", "heads", "kv_heads", "intermediate_size")
        result |= {f"draft.{size}": getattr(shape, size) for size in sizes}
    return result


def run(kind: str, seed: int, fraction: float, threads: int, root: Path) -> Run:
    """The results of a run, which is made unless its folder has it."""
    folder = root / f"seed-{seed}" / kind.partition(":")[0]
    demo.run_once(folder, root / f"seed-{seed}" / "random", keys(kind, seed, fraction), threads)
    cards = [read_card(folder / phase, DraftCard) for phase in PHASES]
    return Run(
        kind=kind.partition(":")[0],
        seed=seed,
        results=read_card(folder / "evaluate", EvaluationCard).results,
        tokens=sum(card.trained_tokens for card in cards),
        seconds=sum(card.cost.seconds for card in cards),
        held_out_nats=cards[-1].held_out_nats,
    )


def acceptance_rows(runs: list[Run], phase: str, gamma: int | None) -> list[list[str]]:
    """A row for each init: alpha, or block efficiency at gamma, on each task and distribution after a phase."""

    def number(result: TaskResult) -> float:
        if gamma is None:
            return result.alpha.value
        return next(at.block_efficiency.value for at in result.gammas if at.gamma == gamma)

    rows = []
    for kind in dict.fromkeys(run.kind for run in runs):
        own = [r for run in runs if run.kind == kind for r in run.results if r.stage == phase]
        places = sorted({(r.task, r.temperature) for r in own})
        cells = [[number(r) for r in own if (r.task, r.temperature) == place] for place in places]
        whole = [mean(numbers) for numbers in zip(*cells, strict=True)]
        rows.append([kind, *map(spread, cells), spread(whole)])
    return rows


def report(runs: list[Run], fraction: float) -> str:
    """The tables: acceptance after each phase, block efficiency of the last draft, and the cost of training."""
    last = sorted({(r.task, r.temperature) for r in runs[0].results})
    header = ["init", *(f"{task}, {f'T = {t:g}' if t else 'greedy'}" for task, t in last), "mean"]
    seeds = sorted({run.seed for run in runs})
    lines = [f"The demo at {fraction:g} of its tokens, seeds {', '.join(map(str, seeds))}: mean ± standard deviation."]
    lines += [table(f"alpha after {phase}", header, acceptance_rows(runs, phase, None)) for phase in PHASES]
    lines += [
        table(f"block efficiency at gamma {g} after align", header, acceptance_rows(runs, "align", g)) for g in GAMMAS
    ]
    rows = []
    for kind in dict.fromkeys(run.kind for run in runs):
        own = [run for run in runs if run.kind == kind]
        nats = [spread([run.held_out_nats[name] for run in own]) for name in sorted(own[0].held_out_nats)]
        rows.append([kind, f"{mean(run.tokens for run in own):,.0f}", spread([run.seconds for run in own], 0), *nats])
    names = [f"held-out {name}, nats" for name in sorted(runs[0].held_out_nats)]
    lines.append(table("training, all phases", ["init", "tokens", "seconds", *names], rows))
    return "\n".join(lines)


def main() -> None:
    """Make the missing runs and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fraction", type=float, default=1.0, help="fraction of the demo's tokens and prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 11, 13])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    runs: list[Run] = []
    for seed in options.seeds:
        for kind in available_inits():
            runs.append(run(kind, seed, options.fraction, options.threads, options.folder))
            alphas = {f"{r.task}, {r.temperature:g}": r.alpha.value for r in runs[-1].results if r.stage == "align"}
            print(f"{kind}, seed {seed}: {json.dumps(alphas)}", file=sys.stderr)
    text = report(runs, options.fraction)
    (options.folder / "report.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
