"""The paper's ablations on the demo: the gain from pretraining (PT), and the data of continued pretraining (CP).

    python benchmarks/ablations.py runs/ablations                             # both, three seeds, all tokens
    python benchmarks/ablations.py runs/ablations --fraction 0.3 --what pt    # one of them, with 30 % of the tokens

pt: block efficiency at five numbers of PT tokens, after PT and after the demo's CP and alignment (FT).
cp: CP like the paper (PT on text, then CP on code and text); CP on code only; no CP, but the same tokens of each source
mixed in PT; and the same tokens of each source with all code before all text. FT is the same in all of them.
Each run uses one thread, so that several can share a machine. The same command resumes an interrupted benchmark.
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

# PT tokens as fractions of the demo's.
SIZES = (0.125, 0.25, 0.5, 1.0, 2.0)
GAMMA = 5
PAPER = "like the paper"


class Variant(NamedTuple):
    """A way to train the draft: its name, its folder, and the keys that differ from the demo."""

    name: str
    folder: str
    keys: dict[str, Any]


class Run(NamedTuple):
    """A variant with one seed: the evaluation after each phase, and the cards of the phases."""

    variant: Variant
    seed: int
    results: tuple[TaskResult, ...]
    cards: dict[str, DraftCard]

    def tau(self, stage: str, place: tuple[str, float] | None = None) -> float:
        """Block efficiency after a phase, for one (task, temperature) or in the mean over all."""
        own = [r for r in self.results if r.stage == stage and place in (None, (r.task, r.temperature))]
        return mean(next(at.block_efficiency.value for at in r.gammas if at.gamma == GAMMA) for r in own)


def sizes(fraction: float) -> list[Variant]:
    """The variants with different numbers of PT tokens."""
    variants = []
    for size in SIZES:
        tokens = demo.tokens_of("pretrain", fraction * size)
        folder = "paper" if size == 1 else f"pt-{size:g}"
        variants.append(Variant(f"{tokens:,}", folder, {"pretrain.train_tokens": tokens}))
    return variants


def orders(fraction: float) -> list[Variant]:
    """The variants of CP; all but `code only` see the same tokens of each source."""
    first, then = (demo.tokens_of(phase, fraction) for phase in ("pretrain", "continue"))
    part = resolve(RECIPE).recipe.continue_
    assert part is not None, "the demo has CP"
    code = round(then * part.mix["code"] / sum(part.mix.values()))
    text = first + then - code
    mixed = {"pretrain.mix": f"{{code: {code}, text: {text}}}", "pretrain.train_tokens": first + then}
    code_first = {"pretrain.mix": "{code: 1}", "pretrain.train_tokens": code}
    code_first |= {"continue.mix": "{text: 1}", "continue.train_tokens": text}
    return [
        Variant(PAPER, "paper", {}),
        Variant("CP on code only", "code-only", {"continue.mix": "{code: 1}"}),
        Variant("mixed in PT", "mixed", mixed | {"continue": "null"}),
        Variant("code before text", "code-first", code_first),
    ]


def run(variant: Variant, seed: int, options: argparse.Namespace) -> Run:
    """The results of a run, which is made unless its folder has it."""
    keys = demo.demo_at(options.fraction, seed, "ablations") | {"evaluate.validation_prompts": 0} | variant.keys
    keys |= dict(key.split("=", 1) for key in options.keys)
    if variant.keys.get("continue") == "null":
        del keys["continue.train_tokens"]
    folder = options.folder / f"seed-{seed}" / variant.folder
    demo.run_once(folder, folder.with_name("paper"), keys, threads=1)
    cards = {phase: read_card(folder / phase, DraftCard) for phase in demo.PHASES if (folder / phase).is_dir()}
    print(f"{variant.name}, seed {seed}: done", file=sys.stderr)
    return Run(variant, seed, read_card(folder / "evaluate", EvaluationCard).results, cards)


def run_all(variants: Sequence[Variant], options: argparse.Namespace) -> list[Run]:
    """The runs of all variants. The demo itself runs first for each seed, because the others link its stages."""
    first = sorted(variants, key=lambda variant: variant.folder != "paper")
    runs = [run(variant, seed, options) for seed in options.seeds for variant in first]
    return sorted(runs, key=lambda result: variants.index(result.variant))


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each variant, one per seed."""
    return {
        name: [run for run in runs if run.variant.name == name] for name in dict.fromkeys(r.variant.name for r in runs)
    }


