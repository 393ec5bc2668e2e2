"""`fastdraft evaluate`: run the stage `evaluate` of a recipe (a .yaml file), or measure any draft on any tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fastdraft.cli import completion
from fastdraft.cli.choices import DEFAULT_TASKS, KINDS, PRECISIONS, TASKS
from fastdraft.cli.options import AsJson, Overrides, parse_gammas, parse_temperatures, screen
from fastdraft.cli.pipeline import Folder, check_agreement, stage_command
from fastdraft.system import limits
from fastdraft.system.errors import RecipeError

if TYPE_CHECKING:
    from fastdraft.system.precision import PrecisionChoice

PANEL = "With a DRAFT"
OF_RECIPES = {"overrides", "folder"}
OF_BOTH = {"subject", "as_json"}
# Options that affect how the target generates completions.
OF_GENERATION = {"keep", "prompts", "max_new_tokens", "batch_size", "precision"}

Subject = Annotated[
    str, typer.Argument(metavar="RECIPE|DRAFT", help="A .yaml file; or a draft: its folder, its run or a hub id.")
]
Target = Annotated[
    str | None,
    typer.Option(
        help="Hub id, folder, GGUF file, `demo` or `smollm2`. Default: the target of the draft's run.",
        rich_help_panel=PANEL,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Score on the completions in this folder, without the target.", rich_help_panel=PANEL),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        help=f"{', '.join(TASKS)}; NAME=FILE reads a task from a local file; FILE.jsonl: your own prompts. "
        f"Default: {', '.join(DEFAULT_TASKS)}; with --data all tasks in the folder.",
        autocompletion=completion.among(TASKS),
        rich_help_panel=PANEL,
    ),
]
Temperature = Annotated[
    list[str] | None,
    typer.Option(help="Temperatures; 0 is greedy. Default: 0,0.6; with --data all of them.", rich_help_panel=PANEL),
]
TopK = Annotated[
    int,
    typer.Option(
        min=0, max=limits.COUNT, help="Sample from the k most likely tokens; 0 disables this.", rich_help_panel=PANEL
    ),
]
TopP = Annotated[
    float, typer.Option(help="Sample from the smallest set of tokens with this probability.", rich_help_panel=PANEL)
]
Gammas = Annotated[str, typer.Option(help="Block lengths, like 1-16 or 2,4,8.", rich_help_panel=PANEL)]
Prompts = Annotated[
    int | None,
    typer.Option(
        min=1, max=limits.SAMPLE, help="Prompts per task. Default: the task's own number.", rich_help_panel=PANEL
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=limits.SEQUENCE,
        help="Maximum length of a completion. Default: the task's own.",
        rich_help_panel=PANEL,
    ),
]
Compare = Annotated[
    str | None, typer.Option(help="Another draft, measured on the same completions.", rich_help_panel=PANEL)
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify", help="Also run real speculative decoding. Exit code 1 if it disagrees.", rich_help_panel=PANEL
    ),
]
VerifyPrompts = Annotated[
    int, typer.Option(min=1, max=limits.SAMPLE, help="Prompts per task for the verification.", rich_help_panel=PANEL)
]
VerifyGamma = Annotated[
    int, typer.Option(min=1, max=limits.GAMMA, help="Block length of the verification.", rich_help_panel=PANEL)
]
Keep = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the target's completions. Default: ~/.cache/fastdraft/completions/DIGEST_OF_TARGET.",
        rich_help_panel=PANEL,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="Precision in which the target computes: fp32, bf16, or `auto`: the faster one on the device.",
        rich_help_panel=PANEL,
        autocompletion=completion.among(PRECISIONS),
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, max=limits.BATCH, help="Prompts that the target answers at once.", rich_help_panel=PANEL)
]
Resamples = Annotated[
    int, typer.Option(min=1, max=limits.SAMPLE, help="Bootstrap resamples of an interval.", rich_help_panel=PANEL)
]
Seed = Annotated[
    int, typer.Option(min=0, max=limits.SEED, help="Seed of sampling and of resampling.", rich_help_panel=PANEL)
]
Device = Annotated[
    str,
    typer.Option(help="cpu, cuda, xpu, hpu, or `auto`.", rich_help_panel=PANEL, autocompletion=completion.among(KINDS)),
]


def evaluate(
    context: typer.Context,
    subject: Subject,
    overrides: Overrides = None,
    folder: Folder = None,
    target: Target = None,
    data: Data = None,
    tasks: Tasks = None,
    temperature: Temperature = None,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    gammas: Gammas = "1-16",
    prompts: Prompts = None,
    max_new_tokens: MaxNewTokens = None,
    compare: Compare = None,
    verify: Verify = False,
    verify_prompts: VerifyPrompts = 16,
    verify_gamma: VerifyGamma = 4,
    keep: Keep = None,
    batch_size: BatchSize = 64,
    precision: Precision = "auto",
    resamples: Resamples = 1000,
    seed: Seed = 7,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure drafts. With a RECIPE: run only its stage `evaluate`. The stages that it needs must be done.
    With a DRAFT (a folder or hub id): measure it on any tasks. The target's completions are kept for other drafts.
    """
    if Path(subject).suffix in (".yaml", ".yml") and not Path(subject).is_dir():
        _refuse(context, set(context.params) - OF_RECIPES - OF_BOTH, subject, "a recipe", "a draft")
        stage_command("evaluate")(Path(subject), overrides, folder, as_json)
        return
    _refuse(context, OF_RECIPES, subject, "a draft", "a recipe")
    _check(context, data, compare, subject, top_p, precision)
    import fastdraft
    from fastdraft.report import terminal_run, terminal_scores

    scores = fastdraft.evaluate(
        subject,
        target=target,
        tasks=tasks,
        temperatures=parse_temperatures(temperature) if temperature else None,
        top_k=top_k,
        top_p=top_p,
        gammas=parse_gammas(gammas),
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        compare=compare,
        verify=verify,
        verify_prompts=verify_prompts,
        verify_gamma=verify_gamma,
        data=data,
        keep=keep,
        batch_size=batch_size,
        precision=cast("PrecisionChoice", precision),  # checked by `_check`
        resamples=resamples,
        seed=seed,
        device=device,
    )
    if as_json:
        print(json.dumps(scores.model_dump(mode="json"), indent=2, ensure_ascii=False))
    else:
        screen.print(terminal_scores.scores(scores))
        if scores.verified:
            screen.print(terminal_run.verified(scores.verified))
    check_agreement(scores.verified)


