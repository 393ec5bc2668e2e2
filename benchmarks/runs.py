"""Runs of the demo that differ in a few keys: each is made once, what does not depend on them is linked; tables.

Not a script: what benchmarks/start.py, ablations.py and optimizers.py share. The first run of a seed makes the tokens,
what the target wrote for training, and its completions of held-out prompts; the others link them.
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
SHARED = ("target", "tokenize", "pretrain", "continue", "synthesize")
WRITTEN = ("evaluate", "measure")


def tokens_of(phase: str, fraction: float) -> int:
    """The tokens of a phase of the demo at a share of them."""
    recipe = resolve(RECIPE).recipe
    part = {"pretrain": recipe.pretrain, "continue": recipe.continue_, "align": recipe.align}[phase]
    return round(part.train_tokens * fraction)


def demo_at(fraction: float, seed: int, name: str) -> dict[str, Any]:
    """The keys of the demo at a share of its tokens and prompts, without its verification."""
    prompts = round(resolve(RECIPE).recipe.synthesize.prompts * fraction)
    keys: dict[str, Any] = {"seed": seed, "name": name, "evaluate.verify_prompts": 0, "synthesize.prompts": prompts}
    return keys | {f"{phase}.train_tokens": tokens_of(phase, fraction) for phase in PHASES}


def made(folder: Path, first: Path, keys: Mapping[str, Any], threads: int, until: str | None = None) -> None:
    """One run, unless its folder says that it is done; `first` is the run whose parts it may link."""
    given = [f"{key}={value}" for key, value in keys.items()]
    if folder != first:
        share_with(first, folder, keys_of(resolve(RECIPE, given).recipe))
    command = [Path(sys.executable).with_name("fastdraft"), "run", RECIPE, *given, f"threads={threads}"]
    command += ["--folder", folder, "--json", *(["--until", until] if until else [])]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


def keys_of(recipe: Recipe) -> dict[str, str]:
    """The key of each stage's card."""
    keys: dict[str, str] = {}
    for stage in stages_of(recipe):
        keys[stage.name] = key_of(stage, recipe, keys)
    return keys


def share_with(first: Path, folder: Path, keys: dict[str, str]) -> None:
    """Link what another run has made and this one would make again."""
    for stage in SHARED:
        if stage in keys and card_key(first / stage) == keys[stage] and not (folder / stage).exists():
            shutil.copytree(first / stage, folder / stage, copy_function=os.link)
    for place in WRITTEN:
        written, mine = first / place / "completions", folder / place
        if written.is_dir() and not mine.exists():
            shutil.copytree(written, mine / "completions", copy_function=os.link)
            if place in keys:
                (mine / "key").write_text(keys[place])  # begun, by this very recipe: the stage goes on from there


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def table(title: str, header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]]
    return "\n".join([f"\n{title}\n", *lines])
