"""`fastdraft bench`: time a pair in an engine against decoding without a draft and prompt lookup; advise settings."""

from __future__ import annotations

from typing import Annotated

import typer

from fastdraft.cli import completion
from fastdraft.cli.choices import ENGINES
from fastdraft.cli.options import AsJson, parse_gammas, parse_temperatures, screen
from fastdraft.system import limits

WEIGHTS = "; ".join(f"{name}: {', '.join(weights)}" for name, weights in ENGINES.items())

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="Hub id, folder, GGUF file, `demo` or `smollm2`; or a finished export.",
        autocompletion=completion.models,
    ),
]
Draft = Annotated[
    str,
    typer.Argument(
        metavar="DRAFT", help="Folder of a draft or of its run, or a hub id.", autocompletion=completion.models
    ),
]
Engine = Annotated[
    str, typer.Option("--engine", help=f"{', '.join(ENGINES)}.", autocompletion=completion.among(ENGINES))
]
Device = Annotated[
    str | None, typer.Option(help="Device, in the engine's naming: CPU, GPU. Default: the engine's usual device.")
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(help="As in `evaluate`: NAME, NAME=FILE or FILE.jsonl. Default: the tasks of the draft's run."),
]
Gammas = Annotated[str, typer.Option(help="Block lengths, like 1-6,8.")]
Temperature = Annotated[
    list[str] | None, typer.Option(help="Temperatures. 0 is greedy, which is always timed. Default: 0,0.6.")
]
Prompts = Annotated[int, typer.Option(min=1, max=limits.SAMPLE, help="Prompts per task.")]
Tokens = Annotated[int, typer.Option(min=2, max=limits.SEQUENCE, help="Maximum number of tokens generated per prompt.")]
Repeats = Annotated[
    int, typer.Option(min=1, max=limits.SAMPLE, help="How often all decoding methods are timed in turn.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Precision of both models. Default: the first one; in transformers the faster of fp32 and bf16. "
        f"{WEIGHTS}."
    ),
]
DraftWeights = Annotated[str | None, typer.Option(help="Precision of the draft, if it differs from --weights.")]
Save = Annotated[bool, typer.Option("--save", help="Save the result next to the draft, for its model card.")]


def bench(
    target: Target,
    draft: Draft,
    engine: Engine = "openvino",
    device: Device = None,
    tasks: Tasks = None,
    gammas: Gammas = "1-6,8",
    temperature: Temperature = None,
    prompts: Prompts = 4,
    tokens: Tokens = 64,
    repeats: Repeats = 3,
    weights: Weights = None,
    draft_weights: DraftWeights = None,
    keep: Save = False,
    as_json: AsJson = False,
) -> None:
    """Time a pair in an engine: without a draft, with prompt lookup, with the draft at each gamma. Advise settings."""
    import fastdraft
    from fastdraft.report import terminal_bench

    result = fastdraft.bench(
        target,
        draft,
        engine=engine,
        device=device,
        weights=weights,
        draft_weights=draft_weights,
        tasks=tasks or (),
        temperatures=parse_temperatures(temperature or ["0,0.6"]),
        gammas=parse_gammas(gammas),
        prompts=prompts,
        tokens=tokens,
        repeats=repeats,
        save=keep,
    )
    if as_json:
        print(result.model_dump_json(indent=2))
    else:
        screen.print(terminal_bench.bench(result), highlight=False)
