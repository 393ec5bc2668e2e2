"""The verdict on a draft: how much faster it is, with which gamma, where it pays and where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from fastdraft.exporters.model_card_sections import best_gamma
from fastdraft.maths import acceptance
from fastdraft.report.run_data import RunData
from fastdraft.results.evaluation import Estimate, GammaResult, TaskResult
from fastdraft.results.formatting import sampling_text

# With a larger fraction of repetitive texts, a rate says more about loops than about the draft.
MANY_LOOPS = 0.25
ANSWERS = {"yes": "pays", "no": "costs time", "open": "no more than noise"}


class TaskVerdict(NamedTuple):
    """One task and temperature at the recommended gamma. `answer` is a key of ANSWERS.

    `mbsu_without_loops` is None if all texts loop.
    """

    task: str
    sampling_text: str
    answer: str
    mbsu: Estimate
    block_efficiency: Estimate
    looping_fraction: float
    mbsu_without_loops: float | None

    @property
    def answer_text(self) -> str:
        """The answer as a phrase."""
        return ANSWERS[self.answer]


class Verdict(NamedTuple):
    """The recommended gamma of a run, and what it gives on each task and temperature."""

    gamma: int
    tasks: tuple[TaskVerdict, ...]
    sentence: str
    cautions: tuple[str, ...]

    @property
    def tau(self) -> float:
        """Block efficiency, averaged over tasks and temperatures."""
        return fmean(task.block_efficiency.value for task in self.tasks)

    @property
    def expected(self) -> str:
        """The range over tasks of the speed-up to expect if memory bandwidth bounds the target."""
        values = sorted(task.mbsu.value for task in self.tasks)
        low, high = f"{values[0]:.2f}", f"{values[-1]:.2f}"
        return f"{low}×" if low == high else f"{low}–{high}×"


def verdict(run: RunData) -> Verdict | None:
    """The verdict on the last draft of a run; None if it was not evaluated."""
    if not run.last_results:
        return None
    gamma = best_gamma(run.last_results)
    results = sorted(run.last_results, key=lambda r: (r.task, r.temperature))
    tasks = tuple(_task_verdict(result, gamma) for result in results)
    return Verdict(gamma, tasks, _sentence(tasks), tuple(_cautions(run, tasks)))


def at_or_best(result: TaskResult, gamma: int) -> GammaResult:
    """The rates at a gamma; at the result's best gamma if that one was not measured."""
    gammas = {each.gamma: each for each in result.gammas}
    return gammas.get(gamma, gammas[result.best_gamma])


def _task_verdict(result: TaskResult, gamma: int) -> TaskVerdict:
    rates = at_or_best(result, gamma)
    tau = rates.block_efficiency_without_loops
    return TaskVerdict(
        task=result.task,
        sampling_text=sampling_text(result.temperature),
        answer="yes" if rates.mbsu.low > 1 else "no" if rates.mbsu.high < 1 else "open",
        mbsu=rates.mbsu,
        block_efficiency=rates.block_efficiency,
        looping_fraction=result.looping_fraction,
        mbsu_without_loops=None if tau is None else acceptance.mbsu(tau, rates.gamma, result.c),
    )


def _sentence(tasks: Sequence[TaskVerdict]) -> str:
    """Where the draft is expected to pay. Benches are not considered: their advice is printed separately."""
    paying, condition = [task for task in tasks if task.answer == "yes"], "If memory bandwidth bounds the target"
    if len(paying) in (0, len(tasks)):
        return f"{condition}, it pays on {'everything' if paying else 'nothing'} that was measured."
    others = ", ".join(f"{task.task} ({task.sampling_text})" for task in tasks if task.answer != "yes")
    return f"{condition}, it pays on {len(paying)} of {len(tasks)} kinds of text; not on {others}."


def _cautions(run: RunData, tasks: Sequence[TaskVerdict]) -> list[str]:
    cautions = []
    looping = [
        f"{task.looping_fraction:.0%} of {task.task} ({task.sampling_text})"
        for task in tasks
        if task.looping_fraction > MANY_LOOPS
    ]
    if looping:
        cautions.append(
            f"Many of the target's completions repeat themselves ({', '.join(looping)}); the last column excludes them."
        )
    if not run.benches:
        cautions.append(
            "Wall-clock time was not measured. The figures hold if reading weights bounds the target's speed. Expect "
            "less where a block costs more than a token, as on CPUs."
        )
    return cautions
