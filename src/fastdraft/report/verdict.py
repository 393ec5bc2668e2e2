"""The first thing that a reader wants to know: how much faster, with which gamma, where it pays and where not."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from fastdraft.export.model_card_sections import best_gamma
from fastdraft.maths import acceptance
from fastdraft.report.read import Account
from fastdraft.report.terminal_run import sampling_text
from fastdraft.results.evaluation import Estimate, GammaResult, TaskResult

# Above this share of texts that repeat themselves a rate says more about loops than about the draft.
MANY_LOOPS = 0.25
WORDS = {"yes": "pays", "no": "costs time", "open": "no more than noise"}


class Pays(NamedTuple):
    """One task under one distribution at the gamma to set; `without_loops` is None where all texts loop."""

    task: str
    sampling_text: str
    answer: str
    mbsu: Estimate
    block_efficiency: Estimate
    looping_fraction: float
    without_loops: float | None

    @property
    def word(self) -> str:
        """The answer in words."""
        return WORDS[self.answer]


class Verdict(NamedTuple):
    """Of one run: the gamma to set and what it gives, by task and distribution."""

    gamma: int
    rows: tuple[Pays, ...]
    sentence: str
    cautions: tuple[str, ...]

    @property
    def tau(self) -> float:
        """Block efficiency in the mean over tasks and distributions."""
        return fmean(row.block_efficiency.value for row in self.rows)

    @property
    def expected(self) -> str:
        """The speed-up to expect where memory bounds the target, from the least to the greatest task."""
        values = sorted(row.mbsu.value for row in self.rows)
        low, high = f"{values[0]:.2f}", f"{values[-1]:.2f}"
        return f"{low}×" if low == high else f"{low}–{high}×"


def verdict(account: Account) -> Verdict | None:
    """None where nothing was measured."""
    if not account.last:
        return None
    gamma = best_gamma(account.last)
    rows = tuple(_pays(result, gamma) for result in sorted(account.last, key=lambda r: (r.task, r.temperature)))
    return Verdict(gamma, rows, _sentence(rows), tuple(_cautions(account, rows)))


def at(result: TaskResult, gamma: int) -> GammaResult:
    """A result at one gamma; at its own best one where it was not measured at that."""
    gammas = {found.gamma: found for found in result.gammas}
    return gammas.get(gamma, gammas[result.best_gamma])


def _pays(result: TaskResult, gamma: int) -> Pays:
    found = at(result, gamma)
    tau = found.block_efficiency_without_loops
    return Pays(
        task=result.task,
        sampling_text=sampling_text(result.temperature),
        answer="yes" if found.mbsu.low > 1 else "no" if found.mbsu.high < 1 else "open",
        mbsu=found.mbsu,
        block_efficiency=found.block_efficiency,
        looping_fraction=result.looping_fraction,
        without_loops=None if tau is None else acceptance.mbsu(tau, found.gamma, result.c),
    )


def _sentence(rows: Sequence[Pays]) -> str:
    """Of what is expected; a bench has words of its own."""
    paying, where = [row for row in rows if row.answer == "yes"], "Where memory bounds the target, it pays on"
    if len(paying) in (0, len(rows)):
        return f"{where} {'everything' if paying else 'nothing'} that was measured."
    told = ", ".join(f"{row.task} ({row.sampling_text})" for row in rows if row.answer != "yes")
    return f"{where} {len(paying)} of {len(rows)} kinds of text; not on {told}."


def _cautions(account: Account, rows: Sequence[Pays]) -> list[str]:
    looping = [row for row in rows if row.looping_fraction > MANY_LOOPS]
    told = []
    if looping:
        shares = ", ".join(f"{row.looping_fraction:.0%} of {row.task} ({row.sampling_text})" for row in looping)
        told.append(f"Much of what the target wrote repeats itself ({shares}); the last column leaves these texts out.")
    if not account.benches:
        told.append(
            "Wall clock was not measured. The figures hold where reading weights bounds the target's speed; where a "
            "block costs more than a token, as on CPUs, expect less."
        )
    return told
