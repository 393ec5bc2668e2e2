"""Compare objectives and data mixtures of alignment with the paper's recipe, at equal tokens and parameters.

    python benchmarks/alignment.py runs/alignment                                  # all arms, seeds, targets
    python benchmarks/alignment.py runs/alignment --fraction 0.1 --seeds 7 --arms paper kl half --targets demo

An arm is the recipe of a target with some keys changed (`ARMS`). `--fraction` is the fraction of the recipe's tokens
and prompts. Arms with the same seed hard-link stages with the same key, and the target's completions of held-out
prompts. The same command resumes an interrupted benchmark and prints the tables again.

Tokens gained are (block efficiency - 1) relative to the paper's recipe with the same seed. There are two references:
with random init as in the paper, and with the init of all other arms. Cost is the training of the draft (6 N FLOPs per
token) and the forward passes of the target (2 N per token, teacher-forced or generated), at the sizes of the paper's
pairs and not at the sizes here; attention is left out. If a sibling is the teacher, its forward passes cost in
proportion to its parameters. The training of the sibling is not counted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from fastdraft import init
from fastdraft.config import Recipe, TargetPart, TrainPart
from fastdraft.config.resolve import resolve
from fastdraft.maths.acceptance import t_quantile
from fastdraft.models.architecture import parameters
from fastdraft.models.draft import DraftCard
from fastdraft.models.pretrained import open_config
from fastdraft.pipeline.stages import key_of, stages_of
from fastdraft.results.evaluation import EvaluationCard, TaskResult
from fastdraft.synthesize.completions_card import CompletionsCard
from fastdraft.system.cards import card_key, read_card

# The second target is left out if it is not next to the repository.
TARGETS = {"demo": Path("recipes/demo.yaml"), "stories260k": Path("recipes/stories260k.yaml")}
# The keys that every arm starts from, independent of later changes to the recipes: phases as in the paper, and no
# teacher logits.
BASE_KEYS: dict[str, dict[str, Any]] = {
    "demo": {
        **{"pretrain.train_tokens": 1_400_000, "continue.train_tokens": 1_500_000, "align.train_tokens": 1_000_000},
        # Two layers of one head of 64, with an MLP of 192.
        **{"synthesize.prompts": 2048, "draft.params_millions": 0.64, "draft.heads": 1},
    },
    "stories260k": {"pretrain.train_tokens": 500_000, "align.train_tokens": 2_000_000, "synthesize.prompts": 3200},
}
PLAIN_ALIGNMENT = {"align.objective": "cross_entropy", "align.teacher_logits": "online", "synthesize.top_logprobs": 0}
GAMMAS = (3, 5)
TEMPERATURES = (0.0, 0.6, 1.0)
REFERENCES = PAPER, SAME_INIT = "paper", "ce"
HALF = "{forward_kl: 0.5, total_variation: 0.5}"
WITH_CROSS_ENTROPY = "{cross_entropy: 0.5, forward_kl: 0.25, total_variation: 0.25}"
SERVED, PAPERS = "{0.0: 1, 1.0: 3}", "{0.0: 1, 0.6: 1, 0.8: 1, 1.0: 1}"
STORED = {"synthesize.top_logprobs": 16, "align.teacher_logits": "offline"}
MORE_STORED, MOST_STORED = (STORED | {"synthesize.top_logprobs": kept} for kept in (64, 256))
EARLIER = ("pretrain", "continue")
# More layers with about the same parameters: 628 416 instead of 631 104, with two heads of 32 instead of one of 64; 80
# 304 instead of 81 264.
DEEP = {
    "demo": {"draft.hidden_size": 64, "draft.layers": 3, "draft.heads": 2, "draft.intermediate_size": 116},
    "stories260k": {"draft.layers": 4, "draft.intermediate_size": 48},
}
# Prompts as long as those of the evaluation; stories260k has them already.
SERVED_PROMPTS = {"demo": {"synthesize.max_prompt_tokens": 64, "align.sequence_tokens": 192}}
# A smaller model with the target's vocabulary, trained on the target's distribution: 1.9M parameters instead of 5.8M,
# and 124 000 instead of 260 000 (two of five layers).
SIBLINGS: dict[str, dict[str, Any]] = {
    "demo": {"draft.params_millions": 1.9},
    "stories260k": {
        **{"draft.init": "prune:../shared/targets/stories260k", "draft.layers": 2},
        **dict.fromkeys(("draft.hidden_size", "draft.intermediate_size"), "null"),
    },
}
# Parameters of the target per parameter of the draft.
PAIRS = {"Llama-3.1-8B / 150M": 8030 / 150, "Phi-3-mini / 50M": 3821 / 50, "Phi-3-mini / 120M": 3821 / 120}

# The keys that an arm changes. Keys that are not recipe keys:
#   earlier.KEY: KEY of every phase before alignment that the recipe has
#   tokens: align: train all tokens of the recipe in alignment
#   prompts, longer: factors for the number of prompts and of training tokens
#   own_text: align on the texts that the prompts were taken from
#   mixed: one phase in place of PT and CP
#   prune: cut the first weights from the target, which is possible because these targets are small
#   deep, served: the layers of DEEP, the prompts of SERVED_PROMPTS
#   PHASE.teacher: sibling: the sibling of the target
# `paper` starts from random weights, all other arms from the target's embedding, which costs nothing. `ce` is the
# paper's recipe with that init.
CROSS_ENTROPY = {"earlier.objective": "cross_entropy", "align.objective": "cross_entropy"}
SERVED_AS_PAPER = {"synthesize.temperatures": PAPERS}
AS_PAPER = {**CROSS_ENTROPY, **SERVED_AS_PAPER}
DEEP_SERVED = {"deep": True, "served": True, **SERVED_AS_PAPER, **MORE_STORED}
ARMS: dict[str, dict[str, Any]] = {
    PAPER: {"draft.init": "random", **AS_PAPER},
    SAME_INIT: AS_PAPER,
    "kl": {"align.objective": "forward_kl", **SERVED_AS_PAPER},
    "tv": {"align.objective": "total_variation", **SERVED_AS_PAPER},
    "half": {"align.objective": HALF, **SERVED_AS_PAPER},
    "js": {"align.objective": "jensen_shannon", **SERVED_AS_PAPER},
    "reverse_kl": {"align.objective": "reverse_kl", **SERVED_AS_PAPER},
    "half_rows": {"align.objective": HALF, "align.temperature": "per_sequence", **SERVED_AS_PAPER},
    "half_on_policy": {"align.objective": HALF, "align.on_policy": 0.3, **SERVED_AS_PAPER},
    "sampled_tv": {"align.objective": "sampled_total_variation", **SERVED_AS_PAPER},
    "ce_sampled_tv": {"align.objective": "{cross_entropy: 0.5, sampled_total_variation: 1}", **SERVED_AS_PAPER},
    "block": {"align.objective": "block_length", **SERVED_AS_PAPER},
    "ce_block": {"align.objective": "{cross_entropy: 0.2, block_length: 1}", **SERVED_AS_PAPER},
    "stored_kl": {"align.objective": "forward_kl", **STORED},
    "stored_half": {"align.objective": HALF, **SERVED_AS_PAPER, **STORED},
    "stored_with_words": {"align.objective": WITH_CROSS_ENTROPY, **SERVED_AS_PAPER, **STORED},
    "half_of_some": {"align.objective": HALF, "align.teacher_fraction": 0.25, **SERVED_AS_PAPER},
    "half_of_sibling": {"align.objective": HALF, "align.teacher": "sibling", **SERVED_AS_PAPER},
    "kl_of_some_stored_half": {
        **{
            "earlier.objective": "forward_kl",
            "earlier.teacher_fraction": 0.1,
            "align.objective": HALF,
            **SERVED_AS_PAPER,
        },
        **STORED,
    },
    "kl_of_sibling_stored_half": {
        **{"earlier.objective": "forward_kl", "earlier.teacher": "sibling", "align.objective": HALF, **SERVED_AS_PAPER},
        **STORED,
    },
    "kl_kl": {"earlier.objective": "forward_kl", "align.objective": "forward_kl"},
    "kl_half": {"earlier.objective": "forward_kl", "align.objective": HALF},
    "kl_tv": {"earlier.objective": "forward_kl", "align.objective": "total_variation"},
    "half_half": {"earlier.objective": HALF, "align.objective": HALF},
    "mixed_kl_half": {"mixed": True, "earlier.objective": "forward_kl", "align.objective": HALF},
    "kl_stored_kl": {"earlier.objective": "forward_kl", "align.objective": "forward_kl", **STORED},
    "kl_more": {"align.objective": "forward_kl", "prompts": 4},
    "stored_kl_more": {"align.objective": "forward_kl", "prompts": 4, **STORED},
    "kl_at_1": {"align.objective": "forward_kl", "synthesize.temperatures": "{1.0: 1}"},
    "ce_own_text": {**AS_PAPER, "own_text": True},
    "ce_more": {**AS_PAPER, "prompts": 4},
    "ce_greedy": {**CROSS_ENTROPY, "synthesize.temperatures": "{0.0: 1}"},
    "ce_at_1": {**CROSS_ENTROPY, "synthesize.temperatures": "{1.0: 1}"},
    "no_pt": {"align.objective": "cross_entropy", "tokens": "align"},
    "no_pt_kl": {"align.objective": "forward_kl", "tokens": "align"},
    "no_pt_stored_kl": {"align.objective": "forward_kl", "tokens": "align", **STORED},
    "no_pt_more_stored_kl": {"align.objective": "forward_kl", "tokens": "align", "prompts": 8, **STORED},
    "no_pt_more_half": {"align.objective": HALF, "tokens": "align", "prompts": 8, "synthesize.top_logprobs": 16},
    "no_pt_more_stored_half": {"align.objective": HALF, "tokens": "align", "prompts": 8, **STORED},
    "no_pt_most_stored_half": {
        **{"align.objective": HALF, "tokens": "align", "prompts": 16, "served": True, **SERVED_AS_PAPER},
        **MOST_STORED,
    },
    "deep_paper": {"draft.init": "random", "deep": True, **AS_PAPER},
    "deep_stored_half": {"align.objective": HALF, **DEEP_SERVED},
    "deep_ce": {"deep": True, **AS_PAPER},
    "deep_stored_with_words": {"align.objective": WITH_CROSS_ENTROPY, **DEEP_SERVED},
    "deep_longer_stored_half": {"align.objective": HALF, **DEEP_SERVED, "prompts": 0.5, "longer": 1.5},
    "deep_random_longer_stored_half": {
        **{"draft.init": "random", "align.objective": HALF, "prompts": 0.5, "longer": 1.5},
        **DEEP_SERVED,
    },
    "deep_no_pt_stored_half": {"align.objective": HALF, "tokens": "align", **DEEP_SERVED},
    "deep_no_pt_most_stored_half": {
        **{"align.objective": HALF, "tokens": "align", "prompts": 16, "deep": True, "served": True, **SERVED_AS_PAPER},
        **MOST_STORED,
    },
    "prune_ce": {**AS_PAPER, "prune": True},
    "prune_kl_half": {"earlier.objective": "forward_kl", "align.objective": HALF, "prune": True},
    "prune_stored_half": {"align.objective": HALF, "prune": True, **STORED},
    "prune_no_pt_stored_half": {"align.objective": HALF, "tokens": "align", "prune": True, **STORED},
    "prune_no_pt_stored_half_served": {
        **{"align.objective": HALF, "tokens": "align", "prune": True, "synthesize.temperatures": SERVED},
        **STORED,
    },
    "prune_no_pt_stored_half_as_paper": {
        **{"align.objective": HALF, "tokens": "align", "prune": True, **SERVED_AS_PAPER},
        **STORED,
    },
    "prune_deep_no_pt_stored_half_as_paper": {
        **{"align.objective": HALF, "tokens": "align", "prune": True, "deep": True, **SERVED_AS_PAPER},
        **STORED,
    },
    "prune_deep_no_pt_more_stored_half_as_paper": {
        **{"align.objective": HALF, "tokens": "align", "prune": True, "deep": True, **SERVED_AS_PAPER},
        **{"prompts": 8, **STORED},
    },
    "prune_deep_no_pt_longer_stored_half": {
        **{"align.objective": HALF, "tokens": "align", "prune": True, "deep": True, **SERVED_AS_PAPER},
        **{"prompts": 0.5, "longer": 2.4, **STORED},
    },
    "prune_deep_no_pt_longer_stored_with_words": {
        **{"align.objective": WITH_CROSS_ENTROPY, "tokens": "align", "prune": True, "deep": True, **SERVED_AS_PAPER},
        **{"prompts": 0.5, "longer": 2.4, **STORED},
    },
    "prune_deep_no_pt_longest_stored_with_words": {
        **{"align.objective": WITH_CROSS_ENTROPY, "tokens": "align", "prune": True, "deep": True, **SERVED_AS_PAPER},
        **{"prompts": 0.5, "longer": 3.4, **STORED},
    },
    "prune_deep_no_pt_stored_with_words": {
        **{"align.objective": WITH_CROSS_ENTROPY, "tokens": "align", "prune": True, "deep": True, **SERVED_AS_PAPER},
        **STORED,
    },
    "prune_no_pt_stored_with_words": {
        **{"align.objective": WITH_CROSS_ENTROPY, "tokens": "align", "prune": True, **SERVED_AS_PAPER},
        **STORED,
    },
    "prune_no_pt_more_stored_with_words": {
        **{"align.objective": WITH_CROSS_ENTROPY, "tokens": "align", "prune": True, **SERVED_AS_PAPER},
        **{"prompts": 8, **STORED},
    },
}


class Run(NamedTuple):
    """An arm with one seed and target: the evaluation of its last draft, and its cost in tokens."""

    target: str
    arm: str
    seed: int
    results: tuple[TaskResult, ...]
    trained: int
    read_by_target: int
    written_by_target: int
    seconds: float

    def cost(self, ratio: float) -> float:
        """The cost in trained tokens; forward passes of the target are converted to them."""
        return self.trained + (self.read_by_target + self.written_by_target) * 2 * ratio / 6


def possible_arms(target: str, arms: Iterable[str]) -> list[str]:
    """The arms that are possible with this target: a draft with more heads cannot be cut from it."""
    other_heads = "draft.heads" in DEEP[target]
    return [arm for arm in arms if not (other_heads and {"deep", "prune"} <= ARMS[arm].keys())]


def phases(recipe: Recipe) -> dict[str, TrainPart]:
    """The phases of training that a recipe has."""
    parts = {"pretrain": recipe.pretrain, "continue": recipe.continue_, "align": recipe.align}
    return {name: part for name, part in parts.items() if part is not None}


def mixed(parts: dict[str, TrainPart]) -> dict[str, float]:
    """The tokens of each source in PT and CP together."""
    weights: dict[str, float] = {}
    for part in (parts["pretrain"], parts["continue"]):
        for name, weight in part.mix.items():
            weights[name] = weights.get(name, 0.0) + part.train_tokens * weight / sum(part.mix.values())
    return {name: round(weight) for name, weight in weights.items()}


def pruned(recipe: Recipe) -> dict[str, object]:
    """Keys that cut the recipe's own shape from the target."""
    shape = init.shape_of(recipe.target, recipe.draft)
    sizes = ("hidden_size", "layers", "heads", "kv_heads", "intermediate_size")
    return {"draft.init": f"prune:{recipe.target.path}"} | {f"draft.{size}": getattr(shape, size) for size in sizes}


