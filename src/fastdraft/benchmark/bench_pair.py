"""`bench`: export a target and its draft to an engine's format, time them there, keep the record for the model card."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from fastdraft.benchmark.advice import advise, fastest
from fastdraft.benchmark.engine import Engine, PairFiles
from fastdraft.benchmark.engines import device_named, engine_named, weights_named
from fastdraft.benchmark.equality import check_near_ties
from fastdraft.benchmark.measure import Bench, BenchPlan, compare_greedy_texts, measure
from fastdraft.config import TargetPart
from fastdraft.data.shards import Tokens
from fastdraft.evaluation.tasks import tasks_of
from fastdraft.exporters.export_draft import accepted
from fastdraft.exporters.formats import FORMATS
from fastdraft.models import architecture, draft_origin, named_pairs, pretrained
from fastdraft.models.draft_origin import Origin
from fastdraft.models.gguf_tokenizer import VOCABULARY
from fastdraft.models.openvino import MODEL_FILE
from fastdraft.models.run_context import RunContext
from fastdraft.results.bench import BenchResult, Cell, Equality, Model, Steps
from fastdraft.results.export import ExportCard
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.synthesize.prompts import document_prompts
from fastdraft.system.cards import FILE, open_stage
from fastdraft.system.errors import BenchError
from fastdraft.system.files import atomic_write, cache_folder, write_json
from fastdraft.system.progress import log_line

# A folder with one of these files is in the engine's format already.
EXPORTED_FILES = {"openvino": MODEL_FILE, "gguf": "*.gguf"}
STAND_IN = "fastdraft_stand_in"


@dataclass(frozen=True)
class BenchOptions:
    """The options of `bench`. None means the engine's default; empty `tasks` the tasks of the draft's run."""

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
    """Time a pair in an engine, and advise on what to set there.

    BenchError, DeviceError, MissingExtra or VocabularyMismatch if the pair cannot be timed; nothing is exported then.
    UnequalOutput if greedy text with the draft differs from the target's.
    """
    part, origin = TargetPart(path=options.target), draft_origin.origin_of(options.draft)
    pair, target_weights, draft_weights = _open_pair(options, part, origin)
    steps, cells, equality = _time(pair)
    engine, device = pair.engine, pair.files.device
    return BenchResult(
        engine=engine.name,
        device=device,
        hardware=engine.hardware(device),
        versions=_versions(engine),
        command=shlex.join(["fastdraft", *sys.argv[1:]]),
        target=_model(options.target, part, target_weights),
        draft=_model(options.draft, origin.folder, draft_weights),
        prompts={task: len(prompts) for task, prompts in pair.plan.tasks.items()},
        max_new_tokens=options.tokens,
        repeats=options.repeats,
        keeps_distribution=engine.keeps_distribution,
        steps=tuple(steps),
        equality=equality,
        cells=tuple(cells),
        advice=advise(engine, device, cells),
    )


def save(options: BenchOptions, result: BenchResult) -> Path:
    """Write the record to the draft's run, or to its folder, where the model card finds it."""
    origin = draft_origin.origin_of(options.draft)
    weights = "-".join(dict.fromkeys((result.target.weights, result.draft.weights)))
    file = origin.bench_folder() / f"bench-{options.engine}-{result.device}-{weights}.json".replace(":", "-")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, result.model_dump(mode="json"))
    return file


def _open_pair(options: BenchOptions, part: TargetPart, origin: Origin) -> tuple[Bench, str, str]:
    """The pair in the engine's format, and the precisions of target and draft; checks everything before an export."""
    engine = engine_named(options.engine)
    device = device_named(engine, options.device)
    target_weights = weights_named(engine, options.weights, device)
    draft_weights = weights_named(engine, options.draft_weights or options.weights, device)
    accepted(part, origin.folder, (engine.rules,))
    card = draft_origin.target_card(Origin(origin.folder, None), part)
    tasks = _prompts_by_task(options, origin, part, min(card.context_tokens, context_tokens(origin.folder)))
    longest_prompt = max(len(prompt) for prompts in tasks.values() for prompt in prompts)
    target_folder, target_precision = engine_folder(engine, pretrained.folder_of(part), target_weights)
    draft_folder, draft_precision = engine_folder(engine, origin.folder, draft_weights)
    files = PairFiles(
        target=target_folder,
        draft=draft_folder,
        target_weights=target_weights,
        draft_weights=draft_weights,
        device=device,
        longest_tokens=longest_prompt + options.tokens + max(options.gammas) + 1,
        eos=frozenset(card.eos_ids),
    )
    plan = BenchPlan(
        tasks=tasks,
        sampling_settings=options.sampling_settings,
        gammas=options.gammas,
        max_new_tokens=options.tokens,
        repeats=options.repeats,
        seed=options.seed,
    )
    return Bench(engine, files, plan, engine.one_pass_models(files)), target_precision, draft_precision


