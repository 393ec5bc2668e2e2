"""The page: a prompt, and both decodings as they come. One generation at a time, the rest wait in a queue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from time import monotonic
from typing import Any

import torch

from fastdraft.play.blocks import SIDES, Asked, Player, Side, Writer, race
from fastdraft.play.rendering import CSS, legend_html, numbers_html, text_html, verdict
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.system.errors import FastDraftError, PlayError
from fastdraft.system.optional_packages import need

EXTRA = "play"
LOOPBACK = "127.0.0.1"
MAX_TOKENS, MAX_PROMPT_LETTERS, MAX_WAITING, MAX_GAMMA = 512, 20_000, 64, 16
# What is shown anew each time are both whole texts.
EVERY_SECONDS = 0.05
TITLES = {"plain": "Plain", "drafted": "With the draft"}
TURNS = "The two take turns, block by block; each is timed by its own seconds."
ONE_BY_ONE = "The engine runs one text to its end, then the other; each is timed by its own seconds."

# What the page shows at a moment: both texts, both rows of numbers, the sentence below them.
Shown = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Pair:
    """A player, and how the page calls its models."""

    player: Player
    target: str
    draft: str


def asked_of(player: Player, prompt: str, gamma: float, temperature: float, top_p: float, tokens: float) -> Asked:
    """What the controls say; PlayError where it cannot be done."""
    if not prompt.strip():
        raise PlayError("the prompt is empty\n  do: write one")
    if len(prompt) > MAX_PROMPT_LETTERS:
        raise PlayError(f"the prompt has {len(prompt)} letters, at most {MAX_PROMPT_LETTERS}\n  do: shorten it")
    ids = player.tokenizer(prompt, return_tensors="np").input_ids[0].astype("int64")
    room = player.context_tokens - len(ids) - int(tokens) - int(gamma)
    if len(ids) == 0 or room < 0:
        raise PlayError(
            f"the prompt has {len(ids)} tokens; with {int(tokens)} behind it the context of {player.context_tokens} is "
            f"exceeded\n  do: shorten the prompt or the length"
        )
    sampling = SamplingParams(float(temperature), 0, float(top_p)) if temperature else SamplingParams(0.0)
    return Asked(ids, sampling, int(gamma), int(tokens), int(torch.randint(1 << 31, ()).item()))


def moments(player: Player, prompt: str, asked: Asked) -> Iterator[Shown]:
    """What the page shows while blocks come, and at the end."""
    writers = {side: Writer(player.tokenizer, asked.prompt) for side in SIDES}
    shown = 0.0
    for side, block in race(player, asked):
        writers[side].add(block)
        if monotonic() - shown > EVERY_SECONDS:
            yield _shown(prompt, writers, None)
            shown = monotonic()
    yield _shown(prompt, writers, (asked.sampling.greedy, player.keeps_distribution))


def _shown(prompt: str, writers: dict[Side, Writer], ended: tuple[bool, bool] | None) -> Shown:
    """`ended`: what the verdict hangs on, once it can be said."""
    plain, drafted = (writers[side].transcript for side in SIDES)
    said = verdict(plain, drafted, *ended) if ended else "…"
    return text_html(prompt, plain), text_html(prompt, drafted), numbers_html(plain), numbers_html(drafted), said


def build(pair: Pair) -> Any:
    """The page as gradio's Blocks; MissingExtra where gradio is not installed."""
    gradio = need("gradio", EXTRA)
    with gradio.Blocks(title="FastDraft", analytics_enabled=False) as page:
        gradio.Markdown(
            f"# FastDraft\n`{pair.target}` alone, and with the draft `{pair.draft}`, in {pair.player.name}."
        )
        prompt = gradio.Textbox(label="Prompt", lines=4, max_length=MAX_PROMPT_LETTERS, elem_id="prompt")
        with gradio.Row():
            gamma = gradio.Slider(1, MAX_GAMMA, 4, step=1, label="Gamma", info="tokens drafted at a time")
            temperature = gradio.Slider(0, 2, 0, step=0.1, label="Temperature", info="0 is greedy")
            top_p = gradio.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="1 keeps all")
            tokens = gradio.Slider(1, MAX_TOKENS, 96, step=1, label="Tokens", info="length of the continuation")
        with gradio.Row():
            run = gradio.Button("Decode", variant="primary", elem_id="run")
            stop = gradio.Button("Stop", elem_id="stop")
        said = gradio.Markdown(elem_id="verdict")
        texts, numbers = [], []
        with gradio.Row():
            for side in SIDES:
                with gradio.Column():
                    gradio.Markdown(f"### {TITLES[side]}")
                    numbers.append(gradio.HTML(elem_id=f"{side}-numbers"))
                    texts.append(gradio.HTML(elem_id=f"{side}-text"))
        gradio.HTML(legend_html())
        gradio.Markdown(TURNS if pair.player.interleaves else ONE_BY_ONE)
        began = run.click(
            _answer(pair.player, gradio),
            [prompt, gamma, temperature, top_p, tokens],
            [*texts, *numbers, said],
            concurrency_limit=1,
            show_progress="minimal",
        )
        stop.click(None, cancels=[began])
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    return page


def _answer(player: Player, gradio: Any) -> Any:
    """What the button does; whatever fails is said on the page, and the next prompt works."""

    def answer(prompt: str, gamma: float, temperature: float, top_p: float, tokens: float) -> Iterator[Shown]:
        try:
            yield from moments(player, prompt, asked_of(player, prompt, gamma, temperature, top_p, tokens))
        except FastDraftError as error:
            raise gradio.Error(escape(str(error)), print_exception=False) from error
        except Exception as error:
            raise gradio.Error(escape(f"{player.name} failed: {type(error).__name__}: {error}")) from error

    return answer


def serve(pair: Pair, host: str, port: int | None, wait: bool = True) -> Any:
    """Show the page until it is stopped; PlayError where the port is taken."""
    page = build(pair)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=not wait,
            css=CSS,
            footer_links=[],
        )
    except OSError as error:
        raise PlayError(
            f"no page on {host}, port {port or 'any of 7860 to 7959'}: {error}\n  do: choose another --port"
        ) from error
    return page
