"""`fastdraft play`: decode a prompt with and without the draft, side by side, in a web page or in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated

import typer

from fastdraft.cli import completion
from fastdraft.cli.choices import PLAYERS
from fastdraft.cli.options import screen
from fastdraft.system import limits

LOOPBACK = "127.0.0.1"
CODE = "def read_lines(path):\n"

Target = Annotated[
    str,
    typer.Argument(
        metavar="[TARGET]", help="Hub id, folder, GGUF file, `demo` or `smollm2`.", autocompletion=completion.models
    ),
]
Draft = Annotated[
    str | None,
    typer.Argument(
        metavar="[DRAFT]",
        help="Folder of a draft or its run, or a hub id. Default, for `demo` and `smollm2`: the packaged draft.",
        autocompletion=completion.models,
    ),
]
Engine = Annotated[
    str, typer.Option("--engine", help=f"{' or '.join(PLAYERS)}.", autocompletion=completion.among(PLAYERS))
]
Device = Annotated[str | None, typer.Option(help="Device, in the engine's naming. Default: the CPU.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Default: the first free port from 7860 on.")]
Host = Annotated[str, typer.Option(help="Address to listen on. Any other than loopback opens the page to the network.")]
InTerminal = Annotated[bool, typer.Option("--terminal", help="Print to the terminal instead of serving a page.")]
Prompt = Annotated[
    str | None,
    typer.Option(
        help="With --terminal: the text to continue, or a message. Default: the beginning of a function; with a chat "
        "template, messages from standard input up to an empty line.",
    ),
]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        help="With --terminal: put the prompt into the target's chat template. Default: if it has one.",
    ),
]
Gamma = Annotated[int, typer.Option(min=1, max=16, help="With --terminal: drafted tokens per block.")]
Temperature = Annotated[float, typer.Option(min=0, max=2, help="With --terminal: 0 is greedy.")]
TopP = Annotated[float, typer.Option("--top-p", min=0.05, max=1, help="With --terminal.")]
Tokens = Annotated[int, typer.Option(min=1, max=limits.SEQUENCE, help="With --terminal: length of the continuation.")]


def play(
    target: Target = "demo",
    draft: Draft = None,
    engine: Engine = "transformers",
    device: Device = None,
    port: Port = None,
    host: Host = LOOPBACK,
    terminal: InTerminal = False,
    prompt: Prompt = None,
    chat: Chat = None,
    gamma: Gamma = 4,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    tokens: Tokens = 96,
) -> None:
    """Decode a prompt with and without the draft and compare both. Without arguments: the pair `demo`."""
    from fastdraft.models.named_pairs import NAMES
    from fastdraft.play import page
    from fastdraft.play import terminal as terminal_player
    from fastdraft.play.open_pair import open_pair
    from fastdraft.system.errors import PlayError
    from fastdraft.system.optional_packages import need

    if engine not in PLAYERS:
        raise PlayError(f"--engine: found {engine}, wanted {' or '.join(PLAYERS)}\n  do: choose one of them")
    if not terminal:
        need("gradio", page.EXTRA)
        page.check_address(host, port)
    if draft is None and target not in NAMES:
        raise PlayError(
            f"no draft for {target}\n  do: fastdraft play {target} DRAFT; only {' and '.join(NAMES)} have one"
        )
    draft = draft or target
    player = open_pair(target, draft, engine, device)
    if terminal:
        chat = player.tokenizer.chat_template is not None if chat is None else chat
        conversation: list[page.Message] = []
        for text in [prompt or CODE] if prompt or not chat else _typed():
            conversation.append({"role": "user", "content": text})
            whole = conversation if chat else text
            request = page.make_request(player, whole, gamma, temperature, top_p, tokens)
            conversation.append(page.answer_message(player, terminal_player.show(player, request, screen)))
        return
    if host not in (LOOPBACK, "localhost", "::1"):
        print(f"warning: everybody who reaches {host} can use this page; it has no password", file=sys.stderr)
    page.serve(page.Pair(player, target, draft), host, port)


def _typed() -> Iterator[str]:
    """The lines of standard input, up to an empty one."""
    with suppress(EOFError):
        while line := input("you: ").strip():
            yield line