def overrides(target: str, arm: str, seed: int, fraction: float, sibling: str = "demo") -> list[str]:
    """The overrides of a target's recipe for an arm; `sibling` is the path of the target's sibling."""
    base_keys = PLAIN_ALIGNMENT | BASE_KEYS[target]
    recipe = resolve(TARGETS[target], [f"{key}={value}" for key, value in base_keys.items()]).recipe
    assert recipe.synthesize is not None, "the recipes of all targets synthesise"
    parts, change = phases(recipe), dict(ARMS[arm])
    longer = change.pop("longer", 1)
    tokens = {name: round(part.train_tokens * fraction * longer) for name, part in parts.items()}
    keys: dict[str, object] = {
        **PLAIN_ALIGNMENT,
        **{"seed": seed, "name": "alignment", "evaluate.verify_prompts": 0, "evaluate.validation_prompts": 0},
        **{"evaluate.temperatures": list(TEMPERATURES), "evaluate.gammas": list(GAMMAS)},
        "synthesize.prompts": round(recipe.synthesize.prompts * fraction * change.pop("prompts", 1)),
        **{key: value for key, value in base_keys.items() if key.startswith("draft.")},
    }
    if change.pop("prune", False):
        keys |= pruned(recipe)
    if change.pop("deep", False):
        keys |= DEEP[target]
    if change.pop("served", False):
        keys |= SERVED_PROMPTS.get(target, {})
    if change.pop("mixed", False) and "continue" in parts:
        keys |= {"pretrain.mix": mixed(parts), "continue": "null"}
        tokens["pretrain"] += tokens.pop("continue")
    if change.pop("own_text", False):
        keys["align.mix"] = dict(recipe.synthesize.mix)
    if change.pop("tokens", None) == "align":
        tokens = {"align": sum(tokens.values())}
        keys |= dict.fromkeys(set(EARLIER) & set(parts), "null")
    keys |= {f"{name}.train_tokens": count for name, count in tokens.items()}
    keys |= {f"{name}.warmup_steps": round(parts[name].warmup_steps * fraction) for name in tokens}
    for key, value in change.items():
        value = sibling if value == "sibling" else value
        part, _, name = key.partition(".")
        changed_phases = [phase for phase in EARLIER if phase in tokens] if part == "earlier" else [part]
        keys |= {f"{phase}.{name}": value for phase in changed_phases}
    return [f"{key}={value}" for key, value in sorted(keys.items())]


