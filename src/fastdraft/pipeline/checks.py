"""Check the inputs of stages before one of them is begun, so that a mistake in a recipe moves and makes nothing.

What can only be found out by doing a stage's work (too few documents, a server that does not answer) is not checked.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

from fastdraft.config import Recipe, SynthesizePart
from fastdraft.data.document import Rejected
from fastdraft.data.executors import EXECUTORS
from fastdraft.data.record_files import local_records
from fastdraft.data.sources import documents, with_absolute_path
from fastdraft.data.split import allowed_keys
from fastdraft.data.web_filters import QualityFilters
from fastdraft.evaluation.tasks import tasks_of
from fastdraft.models import pretrained
from fastdraft.models.run_context import RunContext
from fastdraft.models.target import TargetCard
from fastdraft.pipeline.synthesize import check_lengths
from fastdraft.pipeline.target import target_fields
from fastdraft.synthesize import magpie
from fastdraft.synthesize.prompt_sets import instruction_prompts
from fastdraft.system import ray_cluster
from fastdraft.system.cards import Cost
from fastdraft.system.optional_packages import need

# What each engine of synthesis needs besides the base installation.
ENGINE_PACKAGES: dict[str, Callable[[], object]] = {
    "openvino": lambda: need("openvino_genai", "openvino"),
    "vllm": lambda: need("vllm", "vllm"),
}


def check_inputs(run_context: RunContext, stages: Collection[str]) -> None:
    """Raise the error that one of these stages would raise for what the recipe names.

    Models open and fit together, lengths and sizes are possible, sources and prompt sets exist and give a first record,
    and optional packages are installed.
    """
    recipe = run_context.recipe
    card = TargetCard(key="", cost=Cost(seconds=0.0), **target_fields(run_context))
    if "tokenize" in stages:
        _check_corpus(recipe)
    if "synthesize" in stages and recipe.synthesize is not None:
        _check_synthesis(run_context, recipe.synthesize, card)


def _check_corpus(recipe: Recipe) -> None:
    if recipe.tokenize.executor == "ray":
        ray_cluster.load()
    EXECUTORS[recipe.tokenize.executor]([], recipe.tokenize, Path("log"))
    for part in recipe.corpus.values():
        QualityFilters(part.quality)
        if part.held_out_list is not None:
            allowed_keys(part.held_out_list)
        next(documents(with_absolute_path(part), Rejected()), None)


def _check_synthesis(run_context: RunContext, part: SynthesizePart, card: TargetCard) -> None:
    check_lengths(run_context.recipe, part, card)
    ENGINE_PACKAGES.get(part.engine, lambda: None)()
    if part.ray_workers:
        ray_cluster.load()
    tokenizer = pretrained.open_tokenizer(run_context.recipe.target)
    if part.recorded is not None:
        next(local_records(part.recorded.path, (part.recorded.start_marker, part.recorded.end_marker)), None)
    longest = min(part.max_instruction_tokens, card.context_tokens - part.max_new_tokens)
    for name, prompt_set in part.prompt_sets.items():
        if part.mix.get(name):
            next(instruction_prompts(prompt_set, tokenizer, 1, longest, Counter()))
    if "magpie" in part.mix.keys() - part.prompt_sets.keys():
        magpie.user_turn(tokenizer)
    if part.leak_tasks:
        tasks_of(part.leak_tasks, tokenizer, context_tokens=sys.maxsize, prompts=1)
