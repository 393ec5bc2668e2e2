"""The road: target -> tokenize -> pretrain -> continue -> synthesize -> align -> evaluate.

A stage makes one artefact in its own folder of the run and writes its card last. A card with the key of the same inputs
means that the stage is done; a folder that another recipe filled is moved aside, never overwritten.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from fastdraft import artefacts
from fastdraft.artefacts import Journey, Made
from fastdraft.errors import RecipeError, RunError
from fastdraft.manifest import Manifest
from fastdraft.progress import say
from fastdraft.recipe import Recipe
from fastdraft.records import VERSION, Cost, card_key, write_card
from fastdraft.run import claim, full_disk_named
from fastdraft.target import digest


@dataclass(frozen=True)
class Stage:
    """One step of the road: what it needs, the part of the recipe that it depends on, and how it is made.

    `version` rises when the stage makes something else from the same inputs.
    """

    name: str
    needs: tuple[str, ...]
    part: Callable[[Recipe], Any]
    make: Callable[[Journey, Path], Made]
    version: int = 1


def road(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe in order: those whose part it has."""
    return [stage for stage in STAGES if stage.part(recipe)[0] is not None]


def travel(journey: Journey, manifest: Manifest, until: str | None = None, only: str | None = None) -> None:
    """Go down the road, stage by stage, to its end or `until` a stage, or make `only` one whose needs are met.

    RunError where `only` needs a stage that has not been run; RecipeError where the recipe has no such stage.
    """
    stages = road(journey.recipe)
    for wanted in filter(None, (until, only)):
        if wanted not in [stage.name for stage in stages]:
            names = ", ".join(stage.name for stage in stages)
            raise RecipeError(
                f"this recipe has no stage `{wanted}`\n  wanted: {names}\n  do: give the recipe such a part"
            )
    keys: dict[str, str] = {}
    for stage in stages:
        keys[stage.name] = _key(stage, journey.recipe, keys)
        done = card_key(journey.folder / stage.name) == keys[stage.name]
        if done:
            manifest.stage(stage.name, "already done")
        elif only in (None, stage.name):
            _make(stage, journey, manifest, keys[stage.name])
        elif stage.name in _stage(only).needs:
            raise RunError(
                f"{only} needs {stage.name}, which has not been run\n  do: fastdraft {stage.name} RECIPE first"
            )
        if stage.name in (until, only):
            return


def standing(journey: Journey) -> dict[str, str]:
    """Each stage of the recipe: `done`, `begun`, `of another recipe` or `not begun`."""
    keys: dict[str, str] = {}
    found: dict[str, str] = {}
    for stage in road(journey.recipe):
        keys[stage.name] = _key(stage, journey.recipe, keys)
        claim_file = journey.folder / stage.name / "key"
        claimed = claim_file.read_text() if claim_file.is_file() else None
        ours = "done" if card_key(journey.folder / stage.name) == keys[stage.name] else "begun"
        found[stage.name] = (
            "not begun" if claimed is None else ours if claimed == keys[stage.name] else "of another recipe"
        )
    return found


def _make(stage: Stage, journey: Journey, manifest: Manifest, key: str) -> None:
    folder = journey.folder / stage.name
    if moved := claim(folder, key):
        manifest.note(f"{stage.name}: what another recipe or version left was moved to {moved}")
        say(f"{stage.name}: made anew; what another recipe left is in {moved}")
    say(f"{stage.name} ...")
    started = time.monotonic()
    with full_disk_named(folder), _warnings_noted(manifest):
        made = stage.make(journey, folder)
    seconds = made.seconds if made.seconds is not None else time.monotonic() - started
    write_card(folder, made.card(key=key, cost=Cost(seconds=seconds, tokens=made.tokens), **made.fields))
    manifest.stage(stage.name, "made")
    say(f"{stage.name}: done in {seconds:.1f} s")


@contextmanager
def _warnings_noted(manifest: Manifest) -> Iterator[None]:
    """A warning is shown and left in the manifest, once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            yield
        finally:
            for text in dict.fromkeys(f"{w.category.__name__}: {w.message}" for w in caught):
                manifest.note(text)
                say(text)


def _key(stage: Stage, recipe: Recipe, keys: dict[str, str]) -> str:
    parts = [part.model_dump(mode="json") if hasattr(part, "model_dump") else part for part in stage.part(recipe)]
    inputs = {need: keys[need] for need in stage.needs if need in keys}
    content = json.dumps([stage.name, stage.version, VERSION, parts, inputs], sort_keys=True, default=_plain)
    return str(xxhash.xxh3_64_hexdigest(content.encode()))


def _plain(part: Any) -> Any:
    return part.model_dump(mode="json")


def _stage(name: str) -> Stage:
    return next(stage for stage in STAGES if stage.name == name)


STAGES = (
    Stage("target", (), lambda r: (r.target, digest(r.target)), artefacts.make_target),
    Stage("tokenize", ("target",), lambda r: (r.corpus or None, r.tokenize, r.seed), artefacts.make_tokens),
    Stage("pretrain", ("target", "tokenize"), lambda r: (r.pretrain, r.draft, r.seed), artefacts.make_draft),
    Stage(
        "continue", ("target", "tokenize", "pretrain"), lambda r: (r.continue_, r.draft, r.seed), artefacts.make_draft
    ),
)
