"""A user's own prompts, with or without answers: a draft is aligned on most of them and measured on the rest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
from transformers import PreTrainedTokenizerFast

from fastdraft.data.record_files import Record, UnusableRow, local_records, sound_text
from fastdraft.synthesize.prompt_sets import chat_tokens, is_messages, text_tokens
from fastdraft.system.errors import CorpusError
from fastdraft.system.files import atomic_write


class LogEntry(NamedTuple):
    """A prompt, as text or chat messages, and its answer; None if the target is to write it."""

    prompt: Any
    answer: str | None
    prompt_tokens: int
    answer_tokens: int

    @property
    def digest(self) -> str:
        """A hash of the prompt."""
        return xxhash.xxh3_64_hexdigest(json.dumps(self.prompt, sort_keys=True).encode())


class UserLogs(NamedTuple):
    """The usable entries, which all have an answer or all have none, and the number of the others by reason."""

    rows: list[LogEntry]
    refused: Counter[str]

    @property
    def answered(self) -> bool:
        return self.rows[0].answer is not None


def read_logs(path: str, tokenizer: PreTrainedTokenizerFast, context_tokens: int, max_new_tokens: int) -> UserLogs:
    """The records with `prompt` or `messages`, and `completion`; messages may end with the assistant's.

    If some records have an answer, those without are left out. CorpusError if no record is usable.
    """
    rows, refused = list[LogEntry](), Counter[str]()
    for record in local_records(path):
        try:
            entry = _log_entry(record, tokenizer)
        except UnusableRow as unusable:
            refused[str(unusable)] += 1
            continue
        if entry.prompt_tokens + entry.answer_tokens >= context_tokens:
            refused["rows longer than the target's context"] += 1
        elif entry.answer is None and entry.prompt_tokens + max_new_tokens > context_tokens:
            refused[f"rows that leave no {max_new_tokens:,} tokens for an answer in the target's context"] += 1
        else:
            rows.append(entry)
    answered = [row for row in rows if row.answer is not None]
    if answered and len(answered) < len(rows):
        refused["rows without a `completion`, while others have one"] += len(rows) - len(answered)
    if not rows:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in refused.items()) or "it has no row"
        raise CorpusError(
            f"{path} has no row to align on: {reasons}\n"
            f"  wanted: rows with `prompt` or `messages`, and `completion` if there are answers\n"
            f"  do: correct the file"
        )
    return UserLogs(answered or rows, refused)


def split_held_out(logs: UserLogs, held_out_fraction: float) -> tuple[list[LogEntry], list[LogEntry]]:
    """Entries to align on, and entries held out: a fraction of the distinct prompts, chosen by their hashes.

    Each held-out prompt comes once, with its first answer. CorpusError if there are fewer than two distinct prompts.
    """
    digests = sorted({row.digest for row in logs.rows})
    if len(digests) < 2:
        raise CorpusError(
            f"{len(logs.rows):,} rows with one distinct prompt, wanted one to align on and one to measure on\n"
            f"  do: give rows with other prompts"
        )
    count = min(max(round(held_out_fraction * len(digests)), 1), len(digests) - 1)
    held_out = set(digests[:count])
    train = [row for row in logs.rows if row.digest not in held_out]
    first = {row.digest: row for row in reversed(logs.rows) if row.digest in held_out}
    return train, list(first.values())


def write_logs(rows: Sequence[LogEntry], file: Path, messages_field: str = "prompt") -> None:
    """Write the entries as .jsonl with `prompt` and `completion`; chat messages go to `messages_field`."""
    with atomic_write(file) as part, part.open("w", encoding="utf-8") as lines:
        for row in rows:
            field = "prompt" if isinstance(row.prompt, str) else messages_field
            content = {field: row.prompt} | ({} if row.answer is None else {"completion": row.answer})
            lines.write(json.dumps(content, ensure_ascii=False) + "\n")


def _log_entry(record: Record, tokenizer: PreTrainedTokenizerFast) -> LogEntry:
    """The entry of a record; UnusableRow if it gives none."""
    if record.fault is not None:
        raise UnusableRow(record.fault)
    # A column of a parquet file is in every row, and null where a row has no value.
    prompt: Any = record.content.get("messages") or record.content.get("prompt")
    given: Any = record.content.get("completion")
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict) and prompt[-1].get("role") == "assistant":
        prompt, given = prompt[:-1], prompt[-1].get("content")
    answer = sound_text(given)
    if answer is None and given is not None and (not isinstance(given, str) or given.strip()):
        raise UnusableRow("rows with a `completion` that is not a text")
    if is_messages(prompt):
        prompt_tokens = len(chat_tokens(tokenizer, prompt))
        try:
            json.dumps(prompt, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise UnusableRow("messages that JSON cannot hold") from error
    elif text := sound_text(prompt):
        prompt_tokens = len(text_tokens(tokenizer, text))
    else:
        raise UnusableRow("rows without `prompt` or `messages`")
    answer_tokens = len(tokenizer(answer, add_special_tokens=False).input_ids) + 1 if answer else 0
    return LogEntry(prompt, answer, prompt_tokens, answer_tokens)