def sibling_of(target: str, fraction: float, threads: int, root: Path) -> Path:
    """The target's sibling, trained on corpus text for as many tokens as an arm, unless it exists."""
    recipe = resolve(TARGETS[target], [f"{key}={value}" for key, value in BASE_KEYS[target].items()]).recipe
    parts, folder = phases(recipe), root / target / "sibling"
    tokens = round(sum(part.train_tokens for part in parts.values()) * fraction)
    keys = SIBLINGS[target] | {"name": "sibling", "pretrain.objective": "forward_kl", "pretrain.train_tokens": tokens}
    keys |= {"pretrain.mix": mixed(parts)} if "continue" in parts else {}
    make(target, [f"{key}={value}" for key, value in keys.items()], threads, folder, "--until", "pretrain")
    return folder / "pretrain" / "model"


def make(target: str, keys: list[str], threads: int, folder: Path, *more: str) -> None:
    """Run a target's recipe with these keys in a folder."""
    command = [str(Path(sys.executable).with_name("fastdraft")), "run", str(TARGETS[target]), *keys]
    command += [f"threads={threads}", "--folder", str(folder), "--json", *more]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def size(model: str) -> int:
    """The number of parameters of a model."""
    return parameters(open_config(TargetPart(path=model)))


def read_tokens(recipe: Recipe, cards: dict[str, DraftCard]) -> int:
    """Tokens that the target reads as online teacher; a sibling's tokens count in proportion to its parameters."""
    online = {name: part for name, part in phases(recipe).items() if part.needs_teacher}
    sizes = {name: size(part.teacher or recipe.target.path) / size(recipe.target.path) for name, part in online.items()}
    return round(sum(cards[name].trained_tokens * part.teacher_fraction * sizes[name] for name, part in online.items()))


