"""Early stopping and the choice of the draft to keep, by block efficiency on the validation prompts, not by loss.

FastDraft (arXiv:2411.11055), section 5: perplexity continues to fall after acceptance has stopped rising.
docs/decisions/0006-choosing.md explains why the last step is kept unless the recipe sets `keep: best`.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fastdraft.config import TrainPart
from fastdraft.train.checkpoint import Progress


def after_validation(progress: Progress, block_efficiency: float, part: TrainPart) -> Progress:
    """Progress after its last step was validated. Of equal block efficiencies the first is the best."""
    if block_efficiency > progress.best_block_efficiency:
        best_step = progress.step if part.keep == "best" else 0
        return replace(progress, best_step=best_step, best_block_efficiency=block_efficiency, measures_since_best=0)
    progress = replace(progress, measures_since_best=progress.measures_since_best + 1)
    patience = part.early_stopping_patience
    if patience is None or progress.measures_since_best < patience or progress.end_step is not None:
        return progress
    if part.decay_fraction == 1:  # the decay began at step 0: no earlier end
        return replace(progress, end_step=2**62)
    # Let the learning rate decay from here on: stopping before it has decayed loses acceptance. If the decay has begun
    # already, this is after the planned end and has no effect.
    return replace(progress, end_step=math.ceil(progress.step / (1 - part.decay_fraction) - 1e-6))


def steps_with_early_stop(progress: Progress, planned_steps: int) -> int:
    """The number of steps of the phase: as planned, or fewer."""
    return planned_steps if progress.end_step is None else min(planned_steps, progress.end_step)


def kept_step(progress: Progress) -> int:
    """The step whose draft the phase keeps: the last, or with `keep: best` the best validated one."""
    return progress.best_step or progress.step
