"""A draft: made from a shape, saved with its target's tokenizer byte for byte, opened, and held against its target."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from fastdraft.models.shape import DraftShape
from fastdraft.models.target import TOKENIZER_FILES, TargetCard, load
from fastdraft.system.cards import Card
from fastdraft.system.errors import CardError, TargetError, VocabularyMismatch
from fastdraft.system.files import atomic_write, recover
from fastdraft.system.precision import Precision


class DraftCard(Card):
    """A trained draft: what it is, what it was trained on and in, what it was measured at while it trained.

    `model` is its folder's name beside the card. block_efficiency: by task, on prompts that no evaluation uses.
    """

    kind: ClassVar[str] = "draft"
    target: str
    target_digest: str
    precision: Precision
    shape: DraftShape
    trained_tokens: int
    held_out_nats: dict[str, float]
    block_efficiency: dict[str, float] = Field(default_factory=dict)
    model: str = "model"


def new(shape: DraftShape, seed: int) -> PreTrainedModel:
    """A draft with random weights, float32; the same for the same seed."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(shape.open_config(), dtype=torch.float32)
    return model


def save(model: PreTrainedModel, target_folder: Path, card: TargetCard, destination: Path) -> None:
    """Write weights (safetensors), configuration and the target's very tokenizer files, whole or not at all."""
    with atomic_write(destination) as part:
        model.save_pretrained(part)
        eos = card.eos_ids[0] if len(card.eos_ids) == 1 else list(card.eos_ids)
        pad = _pad_id(model, target_folder, card)
        GenerationConfig(bos_token_id=card.bos_id, eos_token_id=eos, pad_token_id=pad).save_pretrained(part)
        for name in TOKENIZER_FILES:
            if (target_folder / name).is_file():
                shutil.copyfile(target_folder / name, part / name)


def _pad_id(model: PreTrainedModel, target_folder: Path, card: TargetCard) -> int:
    """The padding id that the target's generation_config.json names, its config.json, or else the end of a text."""
    stated = [getattr(model.config, "pad_token_id", None), card.eos_ids[0]]
    if (target_folder / "generation_config.json").is_file():
        stated = [GenerationConfig.from_pretrained(target_folder).pad_token_id, *stated]
    return next(number for number in stated if number is not None)


def open_draft(folder: Path, device: torch.device) -> PreTrainedModel:
    """A draft from its folder, float32, on a device; CardError where its weights are not what a card promised."""
    recover(folder)
    try:
        model = load(folder, torch.float32)
    except TargetError as error:
        raise CardError(
            f"the draft at {folder} cannot be opened: {str(error).splitlines()[0]}\n"
            f"  do: remove {folder.parent} and run again: this stage is then made anew"
        ) from error
    opened: PreTrainedModel = model.to(device).eval()  # type: ignore[arg-type]
    return opened


def check_fit(draft: PreTrainedModel, card: TargetCard, where: Path) -> None:
    """VocabularyMismatch unless the draft has a row for every row of its target."""
    rows = draft.get_output_embeddings().weight.shape[0]
    if rows != card.vocab_rows:
        raise VocabularyMismatch(
            f"{where} has {rows} output rows, target {card.name} has {card.vocab_rows}\n"
            f"  wanted: the target's padded vocabulary\n  do: fastdraft check {card.name} {where} --repair"
        )
