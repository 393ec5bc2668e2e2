"""What each stage of a run cost, from its card and its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from fastdraft.models.draft import DraftCard
from fastdraft.models.file_errors import errors_explained
from fastdraft.planning.model_size import ModelSize
from fastdraft.planning.training_cost import training_flops
from fastdraft.report.run_data import RunData, StageState
from fastdraft.system.energy import TotalJoules, total_joules
from fastdraft.system.errors import TargetError

ENERGY_NOTE = (
    "Energy is read from the machine’s counters: whole CPU packages (cpu), including everything else that ran on them, "
    "and the GPU in use (cuda). It excludes memory, power supply and other machines. Time and energy of stages other "
    "than training count from the last start of the stage."
)


class StageCost(NamedTuple):
    """The cost of a stage; None if unknown. `flops`: of training the draft; `memory_bytes`: peak of one process."""

    stage: str
    state: str
    seconds: float | None = None
    tokens: int = 0
    flops: float | None = None
    mfu: float | None = None
    memory_bytes: float | None = None
    energy: TotalJoules = TotalJoules(None, "")

    @property
    def tokens_per_second(self) -> float | None:
        """Mean over the whole stage."""
        return self.tokens / self.seconds if self.seconds and self.tokens else None


def costs(run: RunData) -> list[StageCost]:
    """The cost of every stage of the recipe, unfinished ones included."""
    return [_cost(run, stage) for stage in run.stages]


def total_seconds(stage_costs: Sequence[StageCost]) -> float:
    """Time of all stages whose time is known."""
    return sum(cost.seconds or 0.0 for cost in stage_costs)


def total_energy(runs: Sequence[RunData]) -> TotalJoules:
    """Measured energy of all finished stages of these runs."""
    return total_joules([stage.card.cost.joules for run in runs for stage in run.stages if stage.card])


def energy_note(total: TotalJoules) -> str:
    """What the energy figures include, or why there are none."""
    if total.joules is not None:
        return ENERGY_NOTE
    if total.of:
        return "Energy: unknown, the machine’s energy counters could not be read."
    return "Energy: unknown, it was not recorded."


def _cost(run: RunData, stage: StageState) -> StageCost:
    metrics = run.metrics.get(stage.name, [])
    mfus = [row["mfu"] for row in metrics if "mfu" in row]
    mfu = median(mfus) if mfus else None
    memory_bytes = max((row["memory_bytes"] for row in metrics if "memory_bytes" in row), default=None)
    if stage.card is None:
        tokens = int(metrics[-1]["tokens"]) if metrics else 0
        return StageCost(stage.name, stage.state, tokens=tokens, mfu=mfu, memory_bytes=memory_bytes)
    cost = stage.card.cost
    return StageCost(
        stage=stage.name,
        state=stage.state,
        seconds=cost.seconds,
        tokens=cost.tokens,
        flops=_flops(run, stage.name, stage.card) if isinstance(stage.card, DraftCard) else None,
        mfu=mfu,
        memory_bytes=memory_bytes,
        energy=total_joules([cost.joules]),
    )


def _flops(run: RunData, phase: str, card: DraftCard) -> float | None:
    """FLOPs of a finished training phase; None if recipe or card does not give the sizes of a sequence and a model."""
    sequence_tokens = run.setting(f"{phase}.sequence_tokens") or ""
    if not sequence_tokens.isdigit():
        return None
    try:
        with errors_explained("the sizes in a card cannot be used", "make the phase again"):
            size = ModelSize.of_config(card.shape.open_config())
            return training_flops(size, card.trained_tokens, int(sequence_tokens))
    except TargetError:
        return None
