"""Magpie (Xu et al. 2024, arXiv:2406.08464): the target writes the instruction too, from its chat template's opening.

Given all that stands before a user's words, an instruction-tuned model writes what users ask. The instruction ends
where the template ends a user's turn; the template's own closing follows, and then the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from fastdraft.data.shards import Tokens
from fastdraft.synthesize.completions import Completion, Keys, Request, SamplingParams
from fastdraft.synthesize.prompts import prompt_key
from fastdraft.system.errors import TargetError

MARK = "What stands here is the user's"
SAMPLING = SamplingParams(1.0)
SHORTEST_TOKENS = 3


class Turn(NamedTuple):
    """What the chat template puts before and behind a user's words, up to where the answer begins."""

    opening: Tokens
    closing: Tokens

    @property
    def end(self) -> int:
        """The token that ends the user's turn."""
        return int(self.closing[0])


def turn_of(tokenizer: PreTrainedTokenizerFast) -> Turn:
    """The turn of a user in the target's chat template; TargetError where it has none, or it cannot be taken apart."""
    if tokenizer.chat_template is None:
        raise TargetError(
            "the target's tokenizer has no chat template, and magpie begins with its opening\n"
            "  do: leave `magpie` out of synthesize.mix, or put chat_template.jinja beside the target's tokenizer"
        )
    messages = [{"role": "user", "content": MARK}]
    text: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    opening, found, closing = str(text).partition(MARK)
    sides = [np.array(tokenizer(side, add_special_tokens=False).input_ids, np.int64) for side in (opening, closing)]
    if not found or not len(sides[0]) or not len(sides[1]):
        raise TargetError(
            "the target's chat template puts nothing before or behind a user's words, so they cannot be told apart\n"
            "  do: leave `magpie` out of synthesize.mix"
        )
    return Turn(*sides)


def instruction_requests(turn: Turn, count: int) -> Iterator[Request]:
    """Requests for instructions, all alike but for their index."""
    return (Request(turn.opening, SAMPLING, index) for index in range(count))


def magpie_prompts(
    turn: Turn, instructions: Iterable[Completion], count: int, refused: Counter[str]
) -> Iterator[Tokens]:
    """Up to `count` distinct prompts made of instructions; why others are none is counted in `refused`."""
    seen = Keys()
    for row in instructions:
        if len(seen) == count:
            return
        words = row.tokens[:-1]
        if int(row.tokens[-1]) != turn.end:
            refused["instructions without an end"] += 1
        elif len(words) < SHORTEST_TOKENS:
            refused[f"instructions of fewer than {SHORTEST_TOKENS} tokens"] += 1
        elif (key := prompt_key(words)) in seen:
            refused["instructions that were there before"] += 1
        else:
            seen.add([key])
            yield np.concatenate([turn.opening, words, turn.closing])
