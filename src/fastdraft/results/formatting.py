"""Results as text, the same on a terminal, in a report and in a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastdraft.results.evaluation import Estimate, Gap, VerificationResult


def bounds(estimate: Estimate) -> str:
    """The 95 % interval alone: `[0.512, 0.538]`."""
    return f"[{estimate.low:.3f}, {estimate.high:.3f}]"


def interval(estimate: Estimate) -> str:
    """A rate with its 95 % interval: `0.525 [0.512, 0.538]`."""
    return f"{estimate.value:.3f} {bounds(estimate)}"


def signed_interval(gap: Gap) -> str:
    """A difference with its 95 % interval, every number with its sign."""
    return f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"


def speedup_range(value: float, low: float, high: float) -> str:
    """A speed-up with the least and the greatest of the repeats: `1.42x [1.39, 1.45]`."""
    return f"{value:.2f}x [{low:.2f}, {high:.2f}]"


def or_dash(value: float | None) -> str:
    """A rate; `-` if it is unknown."""
    return "-" if value is None else f"{value:.3f}"


def sampling_text(temperature: float, top_k: int = 0, top_p: float = 1.0) -> str:
    """`greedy`, or the temperature; top-k and top-p only where they cut the distribution."""
    if temperature == 0:
        return "greedy"
    cuts = (f", top-k {top_k}" if top_k else "") + (f", top-p {top_p:g}" if top_p < 1 else "")
    return f"T = {temperature:g}{cuts}"


def disagreements(verified: Mapping[str, Sequence[VerificationResult]]) -> list[str]:
    """What the verifications by task found to differ, one line each; empty if all agree."""
    return [
        f"{task}, {sampling_text(result.temperature)}: {difference}"
        for task, results in verified.items()
        for result in results
        for difference in result.disagreements
    ]