def keys_of(recipe: Recipe) -> dict[str, str]:
    """The key of the card of each stage."""
    keys: dict[str, str] = {}
    for stage in stages_of(recipe):
        keys[stage.name] = key_of(stage, recipe, keys)
    return keys


def link_shared(finished: list[Path], folder: Path, keys: dict[str, str]) -> None:
    """Hard-link the stages of other arms with the same keys, and their completions of held-out prompts."""
    for stage, key in keys.items():
        for other in finished:
            if not (folder / stage).exists() and card_key(other / stage) == key:
                shutil.copytree(other / stage, folder / stage, copy_function=os.link)
    own = folder / "evaluate"
    for other in finished:
        same = all(card_key(other / stage) == keys[stage] for stage in ("target", "tokenize"))
        if same and (other / "evaluate" / "completions").is_dir() and not own.exists():
            shutil.copytree(other / "evaluate" / "completions", own / "completions", copy_function=os.link)
            (own / "key").write_text(keys["evaluate"])  # marks the stage as begun with this recipe, so that it resumes


def run_arm(target: str, arm: str, seed: int, fraction: float, threads: int, root: Path) -> Run:
    """The results of an arm, which is run unless its folder has them."""
    sibling = sibling_of(target, fraction, threads, root) if "sibling" in ARMS[arm].values() else Path("demo")
    keys = overrides(target, arm, seed, fraction, str(sibling))
    folder = root / target / f"seed-{seed}" / arm
    recipe = resolve(TARGETS[target], keys).recipe
    folder.mkdir(parents=True, exist_ok=True)
    link_shared([other for other in sorted(folder.parent.iterdir()) if other != folder], folder, keys_of(recipe))
    make(target, keys, threads, folder)
    cards = {name: read_card(folder / name, DraftCard) for name in phases(recipe)}
    completions = read_card(folder / "synthesize", CompletionsCard)
    results = read_card(folder / "evaluate", EvaluationCard).results
    return Run(
        target=target,
        arm=arm,
        seed=seed,
        results=tuple(result for result in results if result.stage == "align"),
        trained=sum(card.trained_tokens for card in cards.values()),
        read_by_target=read_tokens(recipe, cards),
        written_by_target=completions.tokens,
        seconds=sum(card.cost.seconds for card in cards.values()),
    )


