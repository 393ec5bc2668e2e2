"""The pipeline: target -> tokenize -> validation -> pretrain -> continue -> synthesize -> align -> evaluate.

Each stage writes into its own folder of the run, and its card last. A stage is done if its card has the key of its
present inputs. The folder of a stage that was made from other inputs is moved to `stale/`, never overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from fastdraft.config import Recipe, TrainPart
from fastdraft.config.part import Mark, Part
from fastdraft.models.model_folder import digest, named_digest
from fastdraft.system.cards import VERSION, card_key
from fastdraft.system.errors import RunError


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline: the stages it needs, and the part of the recipe that it depends on.

    `needs` are part of its key. `reads` are stages that must be done too, but another result of theirs does not change
    what this one makes. `version` rises when the stage makes something else from the same inputs. With several
    processes, all of them make a `shared` stage; the main one makes any other while the rest wait.
    """

    name: str
    needs: tuple[str, ...]
    part: Callable[[Recipe], Any]
    reads: tuple[str, ...] = ()
    version: int = 1
    shared: bool = False


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe in order: those whose part it has."""
    return [stage for stage in STAGES if stage.part(recipe)[0] is not None]


def recipe_file(run: Path) -> Path:
    """The recipe that a run folder keeps; RunError if it has none."""
    file = run / "resolved.yaml"
    if not file.is_file():
        raise RunError(f"no run at {run}: it has no resolved.yaml\n  do: name the folder of a run, like runs/demo")
    return file


def states_of(recipe: Recipe, run: Path) -> dict[str, str]:
    """The state of each stage of a recipe in its run folder: `done`, `begun`, `of another recipe` or `not begun`."""
    keys: dict[str, str] = {}
    states: dict[str, str] = {}
    for stage in stages_of(recipe):
        keys[stage.name] = key_of(stage, recipe, keys)
        folder = run / stage.name
        if not (folder / "key").is_file():
            states[stage.name] = "not begun"
        elif (folder / "key").read_text(errors="replace") != keys[stage.name]:
            states[stage.name] = "of another recipe"
        else:
            states[stage.name] = "done" if card_key(folder) == keys[stage.name] else "begun"
    return states


def key_of(stage: Stage, recipe: Recipe, keys: Mapping[str, str]) -> str:
    """The key of a stage's card: the hash of all its inputs. `keys` holds the keys of the stages before it."""
    inputs = {need: keys[need] for need in stage.needs if need in keys}
    content = json.dumps(
        [stage.name, stage.version, VERSION, stage.part(recipe), inputs], sort_keys=True, default=Part.key_content
    )
    return str(xxhash.xxh3_64_hexdigest(content.encode()))


def _validation(recipe: Recipe) -> tuple[Any, ...]:
    """What the validation completions depend on; (None,) where no draft is measured while it trains."""
    part, trains = recipe.evaluate, recipe.pretrain or recipe.continue_ or recipe.align
    if part is None or not trains or not part.validation_prompts:
        return (None,)
    return (part.model_dump(mode="json", include=part.marked(Mark.VALIDATION)), recipe.seed)


def _phase(recipe: Recipe, name: str, part: TrainPart | None) -> tuple[Any, ...]:
    """What a phase of training depends on: its part; the files of a donor of first weights and of a teacher; and the
    validation, where the kept draft or the end of the phase is chosen by it.
    """
    if part is None:
        return (None,)
    donor, validation, teacher = None, None, None
    if recipe.draft.init_model:
        donor = named_digest(recipe.draft.init_model, "draft.init")
    if recipe.evaluate and (part.keep == "best" or part.early_stopping_patience):
        validation = (*_validation(recipe), recipe.evaluate.verify_gamma)
    if part.teacher:
        teacher = [named_digest(part.teacher, f"{name}.teacher")]
    return (part, recipe.draft, recipe.seed, *(each for each in (donor, validation, teacher) if each))


STAGES = (
    Stage("target", (), lambda r: (r.target, digest(r.target))),
    Stage("tokenize", ("target",), lambda r: (r.corpus or None, r.tokenize, r.seed)),
    Stage("validation", ("target", "tokenize"), _validation, version=2),
    Stage(
        "pretrain",
        ("target", "tokenize"),
        lambda r: _phase(r, "pretrain", r.pretrain),
        reads=("validation",),
        version=2,
        shared=True,
    ),
    Stage(
        "continue",
        ("target", "tokenize", "pretrain"),
        lambda r: _phase(r, "continue", r.continue_),
        reads=("validation",),
        version=2,
        shared=True,
    ),
    Stage(
        "synthesize",
        ("target", "tokenize"),
        lambda r: (r.synthesize, r.seed),
        version=2,
    ),
    Stage(
        "align",
        ("target", "tokenize", "pretrain", "continue", "synthesize"),
        lambda r: _phase(r, "align", r.align),
        reads=("validation",),
        version=2,
        shared=True,
    ),
    Stage(
        "evaluate",
        ("target", "tokenize", "pretrain", "continue", "align"),
        lambda r: (r.evaluate, r.seed),
        version=2,
    ),
)
