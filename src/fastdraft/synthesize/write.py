"""Requests become stored completions, each exactly once, whichever engine answers.

Stored completions are known by key, so an interrupted run continues where it stopped. Memory holds one shard and
8 bytes per completion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from fastdraft.synthesize.completion_store import CompletionStore
from fastdraft.synthesize.completions import Completion
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_interface import Engine, KeyedRequest
from fastdraft.synthesize.rescore import Rescore
from fastdraft.system.errors import TargetError
from fastdraft.system.progress import Bar


def write_completions(
    engine: Engine,
    requests: Iterable[KeyedRequest],
    store: CompletionStore,
    decoding: DecodingParams,
    bar: Bar,
    rescore: Rescore,
) -> Counter[str]:
    """Complete all requests that are not stored; returns the number of refused ones by reason.

    TargetError if the first rows of an empty store are all end-of-text alone.
    """
    stored, refused = store.stored_keys(), Counter[str]()
    for shard in engine.shards(requests, stored):
        scored = rescore(shard.rows)
        refused.update(shard.refused)
        refused.update(scored.refused)
        if scored.rows:
            if not len(stored):
                _refuse_empty_answers(scored.rows, decoding)
            store.write(scored.rows)
            stored.add([row.key for row in scored.rows])
        bar.advance(len(shard.rows) + shard.refused.total())
    return refused


def _refuse_empty_answers(rows: Sequence[Completion], decoding: DecodingParams) -> None:
    if decoding.max_new_tokens > 1 and all(len(row.tokens) == 1 and row.tokens[0] in decoding.eos for row in rows):
        raise TargetError(
            f"the target answered each of the first {len(rows)} prompts with the end-of-text token alone\n"
            f"  do: check the target's weights, its end-of-text ids {sorted(decoding.eos)}, and how prompts begin"
        )
