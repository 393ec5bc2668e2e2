"""Which step's draft a phase keeps, and where it ends early: by block efficiency, not by loss.

FastDraft (arXiv:2411.11055), section 5: perplexity goes on falling where acceptance does not rise any more.
docs/decisions/0006-choosing.md says why the last step is kept unless the recipe asks for the best.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fastdraft.config import TrainPart
from fastdraft.train.checkpoint import Progress


def after_validation(progress: Progress, block_efficiency: float, part: TrainPart) -> Progress:
    """Progress that knows what its last step was measured at; the first of equals is the best."""
    if block_efficiency > progress.best_block_efficiency:
        best_step = progress.step if part.keep == "best" else 0
        return replace(progress, best_step=best_step, best_block_efficiency=block_efficiency, measures_since_best=0)
    progress = replace(progress, measures_since_best=progress.measures_since_best + 1)
    patience = part.early_stopping_patience
    if patience is None or progress.measures_since_best < patience or progress.end_step is not None:
        return progress
    return replace(progress, end_step=_end(progress.step, part.decay_fraction))


def steps_in_all(progress: Progress, planned_steps: int) -> int:
    """Steps of the phase: as planned, or fewer."""
    return planned_steps if progress.end_step is None else min(planned_steps, progress.end_step)


def kept_step(progress: Progress) -> int:
    """The step whose draft the phase leaves: the last, or the best of those measured where that is to be kept."""
    return progress.best_step or progress.step


def _end(step: int, decay_fraction: float) -> int:
    """The last step of a phase whose decay begins now: a rate that never fell leaves acceptance lying.

    Where the decay has begun already, this is behind the planned end.
    """
    return math.ceil(step / (1 - decay_fraction) - 1e-6) if decay_fraction < 1 else 2**62
