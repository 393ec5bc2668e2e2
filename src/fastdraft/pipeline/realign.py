"""A finished draft aligned to a user's own prompts or logs: the recipe of it, written to the run's folder as a file.

The pipeline is that of any recipe, without a corpus: target, synthesize, align. Its draft starts from the finished one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
import yaml

from fastdraft.config import TargetPart
from fastdraft.config.resolve import Resolved, resolve
from fastdraft.models import target
from fastdraft.models.draft_origin import origin_of
from fastdraft.synthesize.user_logs import Log, parted, read_logs, write_logs
from fastdraft.system.files import atomic_write, make_folder
from fastdraft.system.progress import log_line

# Times that each answer is trained on, and tokens of a step.
EPOCHS = 3
STEP_TOKENS = 4096


@dataclass(frozen=True)
class Realignment:
    """What is asked for: a draft, its target, a file of prompts or logs, and where all of it goes."""

    draft: str
    target: str
    data: str
    folder: Path
    held_out_fraction: float = 0.1
    max_new_tokens: int = 128


@dataclass(frozen=True)
class Prepared:
    """The recipe, and the file of the held-out prompts."""

    resolved: Resolved
    held_out: Path


def prepare(asked: Realignment, overrides: Sequence[str]) -> Prepared:
    """Write recipe.yaml and data/ in the run's folder; CorpusError, and no folder, where the data cannot be used."""
    part = TargetPart(path=asked.target)
    context_tokens = target.open_config(part).get_text_config().max_position_embeddings
    logs = read_logs(asked.data, target.open_tokenizer(part), context_tokens, asked.max_new_tokens)
    for reason, count in logs.refused.items():
        log_line(f"align: {count:,} {reason}; left out")
    train, held_out = parted(logs, asked.held_out_fraction)
    log_line(f"align: {len(train):,} rows to align on, {len(held_out):,} prompts held out")
    # By content: another file of the same name is another recipe.
    digest = xxhash.xxh3_64_hexdigest("".join(f"{row.digest} {row.answer} " for row in logs.rows).encode())
    data = asked.folder / "data" / digest
    make_folder(asked.folder, "--out")
    data.mkdir(parents=True, exist_ok=True)
    write_logs(train, data / "train.jsonl")
    write_logs(held_out, data / "held_out.jsonl", messages_field="messages")
    with atomic_write(asked.folder / "recipe.yaml") as file:
        file.write_text(yaml.safe_dump(_recipe(asked, train, data / "train.jsonl"), sort_keys=False), encoding="utf-8")
    return Prepared(resolve(asked.folder / "recipe.yaml", overrides), data / "held_out.jsonl")


def _recipe(asked: Realignment, train: list[Log], file: Path) -> dict[str, Any]:
    answered = train[0].answer is not None
    longest = max(row.prompt_tokens for row in train)
    answer = max(row.answer_tokens for row in train) if answered else asked.max_new_tokens
    row = max(row.prompt_tokens + row.answer_tokens for row in train) + (0 if answered else answer)
    labels = sum(row.answer_tokens for row in train) if answered else len(train) * answer
    steps = max(EPOCHS * labels // STEP_TOKENS, 1)
    draft = origin_of(Path(asked.draft)).folder.resolve() if Path(asked.draft).exists() else asked.draft
    return {
        "name": asked.folder.name,
        "target": {"path": asked.target},
        "draft": {"init": f"prune:{draft}"},
        "synthesize": _recorded(len(train), answer, file) if answered else _written(len(train), answer, longest, file),
        "align": {
            "mix": {"synthetic": 1.0},
            "objective": {"forward_kl": 0.5, "total_variation": 0.5},
            "train_tokens": EPOCHS * labels,
            "sequence_tokens": row,
            "batch_size": max(STEP_TOKENS // row, 1),
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
        "max_prompt_tokens": 1,  # windows of documents, of which there are none
    }


def _written(rows: int, answer_tokens: int, max_instruction_tokens: int, file: Path) -> dict[str, Any]:
    return {
        "prompt_sets": {"logs": {"source": "jsonl", "path": str(file)}},
        "mix": {"logs": 1.0},
        "prompts": rows,
        "max_new_tokens": answer_tokens,
        "max_instruction_tokens": max_instruction_tokens,
        "max_prompt_tokens": 1,  # windows of documents, of which there are none
    }
