"""What a rule is: its name, the source it was read from, and a check of a pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from fastdraft.models.model_files import ModelFiles

# What `--repair` can do: pad or trim rows, copy the tokenizer files, set special ids in both configurations.
RepairKind = Literal["rows", "tokenizer", "ids"]


class RuleResult(NamedTuple):
    """`why` has the figures of target and draft; `repair_kinds` are the repairs that would make a broken rule hold."""

    holds: bool
    why: str
    repair_kinds: tuple[RepairKind, ...] = ()


class Rule(NamedTuple):
    """`version` and `source`: the engine's version and file that the rule was read from.

    `check(target, draft)` applies it. A rule with `only_warns` breaks no engine.
    """

    name: str
    version: str
    source: str
    check: Callable[[ModelFiles, ModelFiles], RuleResult]
    only_warns: bool = False


def needed(rows: bool = False, tokenizer: bool = False, ids: bool = False) -> tuple[RepairKind, ...]:
    """The kinds of repair whose flag is set."""
    flags: dict[RepairKind, bool] = {"rows": rows, "tokenizer": tokenizer, "ids": ids}
    return tuple(kind for kind, is_needed in flags.items() if is_needed)


def compared(name: str, target: object, draft: object) -> str:
    """One figure of target and draft, in words."""
    if target == draft:
        return f"{name} {_text(target)} on both"
    return f"{name}: target {_text(target)}, draft {_text(draft)}"


def all_compared(figures: Mapping[str, Sequence[object]]) -> tuple[bool, str]:
    """Are the two values of every figure equal? In words: those that differ, or all of them if none does."""
    differing = [compared(name, *pair) for name, pair in figures.items() if pair[0] != pair[1]]
    equal = ", ".join(f"{name} {_text(pair[0])}" for name, pair in figures.items())
    return not differing, "; ".join(differing) or f"{equal} on both"


def first_of(items: Sequence[str]) -> str:
    """The first item, and the number of the others."""
    return items[0] + (f"; {len(items) - 1:,} more" if len(items) > 1 else "")


def _text(figure: object) -> str:
    return "none" if figure is None else str(figure)
