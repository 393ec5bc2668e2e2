"""Recorded completions: what a target generated for evaluation, kept in a folder so that any draft can be scored later.

Scoring then needs no target. `completions/` holds the completions of all tasks and sampling parameters by key;
`card.json` lists the keys of each task.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
import xxhash
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel

from fastdraft.evaluation.tasks import TaskPrompts
from fastdraft.models.target import TargetCard
from fastdraft.results.formatting import sampling_text
from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Completion, Request, SamplingParams
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_interface import with_keys
from fastdraft.synthesize.engine_transformers import complete
from fastdraft.system.cards import FILE, Card, Cost, open_stage, read_card, write_card
from fastdraft.system.errors import RecordingError
from fastdraft.system.files import cache_folder
from fastdraft.system.precision import Precision


class RecordedTask(BaseModel):
    """The keys of one task's completions under one set of sampling parameters.

    `left_out`: the number of the task's rows that gave no prompt, by reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    task: str
    version: int
    source: str
    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int
    seed: int
    keys: tuple[str, ...]
    left_out: dict[str, int]

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(self.temperature, self.top_k, self.top_p)


class RecordingCard(Card):
    """A target, the precision it computed in, and what it generated. `vocabulary`: digest of the bytes of its ids."""

    kind: ClassVar[str] = "recording"
    grows: ClassVar[bool] = True
    refills: ClassVar[bool] = True
    target: TargetCard
    precision: Precision
    revision: str | None
    vocabulary: str
    written: tuple[RecordedTask, ...]


class RecordingTarget(NamedTuple):
    """The target whose completions are recorded; `open` loads its weights if completions are missing.

    A folder that already holds completions keeps the precision they were generated in.
    """

    card: TargetCard
    precision: Precision
    revision: str | None
    vocabulary: str
    open: Callable[[torch.dtype], PreTrainedModel]


class TaskCompletions(NamedTuple):
    """One task under one set of sampling parameters, with its completions."""

    recorded: RecordedTask
    completions: list[Completion]


class Recording(NamedTuple):
    """The requested tasks of a folder."""

    card: RecordingCard
    tasks: list[TaskCompletions]


def default_folder(digest: str) -> Path:
    """Where a target's completions are kept by default; they serve any draft."""
    return cache_folder("completions", digest)


def vocabulary_digest(id_bytes: dict[int, bytes]) -> str:
    """Digest of the bytes that each id stands for."""
    digest = xxhash.xxh3_64()
    for token in sorted(id_bytes):
        digest.update(f"{token}:{id_bytes[token].hex()};".encode())
    return str(digest.hexdigest())


def record(
    folder: Path,
    target: RecordingTarget,
    tasks: Sequence[TaskPrompts],
    sampling_settings: Sequence[SamplingParams],
    *,
    seed: int,
    batch_size: int,
) -> Recording:
    """The completions of every task under all sampling parameters; those not in the folder are generated and added.

    RecordingError if the folder belongs to another target.
    """
    started, card_before = time.monotonic(), _card_of_target(folder, target)
    precision = card_before.precision if card_before else target.precision
    store, open_once = CompletionStore(folder / "completions"), cache(partial(target.open, precision.dtype))
    recorded = [
        _record_task(store, target.card, open_once, task, sampling, seed, batch_size)
        for task in tasks
        for sampling in sampling_settings
    ]
    written = {(w.task, w.sampling): w for w in card_before.written} if card_before else {}
    written |= {(w.task, w.sampling): w for w, _ in recorded}
    card = RecordingCard(
        key=target.card.digest,
        cost=Cost(seconds=time.monotonic() - started + (card_before.cost.seconds if card_before else 0.0)),
        target=target.card,
        precision=precision,
        revision=target.revision,
        vocabulary=target.vocabulary,
        written=tuple(written.values()),
    )
    return Recording(write_card(folder, card), recorded)


