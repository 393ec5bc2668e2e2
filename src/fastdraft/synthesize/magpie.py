"""Magpie (Xu et al. 2024, arXiv:2406.08464): the target writes instructions too, from its chat template's opening.

After everything that precedes a user's text, an instruction-tuned model writes what a user might ask. The instruction
ends with the template's end-of-turn token; then come the rest of the template's closing and the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from fastdraft.data.shards import Tokens
from fastdraft.synthesize.completions import Completion, Request, SamplingParams
from fastdraft.synthesize.key_set import KeySet
from fastdraft.synthesize.prompts import prompt_key
from fastdraft.system.errors import TargetError

PLACEHOLDER = "What stands here is the user's"
SAMPLING = SamplingParams(1.0)
MIN_INSTRUCTION_TOKENS = 3


class Turn(NamedTuple):
    """What the chat template puts before a user's text, and after it up to the beginning of the answer."""

    opening: Tokens
    closing: Tokens

    @property
    def end(self) -> int:
        """The token that ends the user's turn."""
        return int(self.closing[0])


def user_turn(tokenizer: PreTrainedTokenizerFast) -> Turn:
    """A user's turn in the chat template; TargetError if there is no template, or it adds nothing before or after."""
    if tokenizer.chat_template is None:
        raise TargetError(
            "the target's tokenizer has no chat template, and magpie begins with its opening\n"
            "  do: leave `magpie` out of synthesize.mix, or put chat_template.jinja next to the target's tokenizer"
        )
    messages = [{"role": "user", "content": PLACEHOLDER}]
    try:
        text: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program: it raises errors of its own and any of Python's
        raise TargetError(
            f"the target's chat template refuses a user's message: {error}\n  do: leave `magpie` out of synthesize.mix"
        ) from error
    before, found, after = str(text).partition(PLACEHOLDER)
    opening, closing = (
        np.array(tokenizer(part, add_special_tokens=False).input_ids, np.int64) for part in (before, after)
    )
    if not found or not len(opening) or not len(closing):
        raise TargetError(
            "the target's chat template puts nothing before or after a user's text, so a turn has no beginning or end\n"
            "  do: leave `magpie` out of synthesize.mix"
        )
    return Turn(opening, closing)


def instruction_requests(turn: Turn, count: int) -> Iterator[Request]:
    """Requests for instructions, equal except for their index."""
    return (Request(turn.opening, SAMPLING, index) for index in range(count))


def magpie_prompts(
    turn: Turn, instructions: Iterable[Completion], count: int, refused: Counter[str]
) -> Iterator[Tokens]:
    """Up to `count` distinct prompts from instructions; the others are counted in `refused` by reason."""
    seen = KeySet()
    for row in instructions:
        if len(seen) == count:
            return
        text = row.tokens[:-1]
        if int(row.tokens[-1]) != turn.end:
            refused["instructions without an end"] += 1
        elif len(text) < MIN_INSTRUCTION_TOKENS:
            refused[f"instructions of fewer than {MIN_INSTRUCTION_TOKENS} tokens"] += 1
        elif (key := prompt_key(text)) in seen:
            refused["instructions that were there before"] += 1
        else:
            seen.add([key])
            yield np.concatenate([turn.opening, text, turn.closing])
