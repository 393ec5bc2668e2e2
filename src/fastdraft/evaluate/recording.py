"""What a target wrote for evaluation: made once, kept in a folder, and enough to score any draft without the target.

`completions/` holds the rows of every task and distribution ever asked for, by key; the card beside it says which are
which.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
import xxhash
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel

from fastdraft.evaluate.tasks import TaskPrompts
from fastdraft.models.target import TargetCard
from fastdraft.synthesize.completions import Completion, CompletionStore, Request, SamplingParams
from fastdraft.synthesize.engine_transformers import complete
from fastdraft.synthesize.write import Decoding, keyed
from fastdraft.system.cards import FILE, Card, Cost, read_card, write_card
from fastdraft.system.errors import RecordingError
from fastdraft.system.files import cache_folder
from fastdraft.system.precision import Precision


class Written(BaseModel):
    """The completions of one task under one distribution; `left_out`: rows of the task that gave no prompt, by
    reason.
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
    """A target, what it computed in, and what it wrote. `vocabulary`: digest of the bytes behind its ids."""

    kind: ClassVar[str] = "recording"
    target: TargetCard
    precision: Precision
    revision: str | None
    vocabulary: str
    written: tuple[Written, ...]


class Target(NamedTuple):
    """Whose completions are recorded; `open` loads its weights, and is called only where some are missing.

    A folder that holds completions goes on in the precision that they were written in.
    """

    card: TargetCard
    precision: Precision
    revision: str | None
    vocabulary: str
    open: Callable[[torch.dtype], PreTrainedModel]


class Recorded(NamedTuple):
    """One task under one distribution, with its rows."""

    written: Written
    completions: list[Completion]


class Recording(NamedTuple):
    """What was asked for, out of a folder."""

    card: RecordingCard
    parts: list[Recorded]


def usual_folder(digest: str) -> Path:
    """Where a target's completions are kept unless the user says otherwise: they serve any draft."""
    return cache_folder("completions", digest)


def vocabulary_digest(spelled: dict[int, bytes]) -> str:
    """Of the bytes behind each id."""
    found = xxhash.xxh3_64()
    for number in sorted(spelled):
        found.update(f"{number}:{spelled[number].hex()};".encode())
    return str(found.hexdigest())


def record(
    folder: Path,
    target: Target,
    tasks: Sequence[TaskPrompts],
    sampling_settings: Sequence[SamplingParams],
    seed: int,
    batch_size: int,
) -> Recording:
    """The completions of every task under every distribution, from the folder or else from the target.

    RecordingError where the folder is another target's.
    """
    started, before = time.monotonic(), _of_this_target(folder, target)
    precision = before.precision if before else target.precision
    store, opened = CompletionStore(folder / "completions"), cache(partial(target.open, precision.dtype))
    parts = [
        _recorded(store, target, opened, task, sampling, seed, batch_size)
        for task, sampling in ((task, sampling) for task in tasks for sampling in sampling_settings)
    ]
    made = {_place(part.written): part.written for part in parts}
    kept = {_place(written): written for written in (before.written if before else ())}
    card = RecordingCard(
        key=target.card.digest,
        cost=Cost(seconds=time.monotonic() - started + (before.cost.seconds if before else 0.0)),
        target=target.card,
        precision=precision,
        revision=target.revision,
        vocabulary=target.vocabulary,
        written=tuple((kept | made).values()),
    )
    write_card(folder, card)
    return Recording(card, parts)


def recorded(folder: Path, tasks: Sequence[str] = (), sampling_settings: Sequence[SamplingParams] = ()) -> Recording:
    """What was recorded in a folder: of these tasks and distributions, otherwise all; RecordingError where there is
    none.
    """
    if not (folder / FILE).is_file():
        raise RecordingError(
            f"no recorded completions at {folder}: it has no {FILE}\n"
            f"  do: make them with `fastdraft evaluate DRAFT --target TARGET --keep {folder}`"
        )
    return chosen(folder, read_card(folder, RecordingCard), tasks, sampling_settings)


def chosen(
    folder: Path, card: RecordingCard, tasks: Sequence[str] = (), sampling_settings: Sequence[SamplingParams] = ()
) -> Recording:
    """Of what a card says lies in a folder: these tasks and distributions, otherwise all; RecordingError where one is
    absent.

    Commas may separate tasks, and `spec-bench` is all its groups, as in `tasks_of`.
    """
    names = {name.strip() for argument in tasks for name in argument.split(",")}
    wanted = [
        w
        for w in card.written
        if (not names or names & _names(w)) and (not sampling_settings or w.sampling in sampling_settings)
    ]
    absent = [*names - {name for w in wanted for name in _names(w)}]
    absent += [_said(sampling) for sampling in {*sampling_settings} - {w.sampling for w in wanted}]
    if absent or not wanted:
        there = "; ".join(f"{w.task} at {_said(w.sampling)}" for w in card.written)
        raise RecordingError(
            f"{folder} has no completions of {', '.join(sorted(absent))}; it has {there}\n"
            f"  do: ask for those, or record more with --target {card.target.name} --keep FOLDER"
        )
    return Recording(card, list(_read(CompletionStore(folder / "completions"), wanted)))


def _read(store: CompletionStore, wanted: Sequence[Written]) -> Iterator[Recorded]:
    keys = list(dict.fromkeys(key for written in wanted for key in written.keys))
    rows = dict(zip(keys, store.read(keys), strict=True))
    for written in wanted:
        yield Recorded(written, [rows[key] for key in written.keys])


def _recorded(
    store: CompletionStore,
    target: Target,
    opened: Callable[[], PreTrainedModel],
    task: TaskPrompts,
    sampling: SamplingParams,
    seed: int,
    batch_size: int,
) -> Recorded:
    card, requests = target.card, [Request(prompt, sampling) for prompt in task.prompts]
    how = Decoding(task.max_new_tokens, frozenset(card.eos_ids), seed, card.digest, batch_size, card.eos_ids[0])
    keys, stored = [row.key for row in keyed(requests, how)], store.stored()
    if all(key in stored for key in keys):
        rows = store.read(keys)
    else:
        what = f"{card.name} writes {task.name} at temperature {sampling.temperature:g}"
        rows = complete(opened(), requests, how, store, what)
    written = Written(
        task=task.name,
        version=task.version,
        source=task.source,
        **sampling._asdict(),
        max_new_tokens=task.max_new_tokens,
        seed=seed,
        keys=tuple(keys),
        left_out={why: out.rows for why, out in task.left_out.items()},
    )
    return Recorded(written, rows)


def _names(written: Written) -> set[str]:
    """What a task may be called: a group also by what it is a group of."""
    return {written.task, written.task.partition(":")[0]}


def _said(sampling: SamplingParams) -> str:
    """A distribution in words."""
    more = [f"top-k {sampling.top_k}"] * bool(sampling.top_k) + [f"top-p {sampling.top_p:g}"] * (sampling.top_p < 1)
    return ", ".join([f"temperature {sampling.temperature:g}", *more])


def _place(written: Written) -> tuple[str, SamplingParams]:
    return written.task, written.sampling


def _of_this_target(folder: Path, target: Target) -> RecordingCard | None:
    """The card of what is there already; None where nothing is."""
    if not (folder / FILE).is_file():
        return None
    card = read_card(folder, RecordingCard)
    if card.target.digest != target.card.digest:
        raise RecordingError(
            f"{folder} keeps completions of {card.target.name} (files' digest {card.target.digest}), "
            f"the target is {target.card.name} ({target.card.digest})\n  do: choose another folder with --keep"
        )
    return card
