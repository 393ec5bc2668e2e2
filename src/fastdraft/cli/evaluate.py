"""`evaluate`: the stage of a recipe, or any draft on any tasks; a .yaml file says which of the two is meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fastdraft.cli import completion
from fastdraft.cli.choices import KINDS, PRECISIONS, TASKS, USUAL
from fastdraft.cli.options import AsJson, Overrides, block_lengths, sampling_of_options, screen
from fastdraft.cli.pipeline import Folder, stage_command, usable_device
from fastdraft.system.errors import RecipeError

if TYPE_CHECKING:
    from fastdraft.evaluate.inputs import EvaluateOptions
    from fastdraft.system.precision import Asked

HELP = """Measure drafts. Of a RECIPE (a .yaml file): its stage `evaluate` alone; the stages it needs must be done.
Of a DRAFT (a folder or hub id): on any tasks; what its target writes is kept, and drafts are scored on that."""
DRAFTS = "With a DRAFT"
OF_RECIPES = {"overrides", "folder"}
OF_BOTH = {"subject", "as_json"}

Subject = Annotated[
    str, typer.Argument(metavar="RECIPE|DRAFT", help="A .yaml file; or the folder of a draft or its run, or a hub id.")
]
Target = Annotated[
    str | None,
    typer.Option(
        help="Hub id, folder, or `demo`; otherwise the one that the draft's run names.", rich_help_panel=DRAFTS
    ),
]
Data = Annotated[
    Path | None, typer.Option(help="Score on what lies in this folder, without the target.", rich_help_panel=DRAFTS)
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        help=f"{', '.join(TASKS)}; NAME=FILE reads local rows; FILE.jsonl: own prompts. "
        f"Otherwise {', '.join(USUAL)}; with --data all that is there.",
        autocompletion=completion.among(TASKS),
        rich_help_panel=DRAFTS,
    ),
]
Temperature = Annotated[
    list[str] | None, typer.Option(help="0 is greedy; otherwise 0,0.6; with --data all.", rich_help_panel=DRAFTS)
]
TopK = Annotated[
    int, typer.Option(min=0, help="Sample from the k most likely tokens; 0 is all.", rich_help_panel=DRAFTS)
]
TopP = Annotated[float, typer.Option(help="Sample from the smallest set with this mass.", rich_help_panel=DRAFTS)]
Gammas = Annotated[str, typer.Option(help="Block lengths, like 1-16 or 2,4,8.", rich_help_panel=DRAFTS)]
Prompts = Annotated[
    int | None, typer.Option(min=1, help="Prompts of a task; otherwise its own number.", rich_help_panel=DRAFTS)
]
CompletionTokens = Annotated[
    int | None, typer.Option(min=1, help="Longest completion; otherwise the task's own.", rich_help_panel=DRAFTS)
]
Compare = Annotated[
    str | None, typer.Option(help="Another draft, measured on the same completions.", rich_help_panel=DRAFTS)
]
Verifier = Annotated[
    bool,
    typer.Option(
        "--verify", help="Run real speculative decoding too; exit code 1 if it differs.", rich_help_panel=DRAFTS
    ),
]
VerifyPrompts = Annotated[
    int, typer.Option(min=1, help="Prompts of a task for the verification.", rich_help_panel=DRAFTS)
]
VerifyGamma = Annotated[int, typer.Option(min=1, help="Block length of the verification.", rich_help_panel=DRAFTS)]
Keep = Annotated[
    Path | None,
    typer.Option(
        help="Folder for what the target writes; otherwise ~/.cache/fastdraft/completions/TARGET'S DIGEST.",
        rich_help_panel=DRAFTS,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="What the target computes in: fp32, bf16, or `auto`: the faster one on the device.",
        rich_help_panel=DRAFTS,
        autocompletion=completion.among(PRECISIONS),
    ),
]
BatchPrompts = Annotated[int, typer.Option(min=1, help="Prompts answered at once.", rich_help_panel=DRAFTS)]
Resamples = Annotated[int, typer.Option(min=1, help="Resamples behind an interval.", rich_help_panel=DRAFTS)]
Seed = Annotated[int, typer.Option(min=0, help="Of samples and resamples.", rich_help_panel=DRAFTS)]
Device = Annotated[
    str,
    typer.Option(
        help="cpu, cuda, xpu, hpu, or `auto`.", rich_help_panel=DRAFTS, autocompletion=completion.among(KINDS)
    ),
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
    max_new_tokens: CompletionTokens = None,
    compare: Compare = None,
    verify: Verifier = False,
    verify_prompts: VerifyPrompts = 16,
    verify_gamma: VerifyGamma = 4,
    keep: Keep = None,
    batch_size: BatchPrompts = 64,
    precision: Precision = "auto",
    resamples: Resamples = 1000,
    seed: Seed = 7,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    if _is_recipe(subject):
        _refuse(context, f"{subject} is a recipe", set(context.params) - OF_RECIPES - OF_BOTH)
        stage_command("evaluate")(Path(subject), overrides, folder, as_json)
        return
    _refuse(context, f"{subject} is a draft", OF_RECIPES)
    _check(context, data, compare, subject, top_p, precision)
    from fastdraft.evaluate.inputs import EvaluateOptions

    options = EvaluateOptions(
        draft=subject,
        device=usable_device(device),
        gammas=block_lengths(gammas),
        tasks=tuple(tasks or (() if data else USUAL)),
        sampling_settings=sampling_of_options(temperature or ([] if data else ["0,0.6"]), top_k, top_p),
        target=target,
        data=data,
        keep=keep,
        other=compare,
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        resamples=resamples,
        seed=seed,
        batch_size=batch_size,
        precision=cast("Asked", precision),  # `_check` has seen that it is one
    )
    _measure(options, (verify_prompts, verify_gamma) if verify else None, as_json)


def _measure(options: EvaluateOptions, verified_by: tuple[int, int] | None, as_json: bool) -> None:
    """Score the drafts and print it; then, where its prompts and gamma are given, the verification's word."""
    from fastdraft.evaluate.inputs import material
    from fastdraft.evaluate.score import score, verify
    from fastdraft.report import terminal_run, terminal_scores

    given = material(options)
    found = score(options, given)
    if not as_json:
        screen.print(terminal_scores.scores(found))  # before the verification's word, which may be an error
    verified = verify(options, given, *verified_by) if verified_by else {}
    if as_json:
        verdicts = {
            task: [verdict.model_dump(mode="json") for verdict in of_task] for task, of_task in verified.items()
        }
        print(json.dumps(found.model_dump(mode="json") | {"verified": verdicts}, indent=2, ensure_ascii=False))
    elif verified:
        screen.print(terminal_run.verified(verified))


