"""`bench`: a target and its draft in an engine's form, timed there, and the record of it kept for the model card."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from fastdraft import __version__
from fastdraft.bench.advice import advise, fastest
from fastdraft.bench.engine import Engine, Files
from fastdraft.bench.engines import device_named, engine_named, weights_named
from fastdraft.bench.equality import check
from fastdraft.bench.measure import Bench, Plan, Readers, measured, texts_of
from fastdraft.config import TargetPart
from fastdraft.data.shards import Tokens
from fastdraft.evaluate.tasks import tasks_of
from fastdraft.export.export_draft import accepted
from fastdraft.export.formats import FORMATS
from fastdraft.models import draft_origin, target
from fastdraft.models.draft_origin import Origin
from fastdraft.models.run_context import RunContext
from fastdraft.results.bench import BenchResult, Cell, Equality, Model, Steps
from fastdraft.results.export import ExportCard
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.synthesize.prompts import document_prompts
from fastdraft.system.cards import FILE, read_card
from fastdraft.system.errors import BenchError
from fastdraft.system.files import atomic_write, cache_folder, write_json
from fastdraft.system.progress import log_line

# The files that say that a folder is in an engine's own form already.
FINISHED = {"openvino": "openvino_model.xml", "gguf": "*.gguf"}
STAND_IN = "fastdraft_stand_in"


@dataclass(frozen=True)
class BenchOptions:
    """What is asked for; what is None is the engine's usual choice, no tasks those of the draft's run."""

    target: str
    draft: str
    engine: str = "openvino"
    device: str | None = None
    weights: str | None = None
    draft_weights: str | None = None
    tasks: tuple[str, ...] = ()
    sampling_settings: tuple[SamplingParams, ...] = (SamplingParams(0.0), SamplingParams(0.6))
    gammas: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8)
    prompts: int = 4
    tokens: int = 64
    repeats: int = 3
    seed: int = 7


def bench(options: BenchOptions) -> BenchResult:
    """A pair timed in an engine, and what to set there.

    BenchError, DeviceError, MissingExtra, VocabularyMismatch where it cannot be timed as asked, before anything is
    exported; UnequalOutput where greedy text with the draft is not the target's own.
    """
    part, origin = TargetPart(path=options.target), draft_origin.origin_named(options.draft)
    pair, weights = _pair(options, part, origin)
    steps, cells, equality = _timed(pair)
    engine, device = pair.engine, pair.files.device
    return BenchResult(
        engine=engine.name,
        device=device,
        hardware=engine.hardware(device),
        versions=_versions(engine),
        command=shlex.join(["fastdraft", *sys.argv[1:]]),
        target=_model(options.target, part, weights[0]),
        draft=_model(options.draft, TargetPart(path=str(origin.folder.resolve())), weights[1]),
        prompts={task: len(prompts) for task, prompts in pair.plan.tasks.items()},
        max_new_tokens=options.tokens,
        repeats=options.repeats,
        keeps_distribution=engine.keeps_distribution,
        steps=tuple(steps),
        equality=equality,
        cells=tuple(cells),
        advice=advise(engine, device, cells),
    )


def _pair(options: BenchOptions, part: TargetPart, origin: Origin) -> tuple[Bench, tuple[str, str]]:
    """The pair in the engine's form, and the precision of each; all that does not fit is refused before an export."""
    engine = engine_named(options.engine)
    device = device_named(engine, options.device)
    weights = weights_named(engine, options.weights, device)
    draft_weights = weights_named(engine, options.draft_weights or options.weights, device)
    accepted(part, origin.folder, (engine.rules,))
    card, context = draft_origin.target_card(Origin(origin.folder, None), part), context_of(origin.folder)
    tasks = _prompts(options, origin, part, min(card.context_tokens, context))
    longest = (
        max(len(prompt) for prompts in tasks.values() for prompt in prompts) + options.tokens + max(options.gammas) + 1
    )
    theirs, found = in_form(engine, target.folder_of(part), weights)
    ours, found_draft = in_form(engine, origin.folder, draft_weights)
    files = Files(theirs, ours, weights, draft_weights, device, longest, frozenset(card.eos_ids))
    plan = Plan(tasks, options.sampling_settings, options.gammas, options.tokens, options.repeats, options.seed)
    return Bench(engine, files, plan, Readers(*engine.readers(files))), (found, found_draft)


