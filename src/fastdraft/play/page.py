"""The web page of the playground. It decodes one prompt at a time; further requests wait in a queue."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from time import monotonic
from typing import Any, NamedTuple

import torch

from fastdraft.data.record_files import UnusableRow
from fastdraft.exporters.markdown import code
from fastdraft.play.blocks import SIDES, Player, Request, Side, Transcript, Writer, decode_both
from fastdraft.play.rendering import CSS, legend_html, numbers_html, text_html, verdict
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.synthesize.prompt_sets import chat_tokens, text_tokens
from fastdraft.system.errors import FastDraftError, PlayError
from fastdraft.system.optional_packages import need

EXTRA = "play"
LOOPBACK = "127.0.0.1"
MAX_NEW_TOKENS, MAX_PROMPT_CHARACTERS, MAX_WAITING, MAX_GAMMA = 512, 20_000, 64, 16
MIN_TOP_P = 0.05
# Each update sends both texts as a whole, so updates are limited to one per this interval.
UPDATE_SECONDS = 0.05
TITLES = {"plain": "Plain", "drafted": "With the draft"}
INTERLEAVED = "The two sides take turns, block by block. Each is timed by its own seconds."
ONE_BY_ONE = "The engine runs one side to its end, then the other. Each is timed by its own seconds."


Message = dict[str, str]


class PageState(NamedTuple):
    """Values of the page's outputs, in the order of the click handler: texts, numbers, verdict, messages so far."""

    plain_text: str
    drafted_text: str
    plain_numbers: str
    drafted_numbers: str
    verdict: str
    conversation: list[Message]


@dataclass(frozen=True)
class Pair:
    """A player, and the names of its models on the page."""

    player: Player
    target: str
    draft: str


def make_request(
    player: Player, prompt: str | list[Message], gamma: float, temperature: float, top_p: float, max_new_tokens: float
) -> Request:
    """A request from the values of the controls, with a random seed; PlayError if it cannot be decoded.

    A text is continued. Messages, the last one a user's, go through the target's chat template, which must exist.
    """
    wanted = {"gamma": (1, MAX_GAMMA, gamma), "temperature": (0, 2, temperature), "top-p": (MIN_TOP_P, 1, top_p)}
    wanted["tokens"] = (1, player.context_tokens, max_new_tokens)
    for name, (low, high, value) in wanted.items():
        if not low <= value <= high:  # not a number either
            raise PlayError(f"{name}: found {value:g}, wanted {low:g} to {high:,}\n  do: choose a number between them")
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    if not text.strip():
        raise PlayError("the prompt is empty\n  do: write one")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise PlayError(
            f"the prompt has {len(text)} characters, wanted at most {MAX_PROMPT_CHARACTERS}\n  do: shorten it"
        )
    try:
        if isinstance(prompt, str):
            ids = text_tokens(player.tokenizer, prompt)
        else:
            ids = chat_tokens(player.tokenizer, prompt)
    except UnusableRow as error:
        raise PlayError(f"the prompt is one of the {error}\n  do: change it, or decode it without chat") from error
    if len(ids) + int(max_new_tokens) + int(gamma) > player.context_tokens:
        raise PlayError(
            f"the prompt has {len(ids)} tokens; with {int(max_new_tokens)} more they exceed the context of "
            f"{player.context_tokens}\n  do: shorten the prompt or the continuation, or begin a new conversation"
        )
    return Request(
        prompt=ids,
        sampling=SamplingParams(float(temperature), 0, float(top_p)) if temperature else SamplingParams(0.0),
        gamma=int(gamma),
        max_new_tokens=int(max_new_tokens),
        seed=int(torch.randint(1 << 31, ()).item()),
    )


def page_states(player: Player, prompt: str | list[Message], request: Request) -> Iterator[PageState]:
    """States of the page while blocks arrive; the last one has the verdict, and the answer in the conversation."""
    conversation = [] if isinstance(prompt, str) else prompt
    prompt_text = prompt if isinstance(prompt, str) else "".join(f"{m['role']}: {m['content']}\n\n" for m in prompt)
    writers = {side: Writer(player.tokenizer, request.prompt) for side in SIDES}
    updated = 0.0
    for side, block in decode_both(player, request):
        writers[side].add(block)
        if monotonic() - updated > UPDATE_SECONDS:
            yield _page_state(prompt_text, writers, "…", conversation)
            updated = monotonic()
    plain, drafted = (writers[side].transcript for side in SIDES)
    comparison = verdict(plain, drafted, request.sampling.greedy, player.keeps_distribution)
    if conversation:
        conversation = [*conversation, answer_message(player, drafted)]
    yield _page_state(prompt_text, writers, comparison, conversation)


