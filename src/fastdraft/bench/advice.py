"""What to set in an engine for a pair that was timed there, or that its draft does not pay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from fastdraft.bench.engine import Engine
from fastdraft.results.bench import Advice, ArmResult, Cell

# How far a predicted speed-up may be from the measured one to be called the same.
CLOSE = 0.1


def advise(engine: type[Engine], device: str, cells: Sequence[Cell]) -> Advice:
    """From greedy cells in every setting, and sampled ones in some."""
    setting, gamma = fastest(cells)
    of_setting = [cell for cell in cells if cell.setting == setting and cell.temperature == 0]
    alone = min(_mean_pace(group, lambda cell: cell.none) for group in _by_setting(cells).values())
    gain = alone / _mean_pace(of_setting, lambda cell: cell.at("draft", gamma))
    chosen = [cell.at("draft", gamma).speedup for cell in of_setting]
    pays = gain * min(speedup.low / speedup.value for speedup in chosen) > 1
    named = next(known for known in engine.settings if known.name == setting)
    option = engine.option(named, gamma, device)
    lines = [
        *_verdict(pays, gain, gamma, setting, of_setting, option),
        *_lookup(of_setting, gamma),
        *_prediction(of_setting, gamma),
        *_sampled(engine, cells),
    ]
    return Advice(pays=pays, setting=setting, gamma=gamma, speedup=gain, option=option, lines=tuple(lines))


def fastest(cells: Sequence[Cell]) -> tuple[str, int]:
    """The setting and gamma with the least time for a greedy token with the draft, in the mean over tasks."""
    groups = _by_setting(cells)
    gammas = [result.gamma for result in cells[0].drafts]
    pairs = [(setting, gamma) for setting in groups for gamma in gammas]
    return min(pairs, key=lambda pair: _mean_pace(groups[pair[0]], lambda cell: cell.at("draft", pair[1])))


def _by_setting(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The greedy cells of each setting."""
    greedy = [cell for cell in cells if cell.temperature == 0]
    names = dict.fromkeys(cell.setting for cell in greedy)
    return {name: [cell for cell in greedy if cell.setting == name] for name in names}


def _mean_pace(cells: Sequence[Cell], arm: Callable[[Cell], ArmResult]) -> float:
    """Geometric mean over tasks: a ratio of two of them is the mean ratio."""
    return math.exp(fmean(math.log(arm(cell).milliseconds_a_token.value) for cell in cells))


def _verdict(pays: bool, gain: float, gamma: int, setting: str, cells: Sequence[Cell], option: str) -> Iterator[str]:
    each = ", ".join(f"{cell.task} {cell.at('draft', gamma).speedup.value:.2f}x" for cell in cells)
    if pays:
        yield f"Set gamma {gamma}, {setting}: {gain:.2f}x over the fastest decoding without a draft, greedy ({each})."
        yield f"That is: {option}"
    else:
        yield (
            f"Do not use this draft here: at its best (gamma {gamma}, {setting}) it decodes {gain:.2f}x as fast as the "
            f"target alone, greedy ({each}), which is not above 1 by more than the spread of the repeats."
        )


def _lookup(cells: Sequence[Cell], gamma: int) -> Iterator[str]:
    """Prompt lookup needs no draft: where it is as fast, that is the advice."""
    ahead = [c.task for c in cells if _looked_up(c).speedup.value >= c.at("draft", gamma).speedup.value]
    each = ", ".join(f"{cell.task} {_looked_up(cell).speedup.value:.2f}x" for cell in cells)
    better = f" It is ahead of the draft on {', '.join(ahead)}." if ahead else ""
    yield f"Prompt lookup, which needs no draft: {each}.{better}"


def _looked_up(cell: Cell) -> ArmResult:
    return next(result for result in cell.arms if result.arm == "lookup")


def _prediction(cells: Sequence[Cell], gamma: int) -> Iterator[str]:
    """One pass and measured steps, beside what was measured of whole texts."""
    for cell in cells:
        arm = cell.at("draft", gamma)
        if arm.predicted is not None:
            off = arm.predicted.speedup / arm.speedup.value - 1
            word = "as measured" if abs(off) <= CLOSE else "not as measured"
            yield f"Predicted for {cell.task} {arm.predicted.speedup:.2f}x, {word} ({off:+.0%})."


def _sampled(engine: type[Engine], cells: Sequence[Cell]) -> Iterator[str]:
    """The best gamma under each other distribution; a warning where the engine does not keep it."""
    for temperature in sorted({cell.temperature for cell in cells} - {0.0}):
        found = [cell for cell in cells if cell.temperature == temperature]
        gammas = [result.gamma for result in found[0].drafts]
        best = min(gammas, key=lambda gamma: _mean_pace(found, lambda cell: cell.at("draft", gamma)))
        each = ", ".join(f"{cell.task} {cell.at('draft', best).speedup.value:.2f}x" for cell in found)
        yield f"T = {temperature:g}, {found[0].setting}: gamma {best} ({each})."
        if not engine.keeps_distribution:
            yield (
                f"But what {engine.name} samples with a draft is not distributed as what the target samples alone "
                f"(docs/bench.md): for sampled text leave the draft out."
            )
