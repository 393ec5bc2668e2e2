"""The setting and the gamma to use in an engine for a timed pair, or that the draft does not pay there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from fastdraft.benchmark.engine import Engine
from fastdraft.results.bench import Advice, ArmResult, Cell

# A prediction counts as confirmed if it is within this fraction of the measured speed-up.
CLOSE = 0.1


def advise(engine: type[Engine], device: str, cells: Sequence[Cell]) -> Advice:
    """The advice from greedy cells of every setting, and from sampled cells of some."""
    setting, gamma = fastest(cells)
    best = [cell for cell in cells if cell.setting == setting and cell.temperature == 0]
    plain = min(_mean_milliseconds(group, lambda cell: cell.none) for group in _greedy_by_setting(cells).values())
    gain = plain / _mean_milliseconds(best, lambda cell: cell.at("draft", gamma))
    speedups = [cell.at("draft", gamma).speedup for cell in best]
    pays = gain * min(speedup.low / speedup.value for speedup in speedups) > 1
    option = engine.option(next(each for each in engine.settings if each.name == setting), gamma, device)
    lines = [
        *_verdict(pays, gain, gamma, setting, best, option),
        *_lookup(best, gamma),
        *_predictions(best, gamma),
        *_sampled(engine, cells),
    ]
    return Advice(pays=pays, setting=setting, gamma=gamma, speedup=gain, option=option, lines=tuple(lines))


def fastest(cells: Sequence[Cell]) -> tuple[str, int]:
    """The setting and gamma with the least time per greedy token with the draft, averaged over tasks."""
    groups = _greedy_by_setting(cells)
    pairs = [(setting, arm.gamma) for setting in groups for arm in cells[0].drafts]
    return min(pairs, key=lambda pair: _mean_milliseconds(groups[pair[0]], lambda cell: cell.at("draft", pair[1])))


def _greedy_by_setting(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.temperature == 0:
            groups.setdefault(cell.setting, []).append(cell)
    return groups


def _mean_milliseconds(cells: Sequence[Cell], arm: Callable[[Cell], ArmResult]) -> float:
    """Geometric mean over tasks, so that the ratio of two means is the mean ratio."""
    return math.exp(fmean(math.log(arm(cell).milliseconds_a_token.value) for cell in cells))


def _speedups(cells: Sequence[Cell], gamma: int) -> str:
    return ", ".join(f"{cell.task} {cell.at('draft', gamma).speedup.value:.2f}x" for cell in cells)


def _verdict(pays: bool, gain: float, gamma: int, setting: str, cells: Sequence[Cell], option: str) -> Iterator[str]:
    by_task = _speedups(cells, gamma)
    if pays:
        yield (
            f"Set gamma {gamma}, {setting}: {gain:.2f}x over the fastest decoding without a draft, greedy ({by_task})."
        )
        yield f"That is: {option}"
    else:
        yield (
            f"Do not use this draft here: at its best (gamma {gamma}, {setting}) it decodes {gain:.2f}x as fast as the "
            f"target alone, greedy ({by_task}), which is not above 1 by more than the spread of the repeats."
        )


def _lookup(cells: Sequence[Cell], gamma: int) -> Iterator[str]:
    """Prompt lookup needs no draft, so the user should know where it is as fast."""
    ahead = [c.task for c in cells if _lookup_arm(c).speedup.value >= c.at("draft", gamma).speedup.value]
    better = f" It is ahead of the draft on {', '.join(ahead)}." if ahead else ""
    by_task = ", ".join(f"{cell.task} {_lookup_arm(cell).speedup.value:.2f}x" for cell in cells)
    yield f"Prompt lookup, which needs no draft: {by_task}.{better}"


def _lookup_arm(cell: Cell) -> ArmResult:
    return next(result for result in cell.arms if result.arm == "lookup")


def _predictions(cells: Sequence[Cell], gamma: int) -> Iterator[str]:
    """The speed-up predicted from one pass and step times, compared with the measured one."""
    for cell in cells:
        arm = cell.at("draft", gamma)
        if arm.predicted is not None:
            error = arm.predicted.speedup / arm.speedup.value - 1
            agreement = "as measured" if abs(error) <= CLOSE else "not as measured"
            yield f"Predicted for {cell.task} {arm.predicted.speedup:.2f}x, {agreement} ({error:+.0%})."


def _sampled(engine: type[Engine], cells: Sequence[Cell]) -> Iterator[str]:
    """The best gamma at each other temperature; a warning if the engine does not keep the target's distribution."""
    for temperature in sorted({cell.temperature for cell in cells} - {0.0}):
        group = [cell for cell in cells if cell.temperature == temperature]
        gammas = [result.gamma for result in group[0].drafts]
        best = min(gammas, key=lambda gamma: _mean_milliseconds(group, lambda cell: cell.at("draft", gamma)))
        by_task = _speedups(group, best)
        yield f"T = {temperature:g}, {group[0].setting}: gamma {best} ({by_task})."
        if not engine.keeps_distribution:
            yield (
                f"But text that {engine.name} samples with a draft does not have the target's distribution "
                f"(docs/bench.md): for sampled text leave the draft out."
            )
