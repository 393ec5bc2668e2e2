"""What a rule is: a name, where it was read, and a judgement of a pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from fastdraft.models.model_files import Side

# What `--repair` can do: pad or trim rows, copy the tokenizer's files, set special ids in the two configurations.
RepairKind = Literal["rows", "tokenizer", "ids"]


class RuleResult(NamedTuple):
    """`why` has the figures of both sides; `fixes` is what would make a broken rule hold, if anything does."""

    holds: bool
    why: str
    repair_kinds: tuple[RepairKind, ...] = ()


class Rule(NamedTuple):
    """`version` of the engine, and the file, that the rule was read from. A rule that only warns breaks no engine."""

    name: str
    version: str
    source: str
    check: Callable[[Side, Side], RuleResult]
    only_warns: bool = False


def needed(rows: bool = False, tokenizer: bool = False, ids: bool = False) -> tuple[RepairKind, ...]:
    """The fixes that faults ask for."""
    asked: tuple[tuple[RepairKind, bool], ...] = (("rows", rows), ("tokenizer", tokenizer), ("ids", ids))
    return tuple(kind for kind, is_asked in asked if is_asked)


def compared(what: str, target: object, draft: object) -> str:
    """One figure of both sides, in words."""
    if target == draft:
        return f"{what} {_shown(target)} on both"
    return f"{what}: target {_shown(target)}, draft {_shown(draft)}"


def all_compared(found: Mapping[str, Sequence[object]]) -> tuple[bool, str]:
    """Whether all figures are equal, and in words those that are not, or all if they are."""
    unlike = [compared(what, *both) for what, both in found.items() if both[0] != both[1]]
    same = ", ".join(f"{what} {_shown(both[0])}" for what, both in found.items())
    return not unlike, "; ".join(unlike) or f"{same} on both"


def _shown(found: object) -> str:
    return "none" if found is None else str(found)


def first_of(words: Sequence[str]) -> str:
    """The first of a list, and how many more there are."""
    return words[0] + (f"; {len(words) - 1:,} more" if len(words) > 1 else "")
