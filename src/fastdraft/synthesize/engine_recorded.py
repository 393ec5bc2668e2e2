"""The engine `recorded`: answers that exist already become rows; nothing is run.

Texts get the target's token ids; a row whose tokens do not decode to its text is counted and left out.
Log-probabilities are kept where the rows have them, and are unknown otherwise.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import xxhash
from transformers import PreTrainedTokenizerFast

from fastdraft.config import RecordedPart
from fastdraft.data.record_files import Row, local_rows, sound_text
from fastdraft.data.shards import Tokens
from fastdraft.synthesize.completions import Completion, Keys, LogProbabilities, SamplingParams
from fastdraft.synthesize.prompt_sets import chat_tokens, is_messages
from fastdraft.synthesize.server_responses import NO_LOGP, tokens_of_text
from fastdraft.synthesize.write import Decoding, Keyed, Logp, Shard, Unusable

DUPLICATE = "exact duplicates"


class Recorded:
    """Rows of files. Their distribution is unknown; they count as sampled at the temperature that the recipe states."""

    logp: Logp = "processed"

    def __init__(
        self,
        part: RecordedPart,
        decoding: Decoding,
        tokenizer: PreTrainedTokenizerFast,
        sampling: SamplingParams,
        context_tokens: int,
        max_records: int,
    ) -> None:
        self._part, self._decoding, self._tokenizer, self._sampling = part, decoding, tokenizer, sampling
        self._context_tokens, self._max_records = context_tokens, max_records

    def shards(self, _requests: Iterable[Keyed], stored: Keys) -> Iterator[Shard]:
        """All sound rows of the files, up to so many; requests are not looked at."""
        seen, rows, refused = Keys(), list[Completion](), Counter[str]()
        for row in local_rows(self._part.path, (self._part.start_marker, self._part.end_marker)):
            if len(seen) == self._max_records:
                break
            try:
                completion = self._completion(row)
            except Unusable as unusable:
                refused[str(unusable)] += 1
                continue
            if completion.key in seen:
                refused[DUPLICATE] += 1
            elif completion.key not in stored:
                rows.append(completion)
            seen.add([completion.key])
            if len(rows) == self._decoding.shard_prompts:
                yield Shard(rows, refused)
                rows, refused = [], Counter()
        yield Shard(rows, refused)

    def _completion(self, row: Row) -> Completion:
        if row.fault is not None:
            raise Unusable(row.fault)
        prompt = self._prompt(row.content.get(self._part.prompt_field))
        tokens = self._answer(row.content.get(self._part.answer_field))
        if len(prompt) + len(tokens) > self._context_tokens:
            raise Unusable("prompt and answer longer than the target's context")
        logp = self._logp(row, len(tokens))
        tokens, logp = tokens[: self._decoding.max_new_tokens], logp[: self._decoding.max_new_tokens]
        content = json.dumps([prompt.tolist(), tokens.tolist(), self._decoding.target_revision])
        return Completion(xxhash.xxh3_64_hexdigest(content.encode()), prompt, tokens, logp, self._sampling)

    def _prompt(self, given: Any) -> Tokens:
        if is_messages(given):
            return chat_tokens(self._tokenizer, given)
        if _is_ids(given):
            return self._checked(given)
        text = sound_text(given)
        if text is None:
            raise Unusable(f"rows without a prompt in `{self._part.prompt_field}`")
        return np.array(self._tokenizer(text).input_ids, np.int64)

    def _answer(self, given: Any) -> Tokens:
        if _is_ids(given):
            return self._checked(given)
        text = sound_text(given)
        if text is None:
            raise Unusable(f"rows without an answer in `{self._part.answer_field}`")
        tokens = tokens_of_text(text, self._tokenizer)
        return tokens if self._decoding.end is None else np.append(tokens, self._decoding.end)

    def _checked(self, ids: list[int]) -> Tokens:
        if min(ids) < 0 or max(ids) >= len(self._tokenizer):
            raise Unusable("token ids that the target's vocabulary has not")
        return np.array(ids, np.int64)

    def _logp(self, row: Row, tokens: int) -> LogProbabilities:
        if self._part.logp_field is None:
            return NO_LOGP
        try:
            logp = np.array(row.content.get(self._part.logp_field), np.float32)
        except (TypeError, ValueError):
            raise Unusable("log-probabilities that are no numbers") from None
        if logp.shape != (tokens,):
            raise Unusable("log-probabilities that are not one for each token")
        if not (np.isfinite(logp) & (logp <= 0)).all():
            raise Unusable("log-probabilities above zero, infinite or NaN")
        return logp


def _is_ids(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(type(token) is int for token in given)
