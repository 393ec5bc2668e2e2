"""What an engine is: it takes requests with keys and returns completions in shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from fastdraft.data.record_files import UnusableRow
from fastdraft.synthesize.completions import Completion, Request, request_key
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.key_set import KeySet

# An engine's log-probabilities: after temperature, top-k and top-p; before them; or not returned. vLLM's words.
LogprobsMode = Literal["processed", "raw", "none"]


class KeyedRequest(NamedTuple):
    """A request and its key."""

    key: str
    request: Request


@dataclass(frozen=True)
class Shard:
    """Completions that an engine has returned, and the number of refused requests by reason."""

    rows: Sequence[Completion]
    refused: Counter[str] = field(default_factory=Counter)


class UnusableAnswer(UnusableRow):
    """An engine's answer gives no completion."""


class Engine(Protocol):
    """One way to run the target."""

    logprobs_mode: LogprobsMode

    def shards(self, requests: Iterable[KeyedRequest], stored: KeySet) -> Iterator[Shard]:
        """Complete all requests whose key is not in `stored`, in any order, one shard at a time.

        The caller adds each shard's keys to `stored` before it takes the next shard.
        """


def with_keys(requests: Iterable[Request], decoding: DecodingParams) -> Iterator[KeyedRequest]:
    """Requests with their keys; ValueError if two requests have the same key."""
    seen = KeySet()
    for request in requests:
        key = request_key(request, decoding.max_new_tokens, decoding.seed, decoding.target_revision)
        if key in seen:
            raise ValueError("two requests have one key; wanted another `index` for each sample of one prompt")
        seen.add([key])
        yield KeyedRequest(key, request)
