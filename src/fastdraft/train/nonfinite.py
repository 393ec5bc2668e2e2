"""What can go wrong in a step: a loss that is no number or explodes, and too little memory; each says what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fastdraft.data.order import Place
from fastdraft.system.errors import NonFiniteLoss, OutOfMemory

# A loss of so many times that of guessing among all tokens has exploded: at its start a draft loses about once as much.
EXPLODED = 10.0
# Steps in a row that may be skipped: one batch can be bad, a model that is lost makes every batch look bad.
SKIPPED_IN_A_ROW_AT_MOST = 10
ROWS_NAMED = 8
# What torch says where the system, and no accelerator, refuses memory.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def fault(loss: float, gradient_norm: float, vocab_rows: int, weight: float = 1.0) -> str | None:
    """What is wrong with a step, before an optimizer steps on it: a finite loss can have an infinite gradient.

    `weight` is that of all the loss's terms together.
    """
    for name, value in (("loss", loss), ("gradient_norm", gradient_norm)):
        if not math.isfinite(value):
            return f"{name} {value}"
    most = EXPLODED * weight * math.log(vocab_rows)
    return f"loss {loss:.1f}, above {most:.1f}, {EXPLODED:g} times that of guessing," if loss > most else None


def not_taken(phase: str, step: int, wrong: str, places: Sequence[Place], folder: Path) -> NonFiniteLoss:
    """The error for a step that is not taken, with its batch's identity."""
    return NonFiniteLoss(
        f"{phase} came to {wrong} at step {step}, on {_named(places)}\n"
        f"  kept: the checkpoints in {folder}, if it came to one\n"
        f"  do: lower the learning rates and run again: the phase is made anew, what is here moves to stale/; or set "
        f"{phase}.on_nonfinite=skip to go on from the last checkpoint without such batches"
    )


def _named(places: Sequence[Place]) -> str:
    """The rows of a batch by their sources, the first few of each."""
    rows: dict[str, list[int]] = {}
    for place in places:
        rows.setdefault(place.source, []).append(place.row)
    return ", ".join(
        f"{source} rows {', '.join(map(str, found[:ROWS_NAMED]))}"
        + (f" and {len(found) - ROWS_NAMED} more" if len(found) > ROWS_NAMED else "")
        for source, found in rows.items()
    )


@contextmanager
def out_of_memory_explained(phase: str, sequences: int, sequence_tokens: int) -> Iterator[None]:
    """OutOfMemory, which says what to try, where a forward and backward pass over so many sequences does not fit."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        said = str(error) or "the system refused"
        if isinstance(error, RuntimeError) and not any(words in said.lower() for words in NO_MEMORY):
            raise
        raise OutOfMemory(
            f"{phase}: no memory for {sequences} sequences of {sequence_tokens} tokens at once "
            f"({said.splitlines()[0][:120]})\n"
            f"  do: set {phase}.{_smaller(sequences)}; the run then goes on from its last checkpoint"
        ) from error


def _smaller(sequences: int) -> str:
    if sequences > 1:
        return f"micro_batch_size={sequences // 2} (the same steps, in smaller pieces)"
    return "activation_checkpointing=true, or parallel=fsdp on several devices"
