"""Prompts from sets of instructions: texts, or chat messages under the target's chat template, applied once.

What is trained on follows from token positions: the prompt ends where the answer begins. Templates with markers for it
(`{% generation %}`) are rare, and without them transformers' own mask is all zero in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from fastdraft.config import PromptSetPart
from fastdraft.data.record_files import Row, hub_rows, local_rows, sound_text
from fastdraft.data.shards import Tokens
from fastdraft.synthesize.completions import Keys
from fastdraft.synthesize.prompts import SEEN, prompt_key
from fastdraft.system.errors import CorpusError, TargetError

UNSOUND_FRACTION = 0.01


def instruction_prompts(
    part: PromptSetPart, tokenizer: PreTrainedTokenizerFast, count: int, longest_tokens: int, refused: Counter[str]
) -> Iterator[Tokens]:
    """Up to `count` distinct prompts of a set in its order; why rows give none is counted in `refused`.

    CorpusError where more than 1 % of the rows are broken, or none is sound.
    """
    seen = Keys()
    rows = broken = 0
    for row in local_rows(part.path) if part.source != "hub" else hub_rows(part.path, part.subset, part.split):
        if len(seen) == count:
            break
        rows += 1
        tokens = None if row.fault else _tokens(row, part, tokenizer)
        if tokens is None:
            broken += 1
            refused[row.fault or f"rows without a prompt in `{part.field}`"] += 1
        elif len(tokens) > longest_tokens:
            refused[f"prompts of more than {longest_tokens} tokens"] += 1
        elif (key := prompt_key(tokens)) in seen:
            refused[SEEN] += 1
        else:
            seen.add([key])
            yield tokens
    if broken > UNSOUND_FRACTION * rows or not len(seen):
        raise CorpusError(
            f"{part.path}: {broken:,} of {rows:,} rows give no prompt; left out are {_listed(refused)}\n"
            f"  wanted: at most 1 % of the rows broken, and one prompt\n  do: fix the file, or name another `field`"
        )


def is_messages(given: Any) -> bool:
    """Is this a chat, the last message a user's?"""
    chat = isinstance(given, list) and bool(given) and all(isinstance(message, dict) for message in given)
    return chat and all(sound_text(message.get("content")) for message in given) and given[-1].get("role") == "user"


def chat_tokens(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> Tokens:
    """Messages under the chat template, up to where the answer begins; TargetError where the target has none."""
    if tokenizer.chat_template is None:
        raise TargetError(
            "the target's tokenizer has no chat template, and the prompts are chat messages\n"
            "  do: put chat_template.jinja beside the target's tokenizer, or give prompts as texts"
        )
    found: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    return np.array(found["input_ids"], np.int64)


def _tokens(row: Row, part: PromptSetPart, tokenizer: PreTrainedTokenizerFast) -> Tokens | None:
    """The prompt of a row; None where it holds none."""
    given = row.content.get(part.field)
    messages: Any = given if is_messages(given) else []
    if not messages:
        text = sound_text(given)
        if text is None:
            return None
        context = sound_text(row.content.get(part.context_field)) if part.context_field else None
        text = f"{text}\n\n{context}" if context else text
        if not part.chat:
            return np.array(tokenizer(f"{part.system}\n\n{text}" if part.system else text).input_ids, np.int64)
        messages = [{"role": "user", "content": text}]
    system = [{"role": "system", "content": part.system}] if part.system else []
    return chat_tokens(tokenizer, [*system, *messages])


def _listed(refused: Counter[str]) -> str:
    return "; ".join(f"{count:,} {reason}" for reason, count in refused.items()) or "the file is empty"
