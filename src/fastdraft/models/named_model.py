"""Another model that a recipe names beside its target: the donor of first weights, the teacher of a phase.

`key` is the recipe's key that names it, for errors to begin with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fastdraft.config import TargetPart
from fastdraft.models import model_files, target
from fastdraft.models.model_files import Side
from fastdraft.models.token_bytes import show, spelled
from fastdraft.system.errors import TargetError, VocabularyMismatch


def read(model: str, key: str) -> Side:
    """Configuration, tokenizer and the shapes of the weights; TargetError where one of them is missing."""
    with _named(key):
        found = model_files.read(model)
        if not found.shapes:
            raise TargetError(
                f"{found.folder} has no weights\n"
                f"  wanted: *.safetensors\n  do: check that the download is complete, or name another model"
            )
        return found


def digest(model: str, key: str) -> str:
    """Changes when a file of the model does."""
    with _named(key):
        return target.digest(TargetPart(path=model))


def open_model(model: str, key: str, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model itself; TargetError where its weights do not fit its config."""
    with _named(key):
        return target.open_model(TargetPart(path=model), device, dtype)


def check_same_ids(model: Side, tokenizer: PreTrainedTokenizerFast, key: str, advice: str) -> None:
    """VocabularyMismatch unless the model means by every id what the target's tokenizer means by it.

    Tokens that were added to the target's alone are let pass.
    """
    ours, theirs, added = spelled(tokenizer), model.spelled, tokenizer.added_tokens_decoder
    differing = [i for i, text in ours.items() if theirs.get(i, text if i in added else None) != text]
    if differing:
        first = min(differing)
        raise VocabularyMismatch(
            f"{key}: the tokenizer of {model.name} means something else by {len(differing)} of the target's "
            f"{len(ours)} ids, first {first}: {show(theirs.get(first))} for {show(ours[first])}\n"
            f"  wanted: a model with the target's own vocabulary\n  do: {advice}"
        )


@contextmanager
def _named(key: str) -> Iterator[None]:
    try:
        yield
    except TargetError as error:
        raise TargetError(f"{key}: {error}") from error