def _time(pair: Bench) -> tuple[list[Steps], list[Cell], Equality]:
    """Verify equal output first; time greedy decoding in every setting, and sampling in the fastest one."""
    engine, exact = pair.engine, pair.engine.exact.name
    texts, differences = compare_greedy_texts(pair)
    check_near_ties(exact, differences)
    equality = Equality(setting=exact, texts=texts, equal=texts - len(differences), near_ties=tuple(differences))
    timed = [measure(pair, setting, [SamplingParams(0.0)]) for setting in engine.settings]
    sampled = [sampling for sampling in pair.plan.sampling_settings if not sampling.greedy]
    if sampled:
        name, _ = fastest([cell for _, cells in timed for cell in cells])
        timed.append(measure(pair, next(setting for setting in engine.settings if setting.name == name), sampled))
    return [each for steps, _ in timed for each in steps], [cell for _, cells in timed for cell in cells], equality


def _prompts_by_task(
    options: BenchOptions, origin: Origin, part: TargetPart, context_tokens: int
) -> Mapping[str, Sequence[Tokens]]:
    """The prompts of the options; by default those of a named pair, or held-out ones of the draft's run.

    BenchError if a prompt and its completion exceed the context of target or draft.
    """
    if names := options.tasks or named_pairs.prompt_files(origin.folder):
        tokenizer = pretrained.open_tokenizer(part)
        tasks = tasks_of(names, tokenizer, context_tokens, options.prompts, options.tokens)
        for line in (line for task in tasks for line in task.left_out_lines()):
            log_line(line)
        return {task.name: task.prompts for task in tasks}
    held_out = dict(_held_out(options, origin))
    longest = max(len(prompt) for prompts in held_out.values() for prompt in prompts)
    if longest + options.tokens > context_tokens:
        raise BenchError(
            f"a prompt of {longest} tokens and a completion of {options.tokens} exceed the context of {context_tokens} "
            f"tokens\n  do: lower --tokens"
        )
    return held_out


def _held_out(options: BenchOptions, origin: Origin) -> Iterator[tuple[str, Sequence[Tokens]]]:
    """The first prompts of each task on which the draft's run is evaluated."""
    recipe = origin.recipe()
    if recipe is None or origin.run is None or recipe.evaluate is None:
        raise BenchError(
            f"{origin.folder} does not belong to a run with evaluation prompts\n"
            f"  do: add --tasks, like humaneval=FILE, or a .jsonl file of `prompt` or `messages`"
        )
    part, run_context = recipe.evaluate, RunContext(recipe, origin.run, torch.device("cpu"))
    bos = run_context.target_card().added_bos_id
    for number, task in enumerate(part.tasks):
        rng, shards = np.random.default_rng([recipe.seed, number]), run_context.shards(task, "held_out")
        yield task, list(document_prompts(shards, options.prompts, part.max_prompt_tokens, 1, rng, bos=bos))


def engine_folder(engine: type[Engine], folder: Path, weights: str) -> tuple[Path, str]:
    """A model in the engine's format, and its precision; exported once into the user's cache unless it is an export."""
    if engine.format is None:
        return folder, weights
    # The folder of a GGUF target, and of its draft, has a GGUF file that holds the vocabulary alone.
    if any(file.name != VOCABULARY for file in folder.glob(EXPORTED_FILES[engine.format])):
        has_card = (folder / FILE).is_file()
        return folder, open_stage(folder, ExportCard).weights if has_card else "as given"
    export_format = FORMATS[engine.format]
    export_format.ready()
    digest = pretrained.digest(folder)
    exported = cache_folder("exports", f"{digest}-{engine.format}-{weights}-{metadata.version('fastdraft')}")
    if not exported.is_dir():
        log_line(f"exporting {folder} to {engine.format}, {weights}: kept in {exported}")
        with atomic_write(exported) as part:
            export_format.write(folder, part, weights)
    return exported, weights


def context_tokens(folder: Path) -> int:
    """The context length of a draft; 2^31 if its configuration does not declare one."""
    text = pretrained.open_config(folder).get_text_config()
    return int(getattr(text, "max_position_embeddings", 1 << 31))


def _model(name: str, model: pretrained.Model, weights: str) -> Model:
    config = pretrained.open_config(model)
    return Model(
        path=name,
        digest=pretrained.digest(model),
        parameters=architecture.parameters(config),
        weights=weights,
        stand_in=getattr(config, STAND_IN, None),
    )


def _versions(engine: type[Engine]) -> dict[str, str]:
    """Versions of fastdraft and of the engine's packages, and the first of these also under the engine's name."""
    versions = {"fastdraft": metadata.version("fastdraft")}
    for package in engine.packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions | {engine.name: versions.get(engine.packages[0], "")}
