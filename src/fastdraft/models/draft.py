"""A draft: build it from a shape, save it with its target's tokenizer files, open it, check that it fits its target."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from fastdraft.models.pretrained import TOKENIZER_FILES, load, open_generation_config
from fastdraft.models.shape import DraftShape
from fastdraft.models.target import TargetCard
from fastdraft.system.cards import FILE, Card, open_stage
from fastdraft.system.errors import CardError, TargetError, VocabularyMismatch
from fastdraft.system.files import atomic_write, recover
from fastdraft.system.precision import Precision


class DraftCard(Card):
    """A trained draft: its shape, its training, and what was measured at the end of training.

    held_out_nats: loss per token by source. block_efficiency: by task, on prompts that no evaluation uses.
    model: the name of the model's folder, next to the card.
    """

    kind: ClassVar[str] = "draft"
    left_out: ClassVar[tuple[str, ...]] = ("checkpoint-*", "metrics.jsonl")
    target: str
    target_digest: str
    precision: Precision
    shape: DraftShape
    trained_tokens: int
    held_out_nats: dict[str, float]
    block_efficiency: dict[str, float] = Field(default_factory=dict)
    model: str = "model"


def new(shape: DraftShape, seed: int) -> PreTrainedModel:
    """A draft with random float32 weights, the same for the same seed."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(shape.open_config(), dtype=torch.float32)
    return model


def save(model: PreTrainedModel, target_folder: Path, card: TargetCard, destination: Path) -> None:
    """Write weights (safetensors), configuration and the target's tokenizer files, copied byte for byte; atomically."""
    with atomic_write(destination) as part:
        model.save_pretrained(part)
        eos = card.eos_ids[0] if len(card.eos_ids) == 1 else list(card.eos_ids)
        pad = _pad_id(model, target_folder, card)
        GenerationConfig(bos_token_id=card.bos_id, eos_token_id=eos, pad_token_id=pad).save_pretrained(part)
        for name in TOKENIZER_FILES:
            if (target_folder / name).is_file():
                shutil.copyfile(target_folder / name, part / name)


def _pad_id(model: PreTrainedModel, target_folder: Path, card: TargetCard) -> int:
    """The padding id of the target's generation_config.json, of its config.json, otherwise its first end-of-text id."""
    generation = open_generation_config(target_folder)
    stated = (generation.pad_token_id, getattr(model.config, "pad_token_id", None), card.eos_ids[0])
    return next(pad_id for pad_id in stated if pad_id is not None)


def check_stage(folder: Path) -> None:
    """CardError if this is the model of a training phase, and a file of the phase is not as its card records it."""
    phase = folder.resolve().parent
    if folder.resolve().name == "model" and (phase / FILE).is_file():
        open_stage(phase, DraftCard)


def open_draft(folder: Path, device: torch.device) -> PreTrainedModel:
    """A draft in float32 on a device, its weights trainable; CardError if they are missing or damaged."""
    recover(folder)
    try:
        model = load(folder, torch.float32)
    except TargetError as error:
        raise CardError(
            f"the draft at {folder} cannot be opened: {str(error).splitlines()[0]}\n"
            f"  do: remove {folder.parent} and run again: this repeats the stage"
        ) from error
    opened: PreTrainedModel = model.to(device).eval()  # type: ignore[arg-type]
    return opened


def check_fit(draft: PreTrainedModel, card: TargetCard, where: Path) -> None:
    """VocabularyMismatch unless the draft has as many output rows as its target."""
    rows = draft.get_output_embeddings().weight.shape[0]
    if rows != card.vocab_rows:
        raise VocabularyMismatch(
            f"{where} has {rows} output rows, target {card.name} has {card.vocab_rows}\n"
            f"  wanted: the target's padded vocabulary\n  do: fastdraft check {card.name} {where} --repair"
        )
