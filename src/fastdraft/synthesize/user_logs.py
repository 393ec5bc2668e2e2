"""A user's own prompts, with answers or without: those a draft is aligned on, and those it is measured on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
from transformers import PreTrainedTokenizerFast

from fastdraft.data.record_files import Row, local_rows, sound_text
from fastdraft.synthesize.prompt_sets import chat_tokens, is_messages
from fastdraft.system.errors import CorpusError
from fastdraft.system.files import atomic_write


class Log(NamedTuple):
    """A prompt, a text or chat messages, and the answer to it; None where the target is to write it."""

    prompt: Any
    answer: str | None
    prompt_tokens: int
    answer_tokens: int

    @property
    def digest(self) -> str:
        """The same for equal prompts."""
        return xxhash.xxh3_64_hexdigest(json.dumps(self.prompt, sort_keys=True).encode())


class Logs(NamedTuple):
    """Sound rows, and why others gave none; all rows have an answer, or none has."""

    rows: list[Log]
    refused: Counter[str]

    @property
    def answered(self) -> bool:
        return self.rows[0].answer is not None


def read_logs(path: str, tokenizer: PreTrainedTokenizerFast, context_tokens: int, max_new_tokens: int) -> Logs:
    """Rows with `prompt` or `messages`, and `completion`; messages may end in the assistant's.

    Where some rows have an answer, those without are left out. CorpusError where no row is sound.
    """
    rows, refused = list[Log](), Counter[str]()
    for row in local_rows(path):
        found = _log(row, tokenizer)
        if isinstance(found, str):
            refused[found] += 1
        elif found.prompt_tokens + found.answer_tokens >= context_tokens:
            refused["rows longer than the target's context"] += 1
        elif found.answer is None and found.prompt_tokens + max_new_tokens > context_tokens:
            refused[f"rows that leave no {max_new_tokens:,} tokens for an answer in the target's context"] += 1
        else:
            rows.append(found)
    answered = [row for row in rows if row.answer is not None]
    if answered and len(answered) < len(rows):
        refused["rows without a `completion`, beside rows with one"] += len(rows) - len(answered)
    if not rows:
        told = "; ".join(f"{count:,} {reason}" for reason, count in refused.items()) or "it is empty"
        raise CorpusError(
            f"{path} has no row to align on: {told}\n"
            f"  wanted: rows with `prompt` or `messages`, and `completion` where there are answers\n"
            f"  do: correct the file"
        )
    return Logs(answered or rows, refused)


def parted(logs: Logs, held_out_fraction: float) -> tuple[list[Log], list[Log]]:
    """Rows to align on, and rows held out: a share of the distinct prompts, the same for the same prompts.

    CorpusError where there are not two distinct prompts.
    """
    digests = sorted({row.digest for row in logs.rows})
    if len(digests) < 2:
        raise CorpusError("one distinct prompt, wanted one to align on and one to measure on\n  do: give more rows")
    count = min(max(round(held_out_fraction * len(digests)), 1), len(digests) - 1)
    held_out = set(digests[:count])
    train = [row for row in logs.rows if row.digest not in held_out]
    first = {row.digest: row for row in reversed(logs.rows) if row.digest in held_out}
    return train, list(first.values())


def write_logs(rows: Sequence[Log], file: Path, messages_field: str = "prompt") -> None:
    """The rows as .jsonl with `prompt` and `completion`; a prompt of messages under a name of its own."""
    with atomic_write(file) as part, part.open("w", encoding="utf-8") as lines:
        for row in rows:
            name = "prompt" if isinstance(row.prompt, str) else messages_field
            content = {name: row.prompt} | ({} if row.answer is None else {"completion": row.answer})
            lines.write(json.dumps(content, ensure_ascii=False) + "\n")


def _log(row: Row, tokenizer: PreTrainedTokenizerFast) -> Log | str:
    """A row, or why it gives none."""
    if row.fault:
        return row.fault
    prompt: Any = row.content.get("messages", row.content.get("prompt"))
    answer = sound_text(row.content.get("completion"))
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict) and prompt[-1].get("role") == "assistant":
        prompt, answer = prompt[:-1], sound_text(prompt[-1].get("content"))
    if is_messages(prompt):
        tokens = len(chat_tokens(tokenizer, prompt))
    elif text := sound_text(prompt):
        tokens = len(tokenizer(text).input_ids)
    else:
        return "rows without `prompt` or `messages`"
    answer_tokens = len(tokenizer(answer, add_special_tokens=False).input_ids) + 1 if answer else 0
    return Log(prompt, answer, tokens, answer_tokens)
