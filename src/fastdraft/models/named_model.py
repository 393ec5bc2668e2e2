"""A second model that a recipe names: the donor of first weights, or a phase's teacher.

`key` is the recipe key that names it; error messages begin with it.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fastdraft.models import draft, model_files, pretrained
from fastdraft.models.model_files import ModelFiles
from fastdraft.models.model_folder import errors_name
from fastdraft.models.token_bytes import id_bytes, readable
from fastdraft.system.errors import TargetError, VocabularyMismatch


def read(model: str, key: str) -> ModelFiles:
    """Configuration, tokenizer and tensor shapes; TargetError if one is missing, CardError if a draft is damaged."""
    with errors_name(key):
        draft.check_stage(pretrained.folder_of(model))
        files = model_files.read(model)
        if not files.shapes:
            raise TargetError(
                f"{files.folder} has no weights\n"
                f"  wanted: *.safetensors\n  do: check that the download is complete, or name another model"
            )
        return files


def open_model(model: str, key: str, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model, opened; TargetError if its weights do not fit its configuration."""
    with errors_name(key):
        return pretrained.open_model(model, device, dtype)


def check_same_ids(model: ModelFiles, tokenizer: PreTrainedTokenizerFast, key: str, advice: str) -> None:
    """VocabularyMismatch unless every id stands for the same bytes in the model and in the target's tokenizer.

    Added tokens that only the target has are accepted.
    """
    target_bytes, added = id_bytes(tokenizer), tokenizer.added_tokens_decoder
    differing = [
        i for i, token in target_bytes.items() if model.id_bytes.get(i, token if i in added else None) != token
    ]
    if differing:
        first = min(differing)
        raise VocabularyMismatch(
            f"{key}: {len(differing)} of the target's {len(target_bytes)} ids are other text in the tokenizer of "
            f"{model.name}, first {first}: {readable(model.id_bytes.get(first))} instead of "
            f"{readable(target_bytes[first])}\n"
            f"  wanted: a model with the target's own vocabulary\n  do: {advice}"
        )
