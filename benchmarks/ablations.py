"""The paper's ablations on the demo: how much PT pays, and what CP is best made of, over several seeds.

    python benchmarks/ablations.py runs/ablations                          # both, three seeds, the demo's own tokens
    python benchmarks/ablations.py runs/ablations --fraction 0.3 --what pt    # one of them, at a share of the tokens

pt: block efficiency against the tokens of PT at five sizes, after PT alone and after the demo's own CP and FT.
cp: CP as the paper does it (PT on text, then code with text); on code alone; no CP, but the same tokens of each source
mixed from the start; and the same tokens of each source with all code before all text. FT is the same for all.
Runs take one thread: several can share a machine, one a core. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import runs as demo
from fastdraft.config.resolve import resolve
from fastdraft.models.draft import DraftCard
from fastdraft.results.evaluation import EvaluationCard, TaskResult
from fastdraft.system.cards import read_card
from fastdraft.system.optional_packages import need
from runs import RECIPE, spread, table

# PT's tokens as shares of the demo's.
SIZES = (0.125, 0.25, 0.5, 1.0, 2.0)
GAMMA = 5
PAPER = "as the paper"


class Variant(NamedTuple):
    """A way to train the draft: its name, its folder's, and what it changes in the demo."""

    name: str
    folder: str
    keys: dict[str, Any]


class Run(NamedTuple):
    """A variant with one seed: what was measured after each phase, and the cards of the phases."""

    variant: Variant
    seed: int
    results: tuple[TaskResult, ...]
    cards: dict[str, DraftCard]

    def tau(self, stage: str, place: tuple[str, float] | None = None) -> float:
        """Block efficiency after a phase, in one task and distribution or in the mean over all."""
        mine = [r for r in self.results if r.stage == stage and place in (None, (r.task, r.temperature))]
        return mean(next(at.block_efficiency.value for at in r.gammas if at.gamma == GAMMA) for r in mine)


def sizes(fraction: float) -> list[Variant]:
    """Five amounts of PT."""
    found = []
    for size in SIZES:
        tokens = demo.tokens_of("pretrain", fraction * size)
        folder = "paper" if size == 1 else f"pt-{size:g}"
        found.append(Variant(f"{tokens:,}", folder, {"pretrain.train_tokens": tokens}))
    return found


def orders(fraction: float) -> list[Variant]:
    """Four ways from text and code to a draft; all but `code alone` see the same tokens of each source."""
    first, then = (demo.tokens_of(phase, fraction) for phase in ("pretrain", "continue"))
    part = resolve(RECIPE).recipe.continue_
    code = round(then * part.mix["code"] / sum(part.mix.values()))
    text = first + then - code
    mixed = {"pretrain.mix": f"{{code: {code}, text: {text}}}", "pretrain.train_tokens": first + then}
    turned = {"pretrain.mix": "{code: 1}", "pretrain.train_tokens": code}
    turned |= {"continue.mix": "{text: 1}", "continue.train_tokens": text}
    return [
        Variant(PAPER, "paper", {}),
        Variant("CP on code alone", "code-alone", {"continue.mix": "{code: 1}"}),
        Variant("mixed from the start", "mixed", mixed | {"continue": "null"}),
        Variant("code before text", "code-first", turned),
    ]


def made(variant: Variant, seed: int, asked: argparse.Namespace) -> Run:
    """One run, from its folder where it is done."""
    keys = demo.demo_at(asked.fraction, seed, "ablations") | {"evaluate.validation_prompts": 0} | variant.keys
    keys |= dict(key.split("=", 1) for key in asked.keys)
    if variant.keys.get("continue") == "null":
        del keys["continue.train_tokens"]
    folder = asked.folder / f"seed-{seed}" / variant.folder
    demo.made(folder, folder.with_name("paper"), keys, threads=1)
    cards = {phase: read_card(folder / phase, DraftCard) for phase in demo.PHASES if (folder / phase).is_dir()}
    print(f"{variant.name}, seed {seed}: done", file=sys.stderr)
    return Run(variant, seed, read_card(folder / "evaluate", EvaluationCard).results, cards)


