"""Give a donor the target's vocabulary: with the same tokens (`prune`) or with tokens made of pieces (`transplant`).

A token that the donor splits into several pieces gets the mean of their embedding rows and of their output rows.
Measured with a 7.2M model of another tokenizer, which splits a fifth of the packaged target's tokens, on text in these
tokens, in nats before training. Output rows: mean 3.79, last piece 4.19, first piece 4.35. Embedding rows: mean 3.79,
last piece 3.78, first piece 3.85. Means scaled to the length of the donor's rows: 4.03.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from fastdraft.init.donor import KEY
from fastdraft.models.model_files import ModelFiles
from fastdraft.models.named_model import check_same_ids
from fastdraft.models.token_bytes import SPACE, definition, id_bytes

ROLES = ("eos_token_id", "bos_token_id", "pad_token_id", "unk_token_id")
# For each row of the target the donor rows to average; an empty list means the average of all tokens.
DonorRows = list[list[int]]


def rows_of_same_vocabulary(donor: ModelFiles, tokenizer: PreTrainedTokenizerFast, rows: int) -> DonorRows:
    """Each row is the donor's own; VocabularyMismatch unless every id stands for the same bytes in both tokenizers.

    Either model may have more padding rows: Qwen2.5 pads the same vocabulary to 151 936 rows in small models and to
    152 064 in large ones.
    """
    check_same_ids(donor, tokenizer, KEY, f"set {KEY}=transplant:{donor.name}")
    return [[row] if row < donor.vocab_size else [] for row in range(rows)]


def rows_by_pieces(donor: ModelFiles, tokenizer: PreTrainedTokenizerFast, rows: int) -> DonorRows:
    """For each target token the donor's tokens that spell it.

    A special token gets the donor's token with the same role, or else with the same name. Any other token gets the
    donor's token with the same bytes, or else the pieces into which the donor's tokenizer splits it. Bytes that are
    only part of a character have pieces only if the donor has tokens for single bytes.
    """
    donor_ids = donor.tokenizer.get_vocab()
    donor_id_of_bytes = {text: i for i, text in sorted(donor.id_bytes.items(), reverse=True)}
    names = {i: name for name, i in tokenizer.get_vocab().items()}
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    split = _Splitter(donor.tokenizer)
    donor_rows: DonorRows = [[] for _ in range(rows)]
    for i, text in id_bytes(tokenizer).items():
        namesake = donor_ids.get(names[i])
        if i in special:
            role = _same_role(i, tokenizer, donor.tokenizer)
            match = namesake if role is None else role
            donor_rows[i] = [] if match is None else [match]
        elif namesake is not None and donor.id_bytes[namesake] == text:
            donor_rows[i] = [namesake]
        else:
            donor_rows[i] = [donor_id_of_bytes[text]] if text in donor_id_of_bytes else split(text)
    return donor_rows


def set_vocabulary_rows(model: Any, donor_rows: DonorRows, token_ids: Sequence[int]) -> PreTrainedModel:
    """The model with new embedding and output rows, each the mean of the listed rows.

    `token_ids`: the ids of the donor's tokens; a row with an empty list is the mean of theirs.
    """
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    means = {id(layer.weight): _means(layer.weight.detach(), donor_rows, token_ids) for layer in layers}
    weights = {key: torch.nn.Parameter(rows_VE, requires_grad=False) for key, rows_VE in means.items()}
    for layer in layers:  # tied layers get the same weight
        layer.weight = weights[id(layer.weight)]
    model.config.vocab_size = len(donor_rows)
    changed: PreTrainedModel = model
    return changed


def _means(rows_VE: Tensor, donor_rows: DonorRows, token_ids: Sequence[int]) -> Tensor:
    """(len(donor_rows),E)"""
    count = len(rows_VE)  # some tokenizers have more tokens than their model has rows: Gemma 3's, one for images
    donor_rows = [[i for i in pieces if i < count] for pieces in donor_rows]
    mean_E = rows_VE[[i for i in token_ids if i < count]].double().mean(0).to(rows_VE.dtype)
    means = mean_E.repeat(len(donor_rows), 1)
    lengths = torch.tensor([len(pieces) for pieces in donor_rows])
    target_row = torch.repeat_interleave(torch.arange(len(donor_rows)), lengths).to(rows_VE.device)
    if len(target_row):
        donor_row = torch.tensor([i for pieces in donor_rows for i in pieces], device=rows_VE.device)
        weight_N1 = (1.0 / lengths[target_row.cpu()]).to(rows_VE)[:, None]
        means[lengths > 0] = 0.0
        means.index_add_(0, target_row, rows_VE[donor_row] * weight_N1)
    return means


def _same_role(i: int, tokenizer: PreTrainedTokenizerFast, donor: PreTrainedTokenizerFast) -> int | None:
    """The donor's id with the same role (such as eos) as this id of the target; None if there is none."""
    roles = [role for role in ROLES if getattr(tokenizer, role) == i]
    return next((donor_id for role in roles if (donor_id := getattr(donor, role)) is not None), None)


class _Splitter:
    """Splits bytes into a donor's tokens with the tokenizer's model only; normalisation would add spaces."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        backend: Tokenizer = tokenizer.backend_tokenizer
        whole = definition(tokenizer)
        steps = str([whole["decoder"], whole["pre_tokenizer"], whole["normalizer"]])
        self._model, self._unknown = backend.model, tokenizer.unk_token_id
        self._byte_characters = bytes_to_unicode() if "ByteLevel" in steps else None
        self._space = SPACE if SPACE in steps else " "
        self._byte_ids = {byte: tokenizer.get_vocab().get(f"<0x{byte:02X}>") for byte in range(256)}

    def __call__(self, text: bytes) -> list[int]:
        """The ids of the pieces; empty if the donor has no tokens for the bytes."""
        if self._byte_characters is not None:
            return self._split("".join(self._byte_characters[byte] for byte in text))
        try:
            return self._split(text.decode().replace(" ", self._space))
        except UnicodeDecodeError:
            return [i for byte in text if (i := self._byte_ids[byte]) is not None]

    def _split(self, text: str) -> list[int]:
        return [token.id for token in self._model.tokenize(text) if token.id != self._unknown]