def _given(context: typer.Context) -> set[str]:
    """Names of the parameters that the command line sets."""
    sources: dict[str, Any] = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _refuse(context: typer.Context, refused: set[str], subject: str, kind: str, other_kind: str) -> None:
    """RecipeError if an option is given that `other_kind` of subject takes and this `kind` does not."""
    wrong = sorted(_given(context) & refused)
    if wrong:
        options = ", ".join("KEY=VALUE" if name == "overrides" else f"--{name.replace('_', '-')}" for name in wrong)
        raise RecipeError(
            f"{subject} is {kind}; only {other_kind} takes {options}\n  do: leave {options} out, or name {other_kind}"
        )


def _check(
    context: typer.Context, data: Path | None, compare: str | None, subject: str, top_p: float, precision: str
) -> None:
    """RecipeError for values that exclude each other or are out of range."""
    if data is not None:
        if unused := _given(context) & OF_GENERATION:
            raise RecipeError(
                f"--data {data} scores existing completions; --{min(unused).replace('_', '-')} is for generating them\n"
                f"  do: leave one of the two out"
            )
        if not context.params["temperature"] and _given(context) & {"top_k", "top_p"}:
            raise RecipeError("--top-k and --top-p select nothing without --temperature\n  do: add --temperature")
    if compare == subject:
        raise RecipeError(f"--compare: found {compare}, the draft itself\n  do: name another draft")
    if not 0 < top_p <= 1:
        raise RecipeError(f"--top-p: found {top_p:g}, wanted more than 0 and at most 1\n  do: write it like 0.9")
    if precision not in PRECISIONS:
        raise RecipeError(f"--precision: found {precision}, wanted one of {', '.join(PRECISIONS)}\n  do: use auto")