def interval(values: list[float], form: str = "{:.3f}") -> str:
    """The mean over the seeds with its 95 % interval; for one seed, only the value."""
    middle = form.format(mean(values))
    if len(values) < 2:
        return middle
    half = t_quantile(len(values) - 1) * stdev(values) / sqrt(len(values))
    return f"{middle} [{form.format(mean(values) - half)}, {form.format(mean(values) + half)}]"


def tau(run: Run, gamma: int, task: str, temperature: float) -> float:
    """Block efficiency of the last draft of a run."""
    result = next(r for r in run.results if (r.task, r.temperature) == (task, temperature))
    return next(at.block_efficiency.value for at in result.gammas if at.gamma == gamma)


def gain(run: Run, reference: Run, gamma: int, tasks: list[str], temperature: float) -> float:
    """The ratio of tokens gained to those of the reference, in the mean over tasks, minus 1."""
    ratios = [(tau(run, gamma, t, temperature) - 1) / (tau(reference, gamma, t, temperature) - 1) for t in tasks]
    return mean(ratios) - 1


def table(title: str, header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]]
    return "\n".join([f"\n{title}\n", *lines])


def sampling(temperature: float) -> str:
    """The name of a temperature in a table header."""
    return f"T = {temperature:g}" if temperature else "greedy"