def save(options: BenchOptions, result: BenchResult) -> Path:
    """The record in the draft's run, or in its folder, where the model card looks for it."""
    origin = draft_origin.origin_named(options.draft)
    weights = "-".join(dict.fromkeys((result.target.weights, result.draft.weights)))
    file = draft_origin.benches(origin) / f"bench-{options.engine}-{result.device}-{weights}.json".replace(":", "-")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, result.model_dump(mode="json"))
    return file


def _timed(pair: Bench) -> tuple[list[Steps], list[Cell], Equality]:
    """Equality first; greedy in every setting, then the other distributions in the fastest one."""
    engine, exact = pair.engine, pair.engine.exact.name
    texts, parted = texts_of(pair)
    check(exact, parted)
    equality = Equality(setting=exact, texts=texts, equal=texts - len(parted), near_ties=tuple(parted))
    found = [measured(pair, setting, [SamplingParams(0.0)]) for setting in engine.settings]
    sampled = [sampling for sampling in pair.plan.sampling_settings if not sampling.greedy]
    if sampled:
        name, _ = fastest([cell for _, cells in found for cell in cells])
        found.append(measured(pair, next(setting for setting in engine.settings if setting.name == name), sampled))
    return [each for steps, _ in found for each in steps], [cell for _, cells in found for cell in cells], equality


def _prompts(
    options: BenchOptions, origin: Origin, part: TargetPart, context_tokens: int
) -> Mapping[str, Sequence[Tokens]]:
    """By task; BenchError where a prompt and its completion exceed the context of target or draft."""
    if options.tasks:
        tokenizer = target.open_tokenizer(part)
        read = tasks_of(options.tasks, tokenizer, context_tokens, options.prompts, options.tokens)
        for line in (line for task in read for line in task.losses()):
            log_line(line)
        return {task.name: task.prompts for task in read}
    found = dict(_held_out(options, origin))
    longest = max(len(prompt) for prompts in found.values() for prompt in prompts)
    if longest + options.tokens > context_tokens:
        raise BenchError(
            f"a prompt of {longest} tokens and {options.tokens} behind it exceed the context of {context_tokens} "
            f"tokens\n"
            f"  do: lower --tokens"
        )
    return found


def _held_out(options: BenchOptions, origin: Origin) -> Iterator[tuple[str, Sequence[Tokens]]]:
    """The first prompts that the draft's run is evaluated on."""
    recipe = origin.recipe()
    if recipe is None or origin.run is None or recipe.evaluate is None:
        raise BenchError(
            f"nothing beside {origin.folder} says which prompts to time it on\n"
            f"  do: add --tasks, like humaneval=FILE, or a .jsonl file of `prompt` or `messages`"
        )
    part, run_context = recipe.evaluate, RunContext(recipe, origin.run, torch.device("cpu"))
    for number, task in enumerate(part.tasks):
        generator, shards = np.random.default_rng([recipe.seed, number]), run_context.shards(task, "held_out")
        yield task, list(document_prompts(shards, options.prompts, part.max_prompt_tokens, 1, generator))


def in_form(engine: type[Engine], folder: Path, weights: str) -> tuple[Path, str]:
    """A model in the engine's form, and its precision: as it lies there, or exported once into the user's cache."""
    if engine.format is None:
        return folder, weights
    if any(folder.glob(FINISHED[engine.format])):
        known = (folder / FILE).is_file()
        return folder, read_card(folder, ExportCard).weights if known else "as given"
    form = FORMATS[engine.format]
    form.ready()
    digest = target.digest(TargetPart(path=str(folder.resolve())))
    place = cache_folder("exports", f"{digest}-{engine.format}-{weights}-{__version__}")
    if not place.is_dir():
        log_line(f"exporting {folder} to {engine.format}, {weights}: kept in {place}")
        with atomic_write(place) as part:
            form.write(folder, part, weights)
    return place, weights


def _model(name: str, part: TargetPart, weights: str) -> Model:
    config = target.open_config(part)
    return Model(
        path=name,
        digest=target.digest(part),
        parameters=target.parameters(config),
        weights=weights,
        stand_in=getattr(config, STAND_IN, None),
    )


def context_of(folder: Path) -> int:
    """Of the draft; so large that it does not matter where its configuration names none."""
    text = target.open_config(TargetPart(path=str(folder.resolve()))).get_text_config()
    return int(getattr(text, "max_position_embeddings", 1 << 31))


def _versions(engine: type[Engine]) -> dict[str, str]:
    """Of what took part; the engine under its own name too."""
    found = {"fastdraft": __version__}
    for package in engine.packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found | {engine.name: found.get(engine.packages[0], "")}
