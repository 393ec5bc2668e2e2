"""What each stage took, of what its card and its metrics say."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from fastdraft.models.draft import DraftCard
from fastdraft.planning.model_size import ModelSize
from fastdraft.planning.training_cost import training_flops
from fastdraft.report.read import Account, Row, Step
from fastdraft.system.energy import Spent, spent

TOLD = (
    "Energy is what the machine’s counters told: of whole CPU packages (cpu), with all else that ran on them, and of "
    "the GPU at work (cuda); not of memory, power supply or other machines. Time and energy of stages other than "
    "training are those since their last start."
)


class StageCost(NamedTuple):
    """None and "": not known. `flops`: those of the draft's training; `memory_bytes`: the peak, of one process."""

    stage: str
    state: str
    seconds: float | None = None
    tokens: int = 0
    flops: float | None = None
    mfu: float | None = None
    memory_bytes: float | None = None
    energy: Spent = Spent(None, "")

    @property
    def tokens_per_second(self) -> float | None:
        """Over the whole stage."""
        return self.tokens / self.seconds if self.seconds and self.tokens else None


def costs(account: Account) -> list[StageCost]:
    """Every stage of the recipe, those that are not done too."""
    return [_cost(account, step) for step in account.steps]


def total_seconds(found: Sequence[StageCost]) -> float:
    """Of all stages whose time is known."""
    return sum(cost.seconds or 0.0 for cost in found)


def total_energy(accounts: Sequence[Account]) -> Spent:
    """Of all finished stages of these runs."""
    return spent([step.card.cost.joules for account in accounts for step in account.steps if step.card])


def energy_note(total: Spent) -> str:
    """What the figures of energy are, or why there are none."""
    if total.joules is not None:
        return TOLD
    if total.of:
        return "Energy: not known, the machine’s energy counters could not be read."
    return "Energy: not known, it was not recorded."


def _cost(account: Account, step: Step) -> StageCost:
    rows = account.metrics.get(step.name, [])
    mfu, memory_bytes = _median(rows, "mfu"), _most(rows, "memory_bytes")
    if step.card is None:
        tokens = int(rows[-1]["tokens"]) if rows else 0
        return StageCost(step.name, step.state, tokens=tokens, mfu=mfu, memory_bytes=memory_bytes)
    flops = _flops(account, step.name, step.card) if isinstance(step.card, DraftCard) else None
    cost, energy = step.card.cost, spent([step.card.cost.joules])
    return StageCost(step.name, step.state, cost.seconds, cost.tokens, flops, mfu, memory_bytes, energy)


def _flops(account: Account, phase: str, card: DraftCard) -> float | None:
    """Of a finished phase; None where the recipe does not say how long its sequences are."""
    sequence_tokens = account.setting(f"{phase}.sequence_tokens") or ""
    if not sequence_tokens.isdigit():
        return None
    return training_flops(ModelSize.of_config(card.shape.open_config()), card.trained_tokens, int(sequence_tokens))


def _median(rows: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in rows if key in row]
    return median(values) if values else None


def _most(rows: Sequence[Row], key: str) -> float | None:
    return max((row[key] for row in rows if key in row), default=None)
