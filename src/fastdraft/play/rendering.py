"""A transcript as HTML and as terminal text. Marks differ by style as well as by colour; text of models is escaped."""

from __future__ import annotations

from html import escape

from rich.text import Text

from fastdraft.evaluation.marked_tokens import ACCEPTED, BONUS, CORRECTED
from fastdraft.play.blocks import MARK_NAMES, PLAIN, Transcript
from fastdraft.report.formatting import visible

# Terminal styles. They differ without colours too.
STYLES = {ACCEPTED: "green", CORRECTED: "bold red underline", BONUS: "italic blue", PLAIN: ""}
MEANINGS = {
    ACCEPTED: "drafted and accepted",
    CORRECTED: "the draft was wrong: this is the target's token",
    BONUS: "the whole block was accepted: one more token of the target",
}
CSS = """
.fd-text { white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.8 ui-monospace, monospace; min-height: 12em;
  max-height: 60vh; overflow-y: auto; padding: 12px 14px; border: 1px solid var(--border-color-primary);
  border-radius: 10px; }
.fd-text .prompt { opacity: .62; }
.fd-text i, .fd-legend i { font-style: normal; border-radius: 3px; }
.fd-text i.a, .fd-legend i.a { background: rgba(60, 160, 90, .20); }
.fd-text i.c, .fd-legend i.c { background: rgba(210, 70, 50, .20); font-weight: 700; text-decoration: underline;
  text-decoration-thickness: 2px; text-underline-offset: 3px; }
.fd-text i.b, .fd-legend i.b { background: rgba(60, 110, 220, .20); text-decoration: underline dotted;
  text-decoration-thickness: 2px; text-underline-offset: 3px; }
.fd-numbers { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 22px;
  font-variant-numeric: tabular-nums; }
.fd-numbers b { font-size: 1.35em; }
.fd-legend { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 0; padding: 0; list-style: none; }
.fd-legend i { padding: 1px 6px; }
"""


def text_html(prompt: str, transcript: Transcript) -> str:
    """The prompt, and every token with its mark."""
    tokens = "".join(
        f'<i class="{mark}" title="{MARK_NAMES[mark]}">{escape(visible(piece))}</i>'
        for piece, mark in zip(transcript.pieces, transcript.marks, strict=True)
        if piece
    )
    return f'<div class="fd-text"><span class="prompt">{escape(visible(prompt))}</span>{tokens}</div>'


def numbers_html(transcript: Transcript) -> str:
    """Tokens per second, block efficiency, blocks."""
    cells = [
        f"<span><b>{transcript.tokens_per_second:.1f}</b> tokens/s</span>",
        f"<span><b>{transcript.block_efficiency:.2f}</b> tokens per target forward</span>",
        f"<span>{len(transcript.tokens)} tokens in {transcript.blocks} blocks, {transcript.seconds:.1f} s</span>",
    ]
    return f'<div class="fd-numbers">{"".join(cells)}</div>'


def legend_html() -> str:
    """The meaning of the marks."""
    rows = (f'<li><i class="{mark}">{MARK_NAMES[mark]}</i> {meaning}</li>' for mark, meaning in MEANINGS.items())
    return f'<ul class="fd-legend">{"".join(rows)}</ul>'


def verdict(plain: Transcript, drafted: Transcript, greedy: bool, keeps_distribution: bool) -> str:
    """The speed-up, and whether the two texts are equal (greedy) or have the same distribution (sampled)."""
    if not (plain.tokens and drafted.tokens):
        return ""
    ratio = drafted.tokens_per_second / plain.tokens_per_second
    speedup = f"With the draft {ratio:.2f} times the tokens per second."
    if not greedy and not keeps_distribution:
        return f"{speedup} With a draft, this engine does not sample from the target's distribution (docs/bench.md)."
    if not greedy:
        return f"{speedup} Both texts are samples from the same distribution and differ like two runs of the target."
    if plain.tokens == drafted.tokens:
        return f"{speedup} The texts are equal, token for token."
    pairs = enumerate(zip(plain.tokens, drafted.tokens, strict=False))
    equal_tokens = next((i for i, (a, b) in pairs if a != b), min(len(plain.tokens), len(drafted.tokens)))
    return (
        f"{speedup} The texts differ from token {equal_tokens + 1} on. Either the target's two best tokens are a near "
        f"tie there, or the engine rounds a block differently from a single token (`fastdraft bench` reports which)."
    )


def text_rich(pieces: list[str], marks: str) -> Text:
    """Tokens with their marks, for a terminal."""
    text = Text()
    for piece, mark in zip(pieces, marks, strict=True):
        text.append(visible(piece).replace("⏎\n", "\n"), STYLES[mark])
    return text