def efficiencies(runs: list[Run], gamma: int) -> str:
    """A table of the block efficiency of each arm for each task and temperature."""
    tasks = sorted({result.task for result in runs[0].results})
    places = [(task, temperature) for task in tasks for temperature in TEMPERATURES]
    rows = [
        [arm, *(interval([tau(run, gamma, *place) for run in group]) for place in places)]
        for arm, group in by_arm(runs).items()
    ]
    return table(f"block efficiency, gamma {gamma}", ["arm", *(f"{t}, {sampling(at)}" for t, at in places)], rows)


def gained(runs: list[Run], gamma: int, reference: str) -> str:
    """A table of the tokens gained and the cost of each arm relative to a reference."""
    tasks = sorted({result.task for result in runs[0].results})
    references = {run.seed: run for run in runs if run.arm == reference}
    rows = []
    for arm, group in by_arm(runs).items():
        pairs = [(run, references[run.seed]) for run in group if run.seed in references]
        columns = [
            [gain(run, other, gamma, of, at) for run, other in pairs]
            for at in TEMPERATURES
            for of in (tasks, *([[task] for task in tasks] if len(tasks) > 1 else []))
        ]
        costs = [mean(run.cost(ratio) / other.cost(ratio) for run, other in pairs) for ratio in PAIRS.values()]
        rows.append([arm, *(interval(cells, "{:+.0%}") for cells in columns), *(f"{cost:.2f}" for cost in costs)])
    kinds = ["", *(f", {task}" for task in tasks if len(tasks) > 1)]
    names = [f"{sampling(at)}{kind}" for at in TEMPERATURES for kind in kinds]
    title = f"tokens gained relative to `{reference}`, gamma {gamma}, and total cost relative to it at the sizes of"
    return table(f"{title} {', '.join(PAIRS)}", ["arm", *names, *(f"cost, {pair}" for pair in PAIRS)], rows)


