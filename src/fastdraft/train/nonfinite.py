"""Errors of a training step: a loss that is not finite or explodes, and too little memory. Each says what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fastdraft.data.order import Place
from fastdraft.system.errors import NonFiniteLoss, OutOfMemory

# A loss of this many times that of guessing uniformly has exploded. An untrained draft has about 1 time that loss.
EXPLODED = 10.0
# A single batch may be bad, but a diverged model makes every batch look bad.
MAX_CONSECUTIVE_SKIPS = 10
MAX_NAMED_SEQUENCES = 8
# Messages of torch's RuntimeError when the system, not an accelerator, has no memory left.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def step_problem(loss: float, gradient_norm: float, vocab_rows: int, weight: float = 1.0) -> str | None:
    """The problem of a step, found before the optimizer uses its gradient; None if there is none.

    A finite loss can have an infinite gradient. `weight` is the summed weight of all terms of the loss.
    """
    for name, value in (("loss", loss), ("gradient_norm", gradient_norm)):
        if not math.isfinite(value):
            return f"{name} {value}"
    limit = EXPLODED * weight * math.log(vocab_rows)
    return f"loss {loss:.1f} above {limit:.1f} ({EXPLODED:g} times uniform guessing)" if loss > limit else None


def nonfinite_error(phase: str, step: int, problem: str, places: Sequence[Place], folder: Path) -> NonFiniteLoss:
    """The error for a step with a problem. It names the sequences of the batch."""
    sequences: dict[str, list[int]] = {}
    for place in places:
        sequences.setdefault(place.source, []).append(place.row)
    named = []
    for source, rows in sequences.items():
        more = f" and {len(rows) - MAX_NAMED_SEQUENCES} more" if len(rows) > MAX_NAMED_SEQUENCES else ""
        named.append(f"{source} rows {', '.join(map(str, rows[:MAX_NAMED_SEQUENCES]))}{more}")
    return NonFiniteLoss(
        f"{phase}: {problem} at step {step}, on {', '.join(named)}\n"
        f"  kept: the checkpoints in {folder}, if there are any\n"
        f"  do: lower the learning rates and run again, which trains the phase anew and moves its files to stale/; or "
        f"set {phase}.on_nonfinite=skip to continue from the last checkpoint without such batches"
    )


@contextmanager
def explain_out_of_memory(phase: str, sequences: int, sequence_tokens: int) -> Iterator[None]:
    """Raise OutOfMemory, with a remedy, if forward and backward over this many sequences do not fit the memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        message = str(error) or "the system refused"
        if isinstance(error, RuntimeError) and not any(text in message.lower() for text in NO_MEMORY):
            raise
        remedy = "activation_checkpointing=true, or parallel=fsdp on several devices"
        if sequences > 1:
            remedy = f"micro_batch_size={sequences // 2} (the same steps, in smaller pieces)"
        raise OutOfMemory(
            f"{phase}: no memory for a micro-batch of {sequences} sequences of {sequence_tokens} tokens "
            f"({message.splitlines()[0][:120]})\n"
            f"  do: set {phase}.{remedy}; the run then continues from its last checkpoint"
        ) from error