def answer_message(player: Player, transcript: Transcript) -> Message:
    """What was generated, as the assistant's message of a conversation."""
    content = player.tokenizer.decode(transcript.tokens, skip_special_tokens=True)
    return {"role": "assistant", "content": str(content)}


def _page_state(
    prompt_text: str, writers: dict[Side, Writer], verdict_text: str, conversation: list[Message]
) -> PageState:
    plain, drafted = (writers[side].transcript for side in SIDES)
    return PageState(
        plain_text=text_html(prompt_text, plain),
        drafted_text=text_html(prompt_text, drafted),
        plain_numbers=numbers_html(plain),
        drafted_numbers=numbers_html(drafted),
        verdict=verdict_text,
        conversation=conversation,
    )


def build(pair: Pair) -> Any:
    """The page as a gradio.Blocks; MissingExtra if gradio is not installed."""
    gradio = need("gradio", EXTRA)
    with gradio.Blocks(title="FastDraft", analytics_enabled=False) as page:
        gradio.Markdown(
            f"# FastDraft\n{code(pair.target)} alone, and with the draft {code(pair.draft)}, in {pair.player.name}."
        )
        prompt = gradio.Textbox(label="Prompt", lines=4, max_length=MAX_PROMPT_CHARACTERS, elem_id="prompt")
        has_template = pair.player.tokenizer.chat_template is not None
        chat = gradio.Checkbox(
            has_template,
            label="Chat",
            info="the prompt is the next message of a conversation, under the target's chat template",
            visible=has_template,
            elem_id="chat",
        )
        with gradio.Row():
            gamma = gradio.Slider(1, MAX_GAMMA, 4, step=1, label="Gamma", info="drafted tokens per block")
            temperature = gradio.Slider(0, 2, 0, step=0.1, label="Temperature", info="0 is greedy")
            top_p = gradio.Slider(MIN_TOP_P, 1, 1, step=0.05, label="Top-p", info="1 keeps all tokens")
            tokens = gradio.Slider(1, MAX_NEW_TOKENS, 96, step=1, label="Tokens", info="length of the continuation")
        with gradio.Row():
            run = gradio.Button("Decode", variant="primary", elem_id="run")
            stop = gradio.Button("Stop", elem_id="stop")
            fresh = gradio.Button("New conversation", visible=has_template, elem_id="new")
        conversation = gradio.State([])
        verdict_box = gradio.Markdown(elem_id="verdict")
        texts, numbers = [], []
        with gradio.Row():
            for side in SIDES:
                with gradio.Column():
                    gradio.Markdown(f"### {TITLES[side]}")
                    numbers.append(gradio.HTML(elem_id=f"{side}-numbers"))
                    texts.append(gradio.HTML(elem_id=f"{side}-text"))
        gradio.HTML(legend_html())
        gradio.Markdown(INTERLEAVED if pair.player.interleaves else ONE_BY_ONE)
        click = run.click(
            _click_handler(pair.player, gradio),
            [prompt, chat, conversation, gamma, temperature, top_p, tokens],
            [*texts, *numbers, verdict_box, conversation],
            concurrency_limit=1,
            show_progress="minimal",
        )
        stop.click(None, cancels=[click])
        fresh.click(lambda: ("", []), None, [prompt, conversation])
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    return page


def _click_handler(player: Player, gradio: Any) -> Any:
    """The handler of the button. The page shows every error and stays usable."""

    def answer(
        prompt: str,
        chat: bool,
        conversation: list[Message],
        gamma: float,
        temperature: float,
        top_p: float,
        tokens: float,
    ) -> Iterator[PageState]:
        whole = [*conversation, {"role": "user", "content": prompt}] if chat else prompt
        try:
            request = make_request(player, whole, gamma, temperature, top_p, tokens)
            yield from page_states(player, whole, request)
        except FastDraftError as error:
            raise gradio.Error(escape(str(error)), print_exception=False) from error
        except Exception as error:
            raise gradio.Error(escape(f"{player.name} failed: {type(error).__name__}: {error}")) from error

    return answer


def check_address(host: str, port: int | None) -> None:
    """PlayError if no server can listen there. gradio itself would wait for minutes for a host that does not exist."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except (OSError, UnicodeError) as error:
        raise PlayError(
            f"cannot serve on {host}, port {port or 'any'}: {error}\n  do: choose another --host or --port"
        ) from error


def serve(pair: Pair, host: str, port: int | None, wait: bool = True) -> Any:
    """Serve the page, until it is stopped if `wait`; PlayError if the port is in use."""
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
            f"cannot serve on {host}, port {port or '7860 to 7959'}: {error}\n  do: choose another --port"
        ) from error
    return page