def by_arm(runs: list[Run]) -> dict[str, list[Run]]:
    """The runs of each arm, in order."""
    return {arm: [run for run in runs if run.arm == arm] for arm in dict.fromkeys(run.arm for run in runs)}


def costs_table(runs: list[Run]) -> str:
    """A table of the tokens and seconds of each arm."""
    rows = [
        [
            arm,
            *(f"{mean(numbers):,.0f}" for numbers in zip(*[run[4:8] for run in group], strict=True)),
        ]
        for arm, group in by_arm(runs).items()
    ]
    header = ["arm", "trained tokens", "read by the target", "written by the target", "seconds of training"]
    return table("cost, mean over seeds", header, rows)


def report(runs: list[Run], fraction: float) -> str:
    """All tables of all targets."""
    parts = []
    for target in dict.fromkeys(run.target for run in runs):
        group = [run for run in runs if run.target == target]
        seeds = sorted({run.seed for run in group})
        summary = f"At {fraction:g} of its tokens, seeds {', '.join(map(str, seeds))}; mean and 95 % interval."
        parts.append(f"\n# {target}\n\n{summary}")
        references = [reference for reference in REFERENCES if reference in by_arm(group)]
        for gamma in GAMMAS:
            parts += [*(gained(group, gamma, reference) for reference in references), efficiencies(group, gamma)]
        parts.append(costs_table(group))
    return "\n".join(parts)


def available_targets(names: list[str]) -> list[str]:
    """The targets that are on this machine."""
    available = []
    for name in names:
        path = resolve(TARGETS[name]).recipe.target.path
        if path == "demo" or Path(path).is_dir():
            available.append(name)
        else:
            print(f"left out: {name}, which is not at {path}", file=sys.stderr)
    return available


def main() -> None:
    """Make the missing runs and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fraction", type=float, default=1.0, help="fraction of the recipe's tokens and prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 11, 13])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    arms = list(dict.fromkeys([*REFERENCES, *options.arms]))
    runs: list[Run] = []
    for target in available_targets(options.targets):
        for seed in options.seeds:
            for arm in possible_arms(target, arms):
                runs.append(run_arm(target, arm, seed, options.fraction, options.threads, options.folder))
                print(f"{target}, seed {seed}, {arm}: {runs[-1].seconds:.0f} s of training", file=sys.stderr)
                (options.folder / "report.md").write_text(report(runs, options.fraction) + "\n", encoding="utf-8")
    print(report(runs, options.fraction))


if __name__ == "__main__":
    main()
