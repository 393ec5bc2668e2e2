"""`align --draft`: a finished draft aligned to a user's own prompts or logs, and measured before and after.

It runs a recipe that has no corpus, with the stages target, synthesize and align; `draft.init` is the finished draft.
The recipe is written to the folder of the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
import yaml

from fastdraft.config.part import as_name
from fastdraft.config.resolve import Resolved, resolve
from fastdraft.evaluation.inputs import EvaluateOptions, open_inputs
from fastdraft.evaluation.score import Scores, score
from fastdraft.models import pretrained
from fastdraft.models.draft_origin import origin_of
from fastdraft.pipeline.run import open_run
from fastdraft.pipeline.run_stages import run_stages
from fastdraft.synthesize.completions import SamplingParams
from fastdraft.synthesize.user_logs import LogEntry, read_logs, split_held_out, write_logs
from fastdraft.system import processes
from fastdraft.system.files import atomic_write, make_folder
from fastdraft.system.progress import log_line

# Times that each answer is trained on, tokens of an optimizer step, and the block lengths of the measurement.
EPOCHS = 3
STEP_TOKENS = 4096
GAMMAS = (3, 5)


@dataclass(frozen=True)
class RealignOptions:
    """A finished draft, its target, a file of prompts or logs, the folder of the run, and how both drafts are measured.

    `held_out_fraction` of the prompts is kept for the measurement, at the settings of `sampling_settings`.
    """

    draft: str
    target: str
    data: str
    folder: Path
    held_out_fraction: float = 0.1
    max_new_tokens: int = 128
    sampling_settings: tuple[SamplingParams, ...] = (SamplingParams(0.0), SamplingParams(0.6), SamplingParams(1.0))
    overrides: tuple[str, ...] = ()


def realign(options: RealignOptions) -> Scores:
    """Scores of the aligned draft and of the draft before, on what the target writes after the held-out prompts.

    CorpusError, and no folder, if the data cannot be used.
    """
    resolved, held_out = _prepare(options)
    with open_run(resolved, options.folder) as (run_context, manifest):
        run_stages(run_context, manifest)
        measured = EvaluateOptions(
            draft=str(options.folder / "align" / "model"),
            compare=options.draft,
            target=options.target,
            device=run_context.device,
            gammas=GAMMAS,
            tasks=(str(held_out),),
            sampling_settings=options.sampling_settings,
            max_new_tokens=options.max_new_tokens,
            keep=options.folder / "held_out",
            seed=run_context.recipe.seed,
        )
        scores = processes.on_rank0(lambda: score(measured, open_inputs(measured)))
    processes.leave()
    return scores


def _prepare(options: RealignOptions) -> tuple[Resolved, Path]:
    """Write recipe.yaml and data/ into the folder of the run: the recipe, and the file of held-out prompts."""
    context_tokens = pretrained.open_config(options.target).get_text_config().max_position_embeddings
    logs = read_logs(options.data, pretrained.open_tokenizer(options.target), context_tokens, options.max_new_tokens)
    for reason, count in logs.refused.items():
        log_line(f"align: {count:,} {reason}; left out")
    train, held_out = split_held_out(logs, options.held_out_fraction)
    log_line(f"align: {len(train):,} rows to align on, {len(held_out):,} prompts held out")
    # Named by content: the same file name with other rows is another recipe.
    digest = xxhash.xxh3_64_hexdigest("".join(f"{row.digest} {row.answer} " for row in logs.rows).encode())
    data = options.folder / "data" / digest
    make_folder(options.folder, "--out")
    data.mkdir(parents=True, exist_ok=True)
    write_logs(train, data / "train.jsonl")
    write_logs(held_out, data / "held_out.jsonl", messages_field="messages")
    recipe = yaml.safe_dump(_recipe(options, train, data / "train.jsonl"), sort_keys=False)
    with atomic_write(options.folder / "recipe.yaml") as file:
        file.write_text(recipe, encoding="utf-8")
    return resolve(options.folder / "recipe.yaml", options.overrides), data / "held_out.jsonl"


def _recipe(options: RealignOptions, train: list[LogEntry], file: Path) -> dict[str, Any]:
    answered = train[0].answer is not None
    prompt = max(row.prompt_tokens for row in train)
    answer = max(row.answer_tokens for row in train) if answered else options.max_new_tokens
    sequence = max(row.prompt_tokens + row.answer_tokens for row in train) + (0 if answered else answer)
    labels = sum(row.answer_tokens for row in train) if answered else len(train) * answer
    steps = max(EPOCHS * labels // STEP_TOKENS, 1)
    draft = origin_of(Path(options.draft)).folder.resolve() if Path(options.draft).exists() else options.draft
    return {
        "name": as_name(options.folder.resolve().name),
        "target": {"path": options.target},
        "draft": {"init": f"prune:{draft}"},
        "synthesize": _recorded(len(train), answer, file) if answered else _written(len(train), answer, prompt, file),
        "align": {
            "mix": {"synthetic": 1.0},
            "objective": {"forward_kl": 0.5, "total_variation": 0.5},
            "train_tokens": EPOCHS * labels,
            "sequence_tokens": sequence,
            "batch_size": max(STEP_TOKENS // sequence, 1),
            "warmup_steps": min(50, steps // 10),
        },
    }


def _recorded(rows: int, answer_tokens: int, file: Path) -> dict[str, Any]:
    return {
        "engine": "recorded",
        "recorded": {"path": str(file), "answer_field": "completion"},
        "mix": {"recorded": 1.0},
        "prompts": rows,
        "max_new_tokens": answer_tokens,
        "temperatures": {1.0: 1.0},
        "max_prompt_tokens": 1,  # of windows of documents; this recipe has none
    }


def _written(rows: int, answer_tokens: int, max_instruction_tokens: int, file: Path) -> dict[str, Any]:
    return {
        "prompt_sets": {"logs": {"source": "jsonl", "path": str(file)}},
        "mix": {"logs": 1.0},
        "prompts": rows,
        "max_new_tokens": answer_tokens,
        "max_instruction_tokens": max_instruction_tokens,
        "max_prompt_tokens": 1,  # of windows of documents; this recipe has none
    }
