"""What is watched: a generation block by block, and what is known of each of its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from fastdraft.data.shards import Tokens
from fastdraft.evaluate.marked_tokens import ACCEPTED, BONUS, CORRECTED
from fastdraft.synthesize.completions import SamplingParams

# A token of the target's own, where nothing was drafted.
PLAIN = "p"
WORDS = {ACCEPTED: "accepted", CORRECTED: "corrected", BONUS: "bonus", PLAIN: "plain"}
Side = Literal["plain", "drafted"]
SIDES: tuple[Side, ...] = ("plain", "drafted")


@dataclass(frozen=True)
class Asked:
    """A prompt and how it is to be continued; greedy where the distribution is."""

    prompt: Tokens
    sampling: SamplingParams
    gamma: int
    tokens: int
    seed: int


class Block(NamedTuple):
    """What one target forward emitted, how many of it were drafted, and the seconds so far of this decoding alone."""

    tokens: tuple[int, ...]
    accepted: int
    drafted: int
    seconds: float


class Player(Protocol):
    """A pair that decodes one prompt at a time.

    `interleaves`: both sides can take turns, block by block. `keeps_distribution`: sampled with the draft, a text is
    distributed as the target's own.
    """

    name: str
    interleaves: bool
    keeps_distribution: bool
    tokenizer: PreTrainedTokenizerFast
    context_tokens: int

    def blocks(self, asked: Asked, side: Side) -> Iterator[Block]:
        """One side's blocks, as they come; it can be left at any of them."""


def marks(block: Block) -> str:
    """A letter for each token: the accepted ones, then the target's own, a bonus where nothing drafted was wrong."""
    if not block.drafted:
        return PLAIN * len(block.tokens)
    # A text that ends in a drafted token has none of the target's own behind it.
    accepted = min(block.accepted, len(block.tokens))
    own = BONUS if block.accepted == block.drafted else CORRECTED
    return ACCEPTED * accepted + own * (len(block.tokens) - accepted)


def race(player: Player, asked: Asked) -> Iterator[tuple[Side, Block]]:
    """Both sides' blocks. They take turns, so that the one that is behind by its own clock goes on: what is seen is a
    race at half its speed. Where the engine cannot stop in mid-text, the plain one comes first.
    """
    runs = {side: player.blocks(asked, side) for side in SIDES}
    clocks = dict.fromkeys(runs, 0.0)
    while runs:
        side = min(runs, key=lambda name: clocks[name]) if player.interleaves else next(iter(runs))
        block = next(runs[side], None)
        if block is None:
            del runs[side]
            continue
        clocks[side] = block.seconds
        yield side, block


@dataclass
class Transcript:
    """What one side has written so far."""

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
        """Tokens emitted per target forward; 0 before the first."""
        return len(self.tokens) / self.blocks if self.blocks else 0.0


class Writer:
    """Puts blocks into a transcript; a letter of several tokens stands at the last of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt: Tokens) -> None:
        self.transcript = Transcript()
        self._tokenizer, self._stream = tokenizer.backend_tokenizer, DecodeStream(skip_special_tokens=False)
        for token in prompt.tolist():
            self._stream.step(self._tokenizer, token)

    def add(self, block: Block) -> None:
        """One more block."""
        written = self.transcript
        written.tokens += block.tokens
        written.pieces += [self._stream.step(self._tokenizer, token) or "" for token in block.tokens]
        written.marks += marks(block)
        written.blocks += 1
        written.seconds = block.seconds
