"""Several runs against the first: paired differences where both kept the acceptances of the same completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastdraft.evaluate.comparison import Side, compare
from fastdraft.evaluate.marked_tokens import read_acceptances
from fastdraft.report.read import Account
from fastdraft.results.evaluation import Comparison, TaskResult

# As many as `evaluate.bootstrap_resamples` takes by default; the seed that recipes have by default.
RESAMPLES, SEED = 1000, 7


class Against(NamedTuple):
    """A run's last draft against that of the first run on one task under one distribution; `why` there is no
    difference.
    """

    run: str
    task: str
    temperature: float
    comparison: Comparison | None
    why: str = ""


class Differing(NamedTuple):
    """A key of the recipe that is not alike in all runs; None where a run's recipe lacks it."""

    key: str
    values: tuple[str | None, ...]


def against_first(accounts: Sequence[Account], names: Sequence[str]) -> list[Against]:
    """Every later run against the first, on each task and distribution that the first was measured on."""
    first, *others = accounts
    return [
        _against(name, first, result, other)
        for name, other in zip(names[1:], others, strict=True)
        for result in sorted(first.last, key=lambda r: (r.task, r.temperature))
    ]


def _against(name: str, first: Account, result: TaskResult, other: Account) -> Against:
    place = result.task, result.temperature
    sampling_text = result.temperature, result.top_k, result.top_p
    theirs = next(
        (r for r in other.last if (r.task, (r.temperature, r.top_k, r.top_p)) == (result.task, sampling_text)), None
    )
    if theirs is None:
        return Against(name, *place, None, "not measured in this run")
    kept = [read_acceptances(account.folder / "evaluate", r) for account, r in ((first, result), (other, theirs))]
    if kept[0] is None or kept[1] is None:
        missing = first if kept[0] is None else other
        why = f"{missing.name} kept no acceptances: compare the intervals, or evaluate it again"
        return Against(name, *place, None, why)
    (keys, ours), (others, found) = kept[0], kept[1]
    if keys != others:
        return Against(name, *place, None, "scored on other completions: compare the intervals")
    return Against(name, *place, compare(Side(found, theirs), Side(ours, result), RESAMPLES, SEED))


def differing(accounts: Sequence[Account]) -> list[Differing]:
    """The keys in which the recipes differ, their names apart."""
    recipes = [{setting.key: setting.value for setting in account.settings} for account in accounts]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe if key != "name")
    rows = [Differing(key, tuple(recipe.get(key) for recipe in recipes)) for key in keys]
    return [row for row in rows if len(set(row.values)) > 1]


def labels(accounts: Sequence[Account]) -> list[str]:
    """The runs' names; where two are alike, their folders."""
    names = [account.name for account in accounts]
    return names if len(set(names)) == len(names) else [str(account.folder) for account in accounts]
