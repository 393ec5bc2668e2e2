"""Prompts from instruction data sets: texts, or chat messages under the target's chat template, applied once.

Training labels follow from token positions: the prompt ends where the answer begins. Markers in templates
(`{% generation %}`) are not used: they are rare, and without them transformers returns an all-zero mask silently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from fastdraft.config import PromptSetPart
from fastdraft.data.record_files import Record, UnusableRow, hub_records, local_records, sound_text
from fastdraft.data.shards import Tokens
from fastdraft.synthesize.key_set import KeySet
from fastdraft.synthesize.prompts import DUPLICATE_PROMPT, prompt_key
from fastdraft.system.errors import CorpusError, TargetError

MAX_BROKEN_FRACTION = 0.01


def instruction_prompts(
    part: PromptSetPart, tokenizer: PreTrainedTokenizerFast, count: int, max_tokens: int, refused: Counter[str]
) -> Iterator[Tokens]:
    """Up to `count` distinct prompts of a set, in its order; other records are counted in `refused` by reason.

    CorpusError if more than 1 % of the records are broken, or none gives a prompt.
    """
    seen, left_out = KeySet(), Counter[str]()
    total = broken = 0
    records = hub_records(part.path, part.subset, part.split) if part.source == "hub" else local_records(part.path)
    for record in records:
        if len(seen) == count:
            break
        total += 1
        try:
            tokens = _prompt_tokens(record, part, tokenizer)
        except UnusableRow as unusable:
            broken += 1
            left_out[str(unusable)] += 1
            continue
        if len(tokens) > max_tokens:
            left_out[f"prompts of more than {max_tokens} tokens"] += 1
        elif (key := prompt_key(tokens)) in seen:
            left_out[DUPLICATE_PROMPT] += 1
        else:
            seen.add([key])
            yield tokens
    refused.update(left_out)
    if broken > MAX_BROKEN_FRACTION * total or not len(seen):
        reasons = "; ".join(f"{number:,} {reason}" for reason, number in left_out.items())
        raise CorpusError(
            f"{part.path}: "
            + (f"{broken:,} of {total:,} rows give no prompt; left out are {reasons}\n" if total else "it has no row\n")
            + "  wanted: at most 1 % of the rows broken, and one prompt\n"
            "  do: correct the file or `field`, or raise synthesize.max_instruction_tokens"
        )


def is_messages(value: Any) -> bool:
    """Whether a value is a list of chat messages, each with a role and a text, that ends with a user's."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, dict) for message in value)
        and all(isinstance(message.get("role"), str) and sound_text(message.get("content")) for message in value)
        and value[-1]["role"] == "user"
    )


def text_tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> Tokens:
    """The tokens of a text with the special tokens that the tokenizer adds; UnusableRow if there is none."""
    tokens = np.array(tokenizer(text).input_ids, np.int64)
    if not len(tokens):
        raise UnusableRow("prompts without a token")
    return tokens


def chat_tokens(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> Tokens:
    """Messages under the chat template, up to the beginning of the answer.

    TargetError if there is no template; UnusableRow if it refuses these messages.
    """
    if tokenizer.chat_template is None:
        raise TargetError(
            "the target's tokenizer has no chat template, and the prompts are chat messages\n"
            "  do: put chat_template.jinja next to the target's tokenizer, or give prompts as texts"
        )
    options: Any = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    try:
        encoded: Any = tokenizer.apply_chat_template(messages, **options)
        tokens = np.array(encoded["input_ids"], np.int64)
    except Exception as error:  # a template is a program: it raises errors of its own and any of Python's
        raise UnusableRow("messages that the target's chat template refuses") from error
    if not len(tokens):
        raise UnusableRow("prompts without a token")
    return tokens


def _prompt_tokens(record: Record, part: PromptSetPart, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    """The prompt of a record; UnusableRow if it contains none."""
    if record.fault is not None:
        raise UnusableRow(record.fault)
    value = record.content.get(part.field)
    messages: Any = value if is_messages(value) else []
    if not messages:
        text = sound_text(value)
        if text is None:
            raise UnusableRow(f"rows without a prompt in `{part.field}`")
        context = sound_text(record.content.get(part.context_field)) if part.context_field else None
        text = f"{text}\n\n{context}" if context else text
        if not part.chat:
            return text_tokens(tokenizer, f"{part.system}\n\n{text}" if part.system else text)
        messages = [{"role": "user", "content": text}]
    system = [{"role": "system", "content": part.system}] if part.system else []
    return chat_tokens(tokenizer, [*system, *messages])
