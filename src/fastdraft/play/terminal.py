"""The same in a terminal, without a page: both decodings of one prompt, the marks in colour and shape."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from fastdraft.play.blocks import SIDES, WORDS, Asked, Player, Side, Transcript, Writer
from fastdraft.play.rendering import MEANINGS, STYLES, text_rich, verdict

TITLES = {"plain": "plain", "drafted": "with the draft"}


def show(player: Player, asked: Asked, screen: Console) -> None:
    """Each side's text as it comes, one behind the other, then what was measured."""
    transcripts: dict[Side, Transcript] = {}
    for side in SIDES:
        writer = Writer(player.tokenizer, asked.prompt)
        screen.rule(TITLES[side])
        for block in player.blocks(asked, side):
            before = len(writer.transcript.pieces)
            writer.add(block)
            written = writer.transcript
            screen.print(text_rich(written.pieces[before:], written.marks[before:]), end="", soft_wrap=True)
        written = transcripts[side] = writer.transcript
        screen.print(
            f"\n{written.tokens_per_second:.1f} tokens/s, {written.block_efficiency:.2f} tokens a target forward, "
            f"{len(written.tokens)} tokens in {written.blocks} blocks, {written.seconds:.1f} s",
            style="dim",
        )
    screen.rule()
    screen.print(
        verdict(transcripts["plain"], transcripts["drafted"], asked.sampling.greedy, player.keeps_distribution)
    )
    legend = [Text(WORDS[mark], STYLES[mark]).append(f" {meaning}  ", "dim") for mark, meaning in MEANINGS.items()]
    screen.print(*legend)