def read_recording(
    folder: Path, tasks: Sequence[str] = (), sampling_settings: Sequence[SamplingParams] = ()
) -> Recording:
    """The recorded completions of these tasks and sampling parameters, by default of all; see `select`.

    RecordingError if the folder holds no recording.
    """
    if not (folder / FILE).is_file():
        raise RecordingError(
            f"no recorded completions at {folder}: it has no {FILE}\n"
            f"  do: make them with `fastdraft evaluate DRAFT --target TARGET --keep {folder}`"
        )
    return select(folder, open_stage(folder, RecordingCard), tasks, sampling_settings)


def select(
    folder: Path, card: RecordingCard, tasks: Sequence[str] = (), sampling_settings: Sequence[SamplingParams] = ()
) -> Recording:
    """Read the completions of these tasks and sampling parameters, by default of all in the card.

    Commas may separate tasks, and `spec-bench` stands for all its groups, as in `tasks_of`. RecordingError if a task or
    a set of sampling parameters is missing.
    """
    names = {name.strip() for argument in tasks for name in argument.split(",")}
    selected = [
        w
        for w in card.written
        if (not names or names & _names(w)) and (not sampling_settings or w.sampling in sampling_settings)
    ]
    missing = [*names - {name for w in selected for name in _names(w)}]
    missing += [sampling_text(*sampling) for sampling in {*sampling_settings} - {w.sampling for w in selected}]
    if missing or not selected:
        available = "; ".join(f"{w.task}, {sampling_text(*w.sampling)}" for w in card.written)
        raise RecordingError(
            f"{folder} has no completions of {', '.join(sorted(missing))}; it has {available}\n"
            f"  do: choose from those, or record more with --target {card.target.name} --keep FOLDER"
        )
    keys = list(dict.fromkeys(key for w in selected for key in w.keys))
    rows = dict(zip(keys, CompletionStore(folder / "completions").read(keys), strict=True))
    return Recording(card, [TaskCompletions(w, [rows[key] for key in w.keys]) for w in selected])


def _record_task(
    store: CompletionStore,
    card: TargetCard,
    open_target: Callable[[], PreTrainedModel],
    task: TaskPrompts,
    sampling: SamplingParams,
    seed: int,
    batch_size: int,
) -> TaskCompletions:
    requests = [Request(prompt, sampling) for prompt in task.prompts]
    decoding = DecodingParams(
        max_new_tokens=task.max_new_tokens,
        eos=frozenset(card.eos_ids),
        seed=seed,
        target_revision=card.digest,
        batch_size=batch_size,
        end=card.eos_ids[0],
    )
    keys, stored = [row.key for row in with_keys(requests, decoding)], store.stored_keys()
    if all(key in stored for key in keys):
        completions = store.read(keys)
    else:
        title = f"{card.name} writes {task.name} at temperature {sampling.temperature:g}"
        completions = complete(open_target(), requests, decoding, store, title)
    recorded = RecordedTask(
        task=task.name,
        version=task.version,
        source=task.source,
        **sampling._asdict(),
        max_new_tokens=task.max_new_tokens,
        seed=seed,
        keys=tuple(keys),
        left_out={reason: left_out.rows for reason, left_out in task.left_out.items()},
    )
    return TaskCompletions(recorded, completions)


def _names(recorded: RecordedTask) -> set[str]:
    """The names that select a task: its own, and for `spec-bench:GROUP` also `spec-bench`."""
    return {recorded.task, recorded.task.partition(":")[0]}


def _card_of_target(folder: Path, target: RecordingTarget) -> RecordingCard | None:
    """The folder's card, None if it has none; RecordingError if it belongs to another target."""
    if not (folder / FILE).is_file():
        return None
    card = read_card(folder, RecordingCard)
    if card.target.digest != target.card.digest:
        raise RecordingError(
            f"{folder} holds completions of {card.target.name} (files' digest {card.target.digest}), "
            f"the target is {target.card.name} ({target.card.digest})\n  do: choose another folder with --keep"
        )
    return card