def _is_recipe(subject: str) -> bool:
    return Path(subject).suffix in (".yaml", ".yml") and not Path(subject).is_dir()


def _given(context: typer.Context) -> set[str]:
    """The parameters that stand on the command line."""
    sources: dict[str, Any] = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _refuse(context: typer.Context, what: str, foreign: set[str]) -> None:
    """RecipeError where an option of the other kind of evaluation is given."""
    wrong = sorted(_given(context) & foreign)
    if wrong:
        named = ["KEY=VALUE" if name == "overrides" else f"--{name.replace('_', '-')}" for name in wrong]
        other = "a draft" if "recipe" in what else "a recipe"
        raise RecipeError(
            f"{what}, and {', '.join(named)} {'are' if len(named) > 1 else 'is'} for {other}\n"
            f"  do: leave {'them' if len(named) > 1 else 'it'} out, or name {other}"
        )


def _check(
    context: typer.Context, data: Path | None, compare: str | None, subject: str, top_p: float, precision: str
) -> None:
    if data is not None:
        given = _given(context) & {"keep", "prompts", "max_new_tokens", "batch_size", "precision"}
        if given:
            raise RecipeError(
                f"--data {data} holds completions that are written already, and --{min(given).replace('_', '-')} is "
                f"for writing\n  do: leave one of the two out"
            )
        if not context.params["temperature"] and _given(context) & {"top_k", "top_p"}:
            raise RecipeError("--top-k and --top-p choose no completions by themselves\n  do: add --temperature")
    if compare == subject:
        raise RecipeError(f"--compare: found {compare}, the draft itself\n  do: name another draft")
    if not 0 < top_p <= 1:
        raise RecipeError(f"--top-p: found {top_p:g}, wanted more than 0 and 1 at most\n  do: write it like 0.9")
    if precision not in PRECISIONS:
        raise RecipeError(f"--precision: found {precision}, wanted one of {', '.join(PRECISIONS)}\n  do: take auto")