def all_made(variants: Sequence[Variant], asked: argparse.Namespace) -> list[Run]:
    """The runs of all variants in their order. Of each seed the demo itself is made first: others link its parts."""
    first = sorted(variants, key=lambda variant: variant.folder != "paper")
    runs = [made(variant, seed, asked) for seed in asked.seeds for variant in first]
    return sorted(runs, key=lambda run: variants.index(run.variant))


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each variant, over the seeds."""
    return {
        name: [run for run in runs if run.variant.name == name] for name in dict.fromkeys(r.variant.name for r in runs)
    }


def size_table(runs: Sequence[Run]) -> str:
    """A row for each amount of PT."""
    rows = []
    for tokens, mine in grouped(runs).items():
        nats = [spread([r.cards["pretrain"].held_out_nats[source] for r in mine]) for source in ("text", "code")]
        taus = [spread([r.tau(stage) for r in mine]) for stage in ("pretrain", "continue", "align")]
        rows.append([tokens, *nats, *taus])
    header = ["PT tokens", "held-out text after PT, nats", "held-out code", "after PT", "after CP", "after FT"]
    return table(f"block efficiency at gamma {GAMMA} by PT tokens, mean over tasks and distributions", header, rows)


def order_table(runs: Sequence[Run]) -> str:
    """A row for each way, after FT; and the mean before it."""
    places = sorted({(r.task, r.temperature) for r in runs[0].results})
    rows = []
    for name, mine in grouped(runs).items():
        cells = [spread([r.tau("align", place) for r in mine]) for place in places]
        before = spread([r.tau([phase for phase in r.cards if phase != "align"][-1]) for r in mine])
        rows.append([name, *cells, spread([r.tau("align") for r in mine]), before])
    header = ["way", *(f"{task}, {f'T = {t:g}' if t else 'greedy'}" for task, t in places), "mean", "mean before FT"]
    return table(f"block efficiency at gamma {GAMMA} after FT, by what came before", header, rows)


def draw_sizes(runs: Sequence[Run], axes: Any) -> None:
    """Block efficiency against PT tokens, and the loss that goes on falling."""
    groups = grouped(runs)
    tokens = [int(name.replace(",", "")) for name in groups]
    for stage, label in (("pretrain", "after PT"), ("align", "after CP and FT")):
        values = [[r.tau(stage) for r in mine] for mine in groups.values()]
        axes.errorbar(tokens, *_bars(values), marker="o", capsize=3, label=label)
    axes.set(xscale="log", xlabel="tokens of PT", ylabel=f"block efficiency, gamma {GAMMA}")
    other = axes.twinx()
    nats = [[r.cards["pretrain"].held_out_nats["text"] for r in mine] for mine in groups.values()]
    other.errorbar(tokens, *_bars(nats), marker="x", linestyle=":", color="gray", label="held-out text after PT")
    other.set_ylabel("nats a token")


def draw_orders(runs: Sequence[Run], axes: Any) -> None:
    """A bar for each way, tasks and distributions apart."""
    groups = grouped(runs)
    places = sorted({(r.task, r.temperature) for r in runs[0].results})
    for number, (name, mine) in enumerate(groups.items()):
        middles, spans = _bars([[r.tau("align", place) for r in mine] for place in places])
        at = [place + number / (len(groups) + 1) for place in range(len(places))]
        axes.bar(at, middles, 1 / (len(groups) + 1), yerr=spans, capsize=2, label=name)
    axes.set_xticks([place + 0.3 for place in range(len(places))])
    axes.set_xticklabels([f"{task}, {f'T = {t:g}' if t else 'greedy'}" for task, t in places])
    axes.set(ylabel=f"block efficiency after FT, gamma {GAMMA}")
    axes.set_ylim(bottom=1)


def _bars(values: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Means, and standard deviations; 0 of one seed."""
    return [mean(each) for each in values], [stdev(each) if len(each) > 1 else 0.0 for each in values]


WHAT: dict[str, tuple[Callable[[float], list[Variant]], Callable[..., str], Callable[..., None]]] = {
    "pt": (sizes, size_table, draw_sizes),
    "cp": (orders, order_table, draw_orders),
}


def main() -> None:
    """Make what is not made yet; print the tables and draw the pictures of what is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the demo's tokens and prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 11, 13])
    parser.add_argument("--keys", nargs="*", default=[], metavar="KEY=VALUE", help="further keys of the recipe")
    asked = parser.parse_args()
    need("matplotlib", "view").use("Agg")
    from matplotlib.figure import Figure

    told = [
        f"The demo at {asked.fraction:g} of its tokens, seeds {', '.join(map(str, asked.seeds))}: mean ± deviation."
    ]
    for what in asked.what:
        variants, words, draw = WHAT[what]
        runs = all_made(variants(asked.fraction), asked)
        told.append(words(runs))
        picture = Figure(figsize=(8, 4.5), layout="constrained")
        draw(runs, picture.subplots())
        picture.legend(loc="outside upper center", ncols=4)
        picture.savefig(asked.folder / f"{what}.png", dpi=120)
    (asked.folder / "report.md").write_text("\n".join(told) + "\n", encoding="utf-8")
    print("\n".join(told))


if __name__ == "__main__":
    main()
