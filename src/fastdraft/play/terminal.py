"""The playground in the terminal: both continuations of one prompt, with marks by colour and style."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from fastdraft.play.blocks import MARK_NAMES, SIDES, Player, Request, Side, Transcript, Writer
from fastdraft.play.rendering import MEANINGS, STYLES, text_rich, verdict

TITLES = {"plain": "plain", "drafted": "with the draft"}


def show(player: Player, request: Request, screen: Console) -> Transcript:
    """Print the text of each side as it is generated, one side after the other, then the comparison.

    Returns the text with the draft.
    """
    transcripts: dict[Side, Transcript] = {}
    for side in SIDES:
        writer = Writer(player.tokenizer, request.prompt)
        transcript = transcripts[side] = writer.transcript
        screen.rule(TITLES[side])
        for block in player.blocks(request, side):
            printed = len(transcript.pieces)
            writer.add(block)
            screen.print(text_rich(transcript.pieces[printed:], transcript.marks[printed:]), end="", soft_wrap=True)
        screen.print(
            f"\n{transcript.tokens_per_second:.1f} tokens/s, {transcript.block_efficiency:.2f} tokens per target "
            f"forward, {len(transcript.tokens)} tokens in {transcript.blocks} blocks, {transcript.seconds:.1f} s",
            style="dim",
        )
    screen.rule()
    screen.print(
        verdict(transcripts["plain"], transcripts["drafted"], request.sampling.greedy, player.keeps_distribution)
    )
    legend = [Text(MARK_NAMES[mark], STYLES[mark]).append(f" {meaning}  ", "dim") for mark, meaning in MEANINGS.items()]
    screen.print(*legend)
    return transcripts["drafted"]
