"""Runs of the demo that differ in a few recipe keys, and tables of their results.

Used by inits.py, ablations.py and optimizers.py; not a script. The first run of a seed makes the token shards, the
target's completions for training and its completions of held-out prompts. The other runs hard-link them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fastdraft.config import Recipe
from fastdraft.config.resolve import resolve
from fastdraft.pipeline.stages import key_of, stages_of
from fastdraft.system.cards import card_key

RECIPE = Path("recipes/demo.yaml")
PHASES = ("pretrain", "continue", "align")
SHARED = ("target", "tokenize", "validation", "pretrain", "continue", "synthesize")
WITH_COMPLETIONS = ("evaluate",)


def tokens_of(phase: str, fraction: float) -> int:
    """A fraction of the training tokens of a phase of the demo."""
    recipe = resolve(RECIPE).recipe
    part = {"pretrain": recipe.pretrain, "continue": recipe.continue_, "align": recipe.align}[phase]
    assert part is not None, "the demo has all phases"
    return round(part.train_tokens * fraction)


def demo_at(fraction: float, seed: int, name: str) -> dict[str, Any]:
    """The recipe keys of the demo with a fraction of its tokens and prompts, and without verification."""
    part = resolve(RECIPE).recipe.synthesize
    assert part is not None, "the demo synthesises"
    prompts = round(part.prompts * fraction)
    keys: dict[str, Any] = {"seed": seed, "name": name, "evaluate.verify_prompts": 0, "synthesize.prompts": prompts}
    return keys | {f"{phase}.train_tokens": tokens_of(phase, fraction) for phase in PHASES}


def run_once(folder: Path, first: Path, keys: Mapping[str, Any], threads: int, until: str | None = None) -> None:
    """Run the demo with these keys unless it is finished; it links what it shares with the run `first`."""
    overrides = [f"{key}={value}" for key, value in keys.items()]
    if folder != first:
        link_shared(first, folder, keys_of(resolve(RECIPE, overrides).recipe))
    command = [Path(sys.executable).with_name("fastdraft"), "run", RECIPE, *overrides, f"threads={threads}"]
    command += ["--folder", folder, "--json", *(["--until", until] if until else [])]
    subprocess.run([str(argument) for argument in command], check=True, stdout=subprocess.DEVNULL)


def keys_of(recipe: Recipe) -> dict[str, str]:
    """The key of the card of each stage."""
    keys: dict[str, str] = {}
    for stage in stages_of(recipe):
        keys[stage.name] = key_of(stage, recipe, keys)
    return keys


def link_shared(first: Path, folder: Path, keys: dict[str, str]) -> None:
    """Hard-link the stages of `first` with the same keys, and its completions of held-out prompts."""
    for stage in SHARED:
        if stage in keys and card_key(first / stage) == keys[stage] and not (folder / stage).exists():
            shutil.copytree(first / stage, folder / stage, copy_function=os.link)
    for stage in WITH_COMPLETIONS:
        completions, own = first / stage / "completions", folder / stage
        if completions.is_dir() and not own.exists():
            shutil.copytree(completions, own / "completions", copy_function=os.link)
            if stage in keys:
                (own / "key").write_text(keys[stage])  # marks the stage as begun with this recipe, so that it resumes


def spread(values: list[float], digits: int = 3) -> str:
    """Mean ± standard deviation."""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def table(title: str, header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]]
    return "\n".join([f"\n{title}\n", *lines])
