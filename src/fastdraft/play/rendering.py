"""A transcript as HTML and on a terminal: marks by shape as well as by colour, texts shown and never obeyed."""

from __future__ import annotations

from html import escape

from rich.text import Text

from fastdraft.evaluate.marked_tokens import ACCEPTED, BONUS, CORRECTED
from fastdraft.play.blocks import PLAIN, WORDS, Transcript
from fastdraft.report.formatting import visible

# On a terminal: by shape first, for those who see no colour.
STYLES = {ACCEPTED: "green", CORRECTED: "bold red underline", BONUS: "italic blue", PLAIN: ""}
MEANINGS = {
    ACCEPTED: "drafted, and kept",
    CORRECTED: "the draft was wrong: the target's own token",
    BONUS: "a whole block was right: one token on top",
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
    """The prompt, and each token marked."""
    tokens = "".join(map(_token, transcript.pieces, transcript.marks))
    return f'<div class="fd-text"><span class="prompt">{escape(visible(prompt))}</span>{tokens}</div>'


def _token(piece: str, mark: str) -> str:
    return f'<i class="{mark}" title="{WORDS[mark]}">{escape(visible(piece))}</i>' if piece else ""


def numbers_html(transcript: Transcript) -> str:
    """Tokens per second, block efficiency, blocks."""
    cells = [
        f"<span><b>{transcript.tokens_per_second:.1f}</b> tokens/s</span>",
        f"<span><b>{transcript.block_efficiency:.2f}</b> tokens a target forward</span>",
        f"<span>{len(transcript.tokens)} tokens in {transcript.blocks} blocks, {transcript.seconds:.1f} s</span>",
    ]
    return f'<div class="fd-numbers">{"".join(cells)}</div>'


def legend_html() -> str:
    """What the marks mean."""
    rows = (f'<li><i class="{mark}">{WORDS[mark]}</i> {meaning}</li>' for mark, meaning in MEANINGS.items())
    return f'<ul class="fd-legend">{"".join(rows)}</ul>'


def verdict(plain: Transcript, drafted: Transcript, greedy: bool, keeps_distribution: bool) -> str:
    """What the two sides say of each other, in a sentence; `keeps_distribution` is the player's."""
    if not (plain.tokens and drafted.tokens):
        return ""
    ratio = drafted.tokens_per_second / plain.tokens_per_second
    words = f"With the draft {ratio:.2f} times the tokens per second."
    if not greedy and not keeps_distribution:
        return (
            f"{words} This engine samples with a draft from another distribution than the target's own (docs/bench.md)."
        )
    if not greedy:
        return f"{words} Both texts are samples of the same distribution; they differ as two runs of the target would."
    equal = plain.tokens == drafted.tokens
    shared = next(
        (place for place, pair in enumerate(zip(plain.tokens, drafted.tokens, strict=False)) if pair[0] != pair[1]),
        min(len(plain.tokens), len(drafted.tokens)),
    )
    if equal:
        return f"{words} The texts are equal, token for token."
    return (
        f"{words} The texts part at token {shared + 1}: there the target's best two tokens are a near tie, or the "
        f"engine rounds a block otherwise than a single token (`fastdraft bench` tells which)."
    )


def text_rich(pieces: list[str], marks: str) -> Text:
    """Tokens for a terminal."""
    found = Text()
    for piece, mark in zip(pieces, marks, strict=True):
        found.append(visible(piece).replace("⏎\n", "\n"), STYLES[mark])
    return found
