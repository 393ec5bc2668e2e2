"""Evaluation prompts that leaked into the prompts for training: found by runs of tokens, and left out.

Windows of the recipe's own corpus need no such search: no held-out document has a near-duplicate among the training
documents (docs/decisions/0001-held-out.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import xxhash

from fastdraft.data.shards import Tokens

Runs = npt.NDArray[np.uint64]
LEAKED_FRACTION = 0.5
REASON = "prompts that stand in evaluation texts"


class Leaks:
    """Runs of n tokens of evaluation texts, at 8 bytes each.

    Runs of `common` texts say nothing, and are not counted: all chats begin with the words of their template.
    """

    def __init__(self, texts: Iterable[Tokens], run_tokens: int, common: Iterable[Tokens] = ()) -> None:
        self._run_tokens = run_tokens
        self._runs, self._common = _all_runs(texts, run_tokens), _all_runs(common, run_tokens)

    def __contains__(self, prompt: Tokens) -> bool:
        """Whether half of a prompt's runs stand in the evaluation texts."""
        own = runs(prompt, self._run_tokens)
        own = own[~_among(own, self._common)]
        return len(own) > 0 and float(_among(own, self._runs).mean()) >= LEAKED_FRACTION


def _among(some: Runs, table: Runs) -> npt.NDArray[np.bool_]:
    """Which of some stand in a sorted table.

    numpy's `isin` would sort it again: .8 s a prompt where it has a million runs, for .15 ms.
    """
    places = np.searchsorted(table, some)
    found = np.zeros(len(some), np.bool_)
    inside = places < len(table)
    found[inside] = table[places[inside]] == some[inside]
    return found


def _all_runs(texts: Iterable[Tokens], run_tokens: int) -> Runs:
    return np.unique(np.concatenate([np.empty(0, np.uint64), *(runs(text, run_tokens) for text in texts)]))


def runs(tokens: Tokens, run_tokens: int) -> Runs:
    """Hashes of the runs of so many tokens; none of a shorter text, which says too little."""
    content = np.ascontiguousarray(tokens, np.int64)
    starts = range(len(content) - run_tokens + 1)
    hashes = (xxhash.xxh3_64_intdigest(content[i : i + run_tokens].tobytes()) for i in starts)
    return np.fromiter(hashes, np.uint64, len(starts))