def size_table(runs: Sequence[Run]) -> str:
    """A table with a row for each number of PT tokens."""
    rows = []
    for tokens, group in grouped(runs).items():
        nats = [spread([r.cards["pretrain"].held_out_nats[source] for r in group]) for source in ("text", "code")]
        taus = [spread([r.tau(stage) for r in group]) for stage in ("pretrain", "continue", "align")]
        rows.append([tokens, *nats, *taus])
    header = ["PT tokens", "held-out text after PT, nats", "held-out code", "after PT", "after CP", "after FT"]
    return table(f"block efficiency at gamma {GAMMA} by PT tokens, mean over tasks and distributions", header, rows)


def order_table(runs: Sequence[Run]) -> str:
    """A table with a row for each variant of CP: block efficiency after FT, and the mean before it."""
    places = sorted({(r.task, r.temperature) for r in runs[0].results})
    rows = []
    for name, group in grouped(runs).items():
        cells = [spread([r.tau("align", place) for r in group]) for place in places]
        before = spread([r.tau([phase for phase in r.cards if phase != "align"][-1]) for r in group])
        rows.append([name, *cells, spread([r.tau("align") for r in group]), before])
    header = [
        "variant",
        *(f"{task}, {f'T = {t:g}' if t else 'greedy'}" for task, t in places),
        "mean",
        "mean before FT",
    ]
    return table(f"block efficiency at gamma {GAMMA} after FT, by what came before", header, rows)


def draw_sizes(runs: Sequence[Run], axes: Any) -> None:
    """Plot block efficiency and held-out loss against PT tokens."""
    groups = grouped(runs)
    tokens = [int(name.replace(",", "")) for name in groups]
    for stage, label in (("pretrain", "after PT"), ("align", "after CP and FT")):
        values = [[r.tau(stage) for r in group] for group in groups.values()]
        axes.errorbar(tokens, *_bars(values), marker="o", capsize=3, label=label)
    axes.set(xscale="log", xlabel="tokens of PT", ylabel=f"block efficiency, gamma {GAMMA}")
    right = axes.twinx()
    nats = [[r.cards["pretrain"].held_out_nats["text"] for r in group] for group in groups.values()]
    right.errorbar(tokens, *_bars(nats), marker="x", linestyle=":", color="gray", label="held-out text after PT")
    right.set_ylabel("nats per token")


def draw_orders(runs: Sequence[Run], axes: Any) -> None:
    """Plot a bar for each variant, task and distribution."""
    groups = grouped(runs)
    places = sorted({(r.task, r.temperature) for r in runs[0].results})
    for number, (name, group) in enumerate(groups.items()):
        middles, spans = _bars([[r.tau("align", place) for r in group] for place in places])
        at = [place + number / (len(groups) + 1) for place in range(len(places))]
        axes.bar(at, middles, 1 / (len(groups) + 1), yerr=spans, capsize=2, label=name)
    axes.set_xticks([place + 0.3 for place in range(len(places))])
    axes.set_xticklabels([f"{task}, {f'T = {t:g}' if t else 'greedy'}" for task, t in places])
    axes.set(ylabel=f"block efficiency after FT, gamma {GAMMA}")
    axes.set_ylim(bottom=1)


def _bars(values: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Means and standard deviations, which are 0 for one seed."""
    return [mean(group) for group in values], [stdev(group) if len(group) > 1 else 0.0 for group in values]


ABLATIONS: dict[str, tuple[Callable[[float], list[Variant]], Callable[..., str], Callable[..., None]]] = {
    "pt": (sizes, size_table, draw_sizes),
    "cp": (orders, order_table, draw_orders),
}


def main() -> None:
    """Make the missing runs, print the tables and draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--what", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument("--fraction", type=float, default=1.0, help="fraction of the demo's tokens and prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 11, 13])
    parser.add_argument("--keys", nargs="*", default=[], metavar="KEY=VALUE", help="further keys of the recipe")
    options = parser.parse_args()
    need("matplotlib", "view").use("Agg")
    from matplotlib.figure import Figure

    report = [
        f"The demo at {options.fraction:g} of its tokens, seeds {', '.join(map(str, options.seeds))}: mean ± deviation."
    ]
    for what in options.what:
        variants, make_table, draw = ABLATIONS[what]
        runs = run_all(variants(options.fraction), options)
        report.append(make_table(runs))
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        draw(runs, figure.subplots())
        figure.legend(loc="outside upper center", ncols=4)
        figure.savefig(options.folder / f"{what}.png", dpi=120)
    (options.folder / "report.md").write_text("\n".join(report) + "\n", encoding="utf-8")
    print("\n".join(report))


if __name__ == "__main__":
    main()
