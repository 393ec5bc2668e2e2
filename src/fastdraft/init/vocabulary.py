"""A donor's rows for the target's vocabulary: the same tokens (`prune`), or its pieces of each (`transplant`).

A token of several pieces takes the mean of their rows, read or written. A foreign 7.2M model on text in the packaged
target's tokens, a fifth of which it cuts up, nats at once: as output the mean 3.79, the last piece 4.19, the first
4.35; as input the mean 3.79, the last 3.78, the first 3.85; means stretched to the rows' own length 4.03.
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
from fastdraft.models.model_files import Side
from fastdraft.models.named_model import check_same_ids
from fastdraft.models.token_bytes import SPACE, definition, spelled

ROLES = ("eos_token_id", "bos_token_id", "pad_token_id", "unk_token_id")
# For each row of the target the donor's rows that it is the mean of; none: the mean of all.
Pieces = list[list[int]]


def same_tokens(donor: Side, tokenizer: PreTrainedTokenizerFast, rows: int) -> Pieces:
    """Each row is the donor's own; VocabularyMismatch unless both tokenizers mean the same by every id.

    Rows for no token are let pass, of which either may have more: Qwen2.5 pads one vocabulary to 151 936 rows in small
    models and 152 064 in large ones.
    """
    check_same_ids(donor, tokenizer, KEY, f"set {KEY}=transplant:{donor.name}")
    return [[row] if row < donor.vocab_size else [] for row in range(rows)]


def pieces_of_tokens(donor: Side, tokenizer: PreTrainedTokenizerFast, rows: int) -> Pieces:
    """The donor's tokens that spell each of the target's.

    A special token takes the row of the one with its role, then of the one with its name. Any other takes the row of
    the donor's token of the same bytes, or else those of the pieces that the donor's model cuts its text into; bytes
    that are part of a letter only have pieces where the donor has tokens for bytes.
    """
    ours, special = spelled(tokenizer), _special(tokenizer)
    named, same = donor.tokenizer.get_vocab(), {text: i for i, text in sorted(donor.spelled.items(), reverse=True)}
    names = {i: name for name, i in tokenizer.get_vocab().items()}
    cut = _Cutter(donor.tokenizer)
    found: Pieces = [[] for _ in range(rows)]
    for i, text in ours.items():
        namesake = named.get(names[i])
        if i in special:
            role = _same_role(i, tokenizer, donor.tokenizer)
            found[i] = [n for n in (role if role is not None else namesake,) if n is not None]
        elif namesake is not None and donor.spelled[namesake] == text:
            found[i] = [namesake]
        else:
            found[i] = [same[text]] if text in same else cut(text)
    return found


def give_rows(model: Any, pieces: Pieces, known: Sequence[int]) -> PreTrainedModel:
    """Embedding and output layer with a row for each entry of `pieces`: the mean of the rows that it names.

    `known`: the ids of the donor's tokens; a row without pieces is the mean of theirs.
    """
    layers = (model.get_input_embeddings(), model.get_output_embeddings())  # one matrix where they are tied
    made = {id(layer.weight): _means(layer.weight.detach(), pieces, known) for layer in layers}
    shared = {key: torch.nn.Parameter(rows_VE, requires_grad=False) for key, rows_VE in made.items()}
    for layer in layers:
        layer.weight = shared[id(layer.weight)]
    model.config.vocab_size = len(pieces)
    given: PreTrainedModel = model
    return given


def _means(rows_VE: Tensor, pieces: Pieces, known: Sequence[int]) -> Tensor:
    """(rows,E)"""
    there = len(rows_VE)  # some tokenizers add tokens beyond their model's rows: Gemma 3's, one for images
    pieces = [[i for i in found if i < there] for found in pieces]
    mean_E = rows_VE[[i for i in known if i < there]].double().mean(0).to(rows_VE.dtype)
    made = mean_E.repeat(len(pieces), 1)
    counts = torch.tensor([len(found) for found in pieces])
    where = torch.repeat_interleave(torch.arange(len(pieces)), counts).to(rows_VE.device)
    if len(where):
        flat = torch.tensor([i for found in pieces for i in found], device=rows_VE.device)
        shares_N1 = (1.0 / counts[where.cpu()]).to(rows_VE)[:, None]
        made[counts > 0] = 0.0
        made.index_add_(0, where, rows_VE[flat] * shares_N1)
    return made


def _special(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Ids that stand for no text: other added tokens, such as runs of spaces, do."""
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def _same_role(i: int, tokenizer: PreTrainedTokenizerFast, donor: PreTrainedTokenizerFast) -> int | None:
    """The donor's id with the role that an id has, if it has one and the donor has it too."""
    roles = [role for role in ROLES if getattr(tokenizer, role) == i]
    return next((found for role in roles if (found := getattr(donor, role)) is not None), None)


class _Cutter:
    """Cuts bytes into a donor's tokens by its model alone: the steps before it would add spaces and split words."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        backend: Tokenizer = tokenizer.backend_tokenizer
        whole = definition(tokenizer)
        written = str([whole["decoder"], whole["pre_tokenizer"], whole["normalizer"]])
        self._model, self._unknown = backend.model, tokenizer.unk_token_id
        self._signs = bytes_to_unicode() if "ByteLevel" in written else None
        self._space = SPACE if SPACE in written else " "
        self._byte_ids = {byte: tokenizer.get_vocab().get(f"<0x{byte:02X}>") for byte in range(256)}

    def __call__(self, text: bytes) -> list[int]:
        """The ids of a token's bytes; none where the donor cannot say them."""
        if self._signs is not None:
            return self._cut("".join(self._signs[byte] for byte in text))
        try:
            return self._cut(text.decode().replace(" ", self._space))
        except UnicodeDecodeError:
            return [i for byte in text if (i := self._byte_ids[byte]) is not None]

    def _cut(self, written: str) -> list[int]:
        return [token.id for token in self._model.tokenize(written) if token.id != self._unknown]
