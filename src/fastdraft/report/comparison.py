"""Several runs compared with the first one: paired differences if both kept acceptances of the same completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastdraft.evaluation.comparison import ScoredDraft, compare
from fastdraft.evaluation.marked_tokens import read_acceptances
from fastdraft.report.run_data import RunData
from fastdraft.results.evaluation import Comparison, TaskResult
from fastdraft.system.errors import CardError

# The defaults of `evaluate.bootstrap_resamples` and of a recipe's `seed`.
RESAMPLES, SEED = 1000, 7


class RunDifference(NamedTuple):
    """A run's last draft compared with the first run's, on one task and temperature.

    `comparison` is None if they cannot be paired; `why` gives the reason.
    """

    run: str
    task: str
    temperature: float
    comparison: Comparison | None
    why: str = ""


class KeyDifference(NamedTuple):
    """A recipe key whose value differs between runs; None for a run whose recipe does not have it."""

    key: str
    values: tuple[str | None, ...]


def differences(runs: Sequence[RunData], names: Sequence[str]) -> list[RunDifference]:
    """Every later run compared with the first, on each task and sampling setting of the first run."""
    first, *others = runs
    return [
        _difference(name, first, result, other)
        for name, other in zip(names[1:], others, strict=True)
        for result in sorted(first.last_results, key=lambda r: (r.task, r.temperature))
    ]


def _difference(name: str, first: RunData, first_result: TaskResult, run: RunData) -> RunDifference:
    def not_paired(why: str) -> RunDifference:
        return RunDifference(name, first_result.task, first_result.temperature, None, why)

    def setting(result: TaskResult) -> tuple[str, float, int, float]:
        return result.task, result.temperature, result.top_k, result.top_p

    result = next((r for r in run.last_results if setting(r) == setting(first_result)), None)
    if result is None:
        return not_paired("not measured in this run")
    try:
        acceptances = read_acceptances(run.folder / "evaluate", result)
        first_acceptances = read_acceptances(first.folder / "evaluate", first_result)
    except CardError as error:
        return not_paired(str(error).splitlines()[0])
    if acceptances is None or first_acceptances is None:
        without = first if first_acceptances is None else run
        return not_paired(f"{without.name} kept no acceptances: compare the intervals, or evaluate it again")
    if acceptances[0] != first_acceptances[0]:
        return not_paired("scored on other completions: compare the intervals")
    comparison = compare(
        ScoredDraft(acceptances[1], result), ScoredDraft(first_acceptances[1], first_result), RESAMPLES, SEED
    )
    return RunDifference(name, first_result.task, first_result.temperature, comparison)


def recipe_differences(runs: Sequence[RunData]) -> list[KeyDifference]:
    """The recipe keys, other than `name`, whose values differ between the runs."""
    recipes = [{setting.key: setting.value for setting in run.settings} for run in runs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe if key != "name")
    rows = [KeyDifference(key, tuple(recipe.get(key) for recipe in recipes)) for key in keys]
    return [row for row in rows if len(set(row.values)) > 1]


def labels(runs: Sequence[RunData]) -> list[str]:
    """The names of the runs; their folders if two names are equal."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]
