"""Acceptance rates by stage in the paper: FastDraft (Zafrir et al. 2025, arXiv:2411.11055), table 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fastdraft.planning.plan import PAPER as ALIGNED

# Rates before alignment for each draft of ALIGNED, in the order of its tasks.
BEFORE_ALIGNMENT = (
    {"PT": (0.311, 0.277, 0.245, 0.229), "CP": (0.304, 0.287, 0.226, 0.561)},
    {"PT": (0.280, 0.227, 0.247, 0.248), "CP": (0.280, 0.235, 0.273, 0.606)},
)


class PaperRow(NamedTuple):
    """A draft of the paper after a stage: acceptance rate by task, at gamma 3 and T = 0.6."""

    draft: str
    stage: str
    rates: dict[str, float]


def _rows() -> Iterator[PaperRow]:
    for guide, stages in zip(ALIGNED, BEFORE_ALIGNMENT, strict=True):
        for stage, rates in stages.items():
            yield PaperRow(guide.draft, stage, dict(zip(guide.acceptance_rate, rates, strict=True)))
        yield PaperRow(guide.draft, "FT", dict(guide.acceptance_rate))


PAPER = tuple(_rows())
