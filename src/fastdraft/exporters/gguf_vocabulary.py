"""Write a tokenizer for llama.cpp: byte-level BPE (`gpt2`) or sentencepiece BPE (`llama`).

llama.cpp has no general pre-tokenizer, only some with names (src/llama-vocab.cpp). Its converter finds the name by the
hash of an encoded text. This module finds it by the tokenizer's definition, so that an error can say what does not fit.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import gguf

from fastdraft.models.gguf_pre_tokenizers import PRE_TOKENIZERS, name_of, steps_of
from fastdraft.models.pretrained import open_tokenizer
from fastdraft.system.errors import ExportError

BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Vocabulary(NamedTuple):
    """One token per embedding row. llama.cpp merges either by `scores` (llama) or by the order of `merges` (gpt2)."""

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float] | None
    merges: list[str] | None
    adds_bos: bool
    adds_eos: bool
    notes: tuple[str, ...]


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """The tokenizer in a folder, padded to the model's rows; ExportError if llama.cpp does not support it."""
    definition = _definition(folder)
    model = definition["model"]
    if model["type"] != "BPE":
        raise ExportError(
            f"the tokenizer in {folder} is a {model['type']}\n  wanted: a BPE, byte-level or with byte fallback\n"
            f"  do: choose another format"
        )
    bpe = _sentencepiece(folder, definition) if model.get("byte_fallback") else _byte_level(folder, definition)
    tokens, kinds = _tokens(folder, definition, rows)
    tokenizer = open_tokenizer(folder)
    ids = tokenizer("a").input_ids
    return Vocabulary(
        model=bpe.model,
        pre=bpe.pre,
        tokens=tokens,
        kinds=kinds,
        scores=bpe.scores(tokens),
        merges=bpe.merges,
        adds_bos=ids[:1] == [tokenizer.bos_token_id],
        adds_eos=ids[-1:] == [tokenizer.eos_token_id],
        notes=bpe.notes,
    )


class _Bpe(NamedTuple):
    """What differs between the two kinds of vocabulary."""

    model: str
    pre: str
    ranks: dict[str, int] | None
    merges: list[str] | None
    notes: tuple[str, ...]

    def scores(self, tokens: list[str]) -> list[float] | None:
        """A score per token, higher the earlier it is merged; tokens that no merge makes come last."""
        ranks = self.ranks
        return None if ranks is None else [-float(ranks.get(token, len(ranks))) for token in tokens]


def _byte_level(folder: Path, definition: dict[str, Any]) -> _Bpe:
    steps, ignore = tuple(steps_of(definition["pre_tokenizer"])), bool(definition["model"].get("ignore_merges"))
    name = name_of(steps, ignore)
    if name is None:
        raise ExportError(
            f"the pre-tokenizer in {folder} is not known to exist in llama.cpp: {' then '.join(steps)}, "
            f"ignore_merges {ignore}\n  wanted: that of {', '.join(sorted(PRE_TOKENIZERS))}\n"
            f"  do: choose another format, or add it to PRE_TOKENIZERS in models/gguf_pre_tokenizers.py"
        )
    notes = _normalised(folder, definition["normalizer"])
    return _Bpe("gpt2", name, None, [" ".join(pair) for pair in _merges(definition)], notes)


def _normalised(folder: Path, normalizer: dict[str, Any] | None) -> tuple[str, ...]:
    if normalizer is None:
        return ()
    if normalizer["type"] == "NFC":
        return ("llama.cpp does not bring text into Unicode's composed form (NFC), as the target's tokenizer does",)
    raise ExportError(
        f"the tokenizer in {folder} normalises text ({normalizer['type']}), llama.cpp's BPE does not\n"
        f"  do: choose another format"
    )


def _sentencepiece(folder: Path, definition: dict[str, Any]) -> _Bpe:
    """llama.cpp merges the pair whose union has the highest score, so the order of merges must agree with scores."""
    _check_spaces(folder, definition)
    vocab, merges = definition["model"]["vocab"], _merges(definition)
    ranks: dict[str, int] = {}
    last = None
    for left, right in merges:
        if left + right != last and left + right in ranks:
            raise _no_sentencepiece(folder, f"merges into {left + right!r} are not adjacent")
        last = left + right
        ranks.setdefault(last, len(ranks))
    merged, special = {tuple(pair) for pair in merges}, {token["content"] for token in definition["added_tokens"]}
    for token in vocab.keys() - special:
        if BYTE.fullmatch(token):
            continue
        splits = ((token[:place], token[place:]) for place in range(1, len(token)))
        if unmerged := next((s for s in splits if s[0] in vocab and s[1] in vocab and s not in merged), None):
            left, right = unmerged
            raise _no_sentencepiece(folder, f"{left!r}, {right!r} and {token!r} are tokens without a merge")
    return _Bpe("llama", "default", ranks, None, ())


def _check_spaces(folder: Path, definition: dict[str, Any]) -> None:
    """ExportError unless the tokenizer only adds a space before each text and marks every space."""
    normalizer, pre = definition["normalizer"] or {}, definition["pre_tokenizer"] or {}
    kinds = [step["type"] for step in normalizer.get("normalizers", [normalizer] if normalizer else [])]
    marked = kinds == ["Prepend", "Replace"] and not pre
    meta = not kinds and pre.get("type") == "Metaspace" and not pre.get("split") and pre["prepend_scheme"] != "never"
    if not (marked or meta):
        raise _no_sentencepiece(folder, f"its normalizer is {kinds or None}, its pre-tokenizer {pre.get('type')}")


def _no_sentencepiece(folder: Path, why: str) -> ExportError:
    return ExportError(
        f"the tokenizer in {folder} has byte fallback, but is not a sentencepiece BPE: {why}\n"
        f"  wanted: one whose merges follow from the scores of its tokens\n  do: choose another format"
    )


def _tokens(folder: Path, definition: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Text and type of each row; rows without a token get the filler of llama.cpp's converter."""
    kind = gguf.TokenType
    texts: dict[int, str] = {number: token for token, number in definition["model"]["vocab"].items()}
    kinds = {number: int(kind.BYTE if BYTE.fullmatch(token) else kind.NORMAL) for number, token in texts.items()}
    unknown = definition["model"].get("unk_token")
    for token in definition["added_tokens"]:
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = int(kind.CONTROL if token["special"] else kind.USER_DEFINED)
        if token["content"] == unknown:
            kinds[token["id"]] = int(kind.UNKNOWN)
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(rows)]
    # llama.cpp aborts the process if two tokens have the same text.
    if len(texts) and (max(texts) >= rows or len(set(tokens)) < rows):
        raise ExportError(
            f"the tokenizer in {folder} has id {max(texts)} and {len(set(tokens))} different texts in {rows} rows\n"
            f"  wanted: a row for each id, and no text twice\n  do: fastdraft check TARGET DRAFT"
        )
    return tokens, [kinds.get(number, int(kind.UNUSED)) for number in range(rows)]


def _merges(definition: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges as pairs; older files write a merge as one string."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in definition["model"]["merges"])
    return [(left, right) for left, right in pairs]


def _definition(folder: Path) -> dict[str, Any]:
    """tokenizer.json, if there is one: the tokenizer that transformers builds from it can encode differently."""
    file = folder / "tokenizer.json"
    text = file.read_text(encoding="utf-8") if file.is_file() else open_tokenizer(folder).backend_tokenizer.to_str()
    definition: dict[str, Any] = json.loads(text)
    return definition
