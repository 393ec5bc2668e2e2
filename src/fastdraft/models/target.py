"""The target's card, and the precision that the target computes in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from transformers import PreTrainedTokenizerFast
from transformers.configuration_utils import PretrainedConfig

from fastdraft.config import TargetPart
from fastdraft.models.architecture import parameters
from fastdraft.models.hub import commit_of, licence_of
from fastdraft.models.pretrained import digest, folder_of, open_config, open_generation_config, open_tokenizer
from fastdraft.system import precision
from fastdraft.system.cards import Card
from fastdraft.system.errors import TargetError, VocabularyMismatch
from fastdraft.system.precision import Precision, PrecisionChoice


class TargetCard(Card):
    """What a draft must know of its target. `digest` changes when one of the target's files does.

    vocab_rows: rows of the embedding, padding included. tokenizer_tokens: ids of the tokenizer.
    licence: the hub's name of it, from the recipe or from the target's README.md; None if neither names one.
    commit: the commit that was read if the target is on the hub, whatever branch or tag the recipe names.
    """

    kind: ClassVar[str] = "target"
    name: str
    family: str
    parameters: PositiveInt
    vocab_rows: PositiveInt
    tokenizer_tokens: int
    context_tokens: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    adds_bos: bool
    digest: str
    licence: str | None = None
    commit: str | None = None

    @property
    def added_bos_id(self) -> int | None:
        """The begin-of-text id that the tokenizer adds to a text; None if it adds none."""
        return self.bos_id if self.adds_bos else None


def card(part: TargetPart, weights: bool = True) -> dict[str, object]:
    """All fields of a TargetCard except key and cost.

    With `weights` False a hub model's weights are not downloaded, and the digest covers the other files only. Raises
    TargetError if configuration or tokenizer cannot be read, VocabularyMismatch if they do not fit together.
    """
    folder = folder_of(part, weights)
    config = open_config(part)
    count = parameters(config)
    tokenizer, text = open_tokenizer(part), config.get_text_config()
    _check_rows(folder, tokenizer, text.vocab_size)
    return {
        "name": part.path,
        "family": text.model_type,
        "parameters": count,
        "vocab_rows": text.vocab_size,
        "tokenizer_tokens": len(tokenizer),
        "context_tokens": _context_tokens(folder, text),
        "bos_id": tokenizer.bos_token_id,
        "eos_ids": _eos_ids(folder, config, tokenizer),
        "adds_bos": tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id],
        "digest": digest(part, weights),
        "licence": part.licence or licence_of(folder),
        "commit": commit_of(folder),
    }


def precision_of(part: TargetPart, requested: PrecisionChoice, device: torch.device) -> Precision:
    """The precision that the target computes in on a device; `auto` never rounds weights that are stored in fp32."""
    chosen = precision.choose(requested, device)
    if requested != "auto" or chosen.name != "bf16":
        return chosen
    config = open_config(part)
    stored = config.dtype or config.get_text_config().dtype
    if isinstance(stored, torch.dtype) and stored.itemsize <= 2:
        return chosen
    return Precision(name="fp32", reason="the target's weights are stored in fp32")


def _check_rows(folder: Path, tokenizer: PreTrainedTokenizerFast, rows: int) -> None:
    """VocabularyMismatch unless the embedding has a row for every id, those of added tokens included."""
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows)
    if not beyond:
        return
    all_added = all(i in tokenizer.added_tokens_decoder for i, _ in beyond)
    count = f"{len(beyond)} of them added to it" if all_added else f"{len(beyond)} of them without a row"
    raise VocabularyMismatch(
        f"the tokenizer in {folder} has {len(tokenizer)} tokens, the embedding {rows} rows; {count}, "
        f"first {beyond[0][1]!r} (id {beyond[0][0]})\n"
        f"  wanted: at least one row per token\n  do: use the tokenizer that the model was trained with, or resize it"
    )


def _context_tokens(folder: Path, text: PretrainedConfig) -> int:
    context = getattr(text, "max_position_embeddings", None)
    if not isinstance(context, int):
        raise TargetError(
            f"{folder / 'config.json'} of family `{text.model_type}` does not state a context length\n"
            f"  wanted: max_position_embeddings\n  do: choose a target of another family"
        )
    return context


def _eos_ids(folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Every end-of-text id, the tokenizer's own first; chat models name more of them in generation_config.json."""
    sources: list[Any] = [tokenizer, config.get_text_config(), open_generation_config(folder)]
    ids: list[int | None] = []
    for source in sources:
        ids += source.eos_token_id if isinstance(source.eos_token_id, list) else [source.eos_token_id]
    distinct = tuple(dict.fromkeys(i for i in ids if i is not None))
    if not distinct:
        raise TargetError(f"the target in {folder} has no end-of-text token\n  do: set eos_token_id in its config.json")
    if max(distinct) >= (rows := config.get_text_config().vocab_size):
        raise TargetError(
            f"the target in {folder} states {max(distinct)} as an end-of-text id\n"
            f"  wanted: an id below its {rows} rows\n"
            f"  do: correct eos_token_id in config.json, generation_config.json or the tokenizer"
        )
    return distinct
