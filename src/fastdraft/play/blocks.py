"""A generation block by block: what each target forward emits, and the mark of each token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from fastdraft.data.shards import Tokens
from fastdraft.evaluation.marked_tokens import ACCEPTED, BONUS, CORRECTED
from fastdraft.synthesize.completions import SamplingParams

# The mark of a target token in a block without drafted tokens.
PLAIN = "p"
MARK_NAMES = {ACCEPTED: "accepted", CORRECTED: "corrected", BONUS: "bonus", PLAIN: "plain"}
Side = Literal["plain", "drafted"]
SIDES: tuple[Side, ...] = ("plain", "drafted")


@dataclass(frozen=True)
class Request:
    """A prompt and the parameters of its continuation."""

    prompt: Tokens
    sampling: SamplingParams
    gamma: int
    max_new_tokens: int
    seed: int


class Block(NamedTuple):
    """Tokens that one target forward emitted. `seconds` is the time of this side alone since its start."""

    tokens: tuple[int, ...]
    accepted: int
    drafted: int
    seconds: float


class Player(Protocol):
    """A pair that decodes one prompt at a time.

    `interleaves`: the two sides can take turns, block by block. `keeps_distribution`: text sampled with the draft has
    the distribution of the target.
    """

    name: str
    interleaves: bool
    keeps_distribution: bool
    tokenizer: PreTrainedTokenizerFast
    context_tokens: int

    def blocks(self, request: Request, side: Side) -> Iterator[Block]:
        """The blocks of one side as they are generated. The caller may stop after any of them."""


def marks(block: Block) -> str:
    """A mark for each token: accepted ones, then the target's own: a bonus if all drafted tokens were accepted."""
    if not block.drafted:
        return PLAIN * len(block.tokens)
    # A text that ends in a drafted token has no token of the target after it.
    accepted = min(block.accepted, len(block.tokens))
    own = BONUS if block.accepted == block.drafted else CORRECTED
    return ACCEPTED * accepted + own * (len(block.tokens) - accepted)


def decode_both(player: Player, request: Request) -> Iterator[tuple[Side, Block]]:
    """The blocks of both sides.

    The side that has used less time goes on next, so that what the viewer sees is a race at half speed. If the engine
    cannot pause a generation, the plain side runs first.
    """
    generations = {side: player.blocks(request, side) for side in SIDES}
    seconds = dict.fromkeys(generations, 0.0)
    while generations:
        side = min(generations, key=lambda name: seconds[name]) if player.interleaves else next(iter(generations))
        block = next(generations[side], None)
        if block is None:
            del generations[side]
            continue
        seconds[side] = block.seconds
        yield side, block


@dataclass
class Transcript:
    """What one side has generated so far. `pieces` and `marks` have one entry per token."""

    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    marks: str = ""
    blocks: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """0 before the first block."""
        return len(self.tokens) / self.seconds if self.seconds else 0.0

    @property
    def block_efficiency(self) -> float:
        """Tokens per target forward; 0 before the first block."""
        return len(self.tokens) / self.blocks if self.blocks else 0.0


class Writer:
    """Appends blocks to a transcript. A character of several tokens is the piece of its last token."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt: Tokens) -> None:
        self.transcript = Transcript()
        self._tokenizer, self._stream = tokenizer.backend_tokenizer, DecodeStream(skip_special_tokens=False)
        for token in prompt.tolist():
            self._stream.step(self._tokenizer, token)

    def add(self, block: Block) -> None:
        """Append one block."""
        transcript = self.transcript
        transcript.tokens += block.tokens
        transcript.pieces += [self._stream.step(self._tokenizer, token) or "" for token in block.tokens]
        transcript.marks += marks(block)
        transcript.blocks += 1
        transcript.seconds = block.seconds
