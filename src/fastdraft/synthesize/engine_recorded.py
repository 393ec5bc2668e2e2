"""The engine `recorded`: existing answers become completions; no model is run.

Texts are tokenized with the target's tokenizer; a text that its tokens do not decode to is counted and left out.
Log-probabilities are kept if the records have them, and are unknown otherwise.
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
from fastdraft.data.record_files import Record, UnusableRow, local_records, sound_text
from fastdraft.data.shards import Tokens
from fastdraft.synthesize.answer_parsing import NO_LOGP, UNKNOWN_IDS, parse_logp, tokenize_exactly
from fastdraft.synthesize.completions import Completion, SamplingParams
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_interface import KeyedRequest, LogprobsMode, Shard
from fastdraft.synthesize.key_set import KeySet
from fastdraft.synthesize.prompt_sets import chat_tokens, is_messages, text_tokens
from fastdraft.synthesize.rescore import TOO_LONG

DUPLICATE = "exact duplicates"


class RecordedEngine:
    """Records of files. Their distribution is unknown; they count as sampled as the recipe says (`sampling`)."""

    logprobs_mode: LogprobsMode = "processed"

    def __init__(
        self,
        part: RecordedPart,
        decoding: DecodingParams,
        tokenizer: PreTrainedTokenizerFast,
        sampling: SamplingParams,
        context_tokens: int,
        max_records: int,
    ) -> None:
        self._part, self._decoding, self._tokenizer, self._sampling = part, decoding, tokenizer, sampling
        self._context_tokens, self._max_records = context_tokens, max_records

    def shards(self, _requests: Iterable[KeyedRequest], stored: KeySet) -> Iterator[Shard]:
        """Up to `max_records` distinct valid records; requests are ignored."""
        seen, rows, refused = KeySet(), list[Completion](), Counter[str]()
        for record in local_records(self._part.path, (self._part.start_marker, self._part.end_marker)):
            if len(seen) == self._max_records:
                break
            try:
                completion = self._completion(record)
            except UnusableRow as unusable:
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

    def _completion(self, record: Record) -> Completion:
        if record.fault is not None:
            raise UnusableRow(record.fault)
        prompt = self._prompt(record.content.get(self._part.prompt_field))
        tokens = self._answer(record.content.get(self._part.answer_field))
        if len(prompt) + len(tokens) > self._context_tokens:
            raise UnusableRow(TOO_LONG)
        field = self._part.logp_field
        logp = NO_LOGP if field is None else parse_logp(record.content.get(field), len(tokens))
        tokens, logp = tokens[: self._decoding.max_new_tokens], logp[: self._decoding.max_new_tokens]
        content = json.dumps([prompt.tolist(), tokens.tolist(), self._decoding.target_revision])
        return Completion(xxhash.xxh3_64_hexdigest(content.encode()), prompt, tokens, logp, self._sampling)

    def _prompt(self, value: Any) -> Tokens:
        if is_messages(value):
            return chat_tokens(self._tokenizer, value)
        if (ids := self._token_ids(value)) is not None:
            return ids
        text = sound_text(value)
        if text is None:
            raise UnusableRow(f"rows without a prompt in `{self._part.prompt_field}`")
        return text_tokens(self._tokenizer, text)

    def _answer(self, value: Any) -> Tokens:
        if (ids := self._token_ids(value)) is not None:
            return ids
        text = sound_text(value)
        if text is None:
            raise UnusableRow(f"rows without an answer in `{self._part.answer_field}`")
        tokens = tokenize_exactly(text, self._tokenizer)
        return tokens if self._decoding.end is None else np.append(tokens, self._decoding.end)

    def _token_ids(self, value: Any) -> Tokens | None:
        """A list of token ids as an array; None if the value is anything else."""
        if not isinstance(value, list) or not value or not all(type(token) is int for token in value):
            return None
        if min(value) < 0 or max(value) >= len(self._tokenizer):
            raise UnusableRow(UNKNOWN_IDS)
        return np.array(value, np.int64)
