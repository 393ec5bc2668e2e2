"""`bench`: a pair timed in an engine, with prompt lookup and without a draft beside it; what to set there."""

from __future__ import annotations

from typing import Annotated

import typer

from fastdraft.cli import completion
from fastdraft.cli.choices import ENGINES
from fastdraft.cli.options import AsJson, block_lengths, sampling_of_options, screen

WEIGHTS = "; ".join(f"{name}: {', '.join(weights)}" for name, weights in ENGINES.items())

Model = Annotated[
    str,
    typer.Argument(
        metavar="TARGET", help="Hub id, folder, or `demo`; or a finished export.", autocompletion=completion.models
    ),
]
Draft = Annotated[
    str,
    typer.Argument(
        metavar="DRAFT", help="Folder of a draft, of its run, or a hub id.", autocompletion=completion.models
    ),
]
Engine = Annotated[
    str, typer.Option("--engine", help=f"{', '.join(ENGINES)}.", autocompletion=completion.among(ENGINES))
]
Device = Annotated[str | None, typer.Option(help="As the engine names it, like CPU or GPU; otherwise its usual one.")]
Tasks = Annotated[
    list[str] | None,
    typer.Option(help="As for `evaluate`: NAME, NAME=FILE or FILE.jsonl; otherwise those of the draft's run."),
]
Gammas = Annotated[str, typer.Option(help="Block lengths, like 1-6,8.")]
Temperature = Annotated[list[str] | None, typer.Option(help="0 is greedy, which is always timed; otherwise 0,0.6.")]
Prompts = Annotated[int, typer.Option(min=1, help="Prompts of a task.")]
Tokens = Annotated[int, typer.Option(min=2, help="Tokens behind each prompt, at most.")]
Repeats = Annotated[int, typer.Option(min=1, help="Times that all arms are timed in turn.")]
Weights = Annotated[
    str | None,
    typer.Option(
        help=f"Precision of both; the first is usual, in transformers the faster one of fp32 and bf16. {WEIGHTS}."
    ),
]
DraftWeights = Annotated[str | None, typer.Option(help="Precision of the draft, where it is another one.")]
Save = Annotated[bool, typer.Option("--save", help="Keep the record beside the draft, for its model card.")]


def bench(
    target: Model,
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
    """Time a pair in an engine: without a draft, with prompt lookup, with the draft at each gamma; and what to set."""
    from fastdraft.bench.bench_pair import BenchOptions, save
    from fastdraft.bench.bench_pair import bench as timed
    from fastdraft.report import terminal_bench
    from fastdraft.system.progress import log_line

    options = BenchOptions(
        *(target, draft, engine, device, weights, draft_weights, tuple(tasks or ())),
        sampling_settings=sampling_of_options(temperature or ["0,0.6"]),
        gammas=block_lengths(gammas),
        prompts=prompts,
        tokens=tokens,
        repeats=repeats,
    )
    result = timed(options)
    if as_json:
        print(result.model_dump_json(indent=2))
    else:
        screen.print(terminal_bench.bench(result), highlight=False, markup=False)
    if keep:
        log_line(f"kept in {save(options, result)}")
