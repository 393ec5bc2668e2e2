"""`play`: a page, or a terminal, where a prompt is decoded plainly and with the draft, side by side."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fastdraft.cli import completion
from fastdraft.cli.choices import PLAYERS
from fastdraft.cli.options import screen

LOOPBACK = "127.0.0.1"
PROMPT = "def read_lines(path):\n"

Target = Annotated[
    str,
    typer.Argument(metavar="[TARGET]", help="Hub id, folder, or `demo`.", autocompletion=completion.models),
]
Draft = Annotated[
    str,
    typer.Argument(
        metavar="[DRAFT]", help="Folder of a draft, of its run, a hub id, or `demo`.", autocompletion=completion.models
    ),
]
Engine = Annotated[
    str, typer.Option("--engine", help=f"{' or '.join(PLAYERS)}.", autocompletion=completion.among(PLAYERS))
]
Device = Annotated[str | None, typer.Option(help="As the engine names it; otherwise the processor.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Otherwise the first free one from 7860 on.")]
Host = Annotated[str, typer.Option(help="Address to listen on; others than loopback let the network in.")]
InTerminal = Annotated[bool, typer.Option("--terminal", help="Here, without a page.")]
Prompt = Annotated[str, typer.Option(help="With --terminal: what is continued.")]
Gamma = Annotated[int, typer.Option(min=1, max=16, help="With --terminal: tokens drafted at a time.")]
Temperature = Annotated[float, typer.Option(min=0, max=2, help="With --terminal: 0 is greedy.")]
TopP = Annotated[float, typer.Option("--top-p", min=0.05, max=1, help="With --terminal.")]
Tokens = Annotated[int, typer.Option(min=1, help="With --terminal: length of the continuation.")]


def play(
    target: Target = "demo",
    draft: Draft = "demo",
    engine: Engine = "transformers",
    device: Device = None,
    port: Port = None,
    host: Host = LOOPBACK,
    terminal: InTerminal = False,
    prompt: Prompt = PROMPT,
    gamma: Gamma = 4,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    tokens: Tokens = 96,
) -> None:
    """Watch both decodings of a prompt: plain, and with the draft; without arguments those of the demo."""
    from fastdraft.play import page
    from fastdraft.play import terminal as screened
    from fastdraft.play.open_pair import open_pair
    from fastdraft.system.errors import PlayError
    from fastdraft.system.optional_packages import need

    if engine not in PLAYERS:
        raise PlayError(f"no playground in `{engine}`\n  wanted: {' or '.join(PLAYERS)}\n  do: choose one of these")
    if not terminal:
        need("gradio", page.EXTRA)
    player = open_pair(target, draft, engine, device)
    if terminal:
        screened.show(player, page.asked_of(player, prompt, gamma, temperature, top_p, tokens), screen)
        return
    if host not in (LOOPBACK, "localhost", "::1"):
        print(f"warning: everybody who reaches {host} can use this page; it asks for no password", file=sys.stderr)
    page.serve(page.Pair(player, target, draft), host, port)
