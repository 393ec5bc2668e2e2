"""A tokenizer as llama.cpp knows it: byte-level BPE (`gpt2`) or sentencepiece's BPE (`llama`).

llama.cpp has no general pre-tokenizer: it knows some by name (src/llama-vocab.cpp). Its own converter finds the name by
the hash of an encoded text; here it is found by the definition, which says what is wrong where none fits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastdraft.models.pretrained import open_tokenizer
from fastdraft.system.errors import ExportError
from fastdraft.system.optional_packages import need

BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
SPACE = "▁"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FIRST = r"[^\r\n\p{L}\p{N}]?"
_SIGNS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(end: str) -> str:
    """Words that may begin in upper case and go on in lower case."""
    return rf"{_FIRST}{_UPPER}*{_LOWER}+{end}|{_FIRST}{_UPPER}+{_LOWER}*{end}"


# The steps of a pre-tokenizer, and whether a whole word that is a token needs no merges (`ignore_merges`): two names
# of llama.cpp may share their steps and differ in that.
PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    (("words",), False): "gpt-2",
    (("digits", "words"), False): "smollm",
    ((rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_SIGNS}", "bytes"), False): "qwen2",
    ((rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}", "bytes"), True): "llama-bpe",
    ((rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}", "bytes"), False): "dbrx",
    ((rf"{_cased(_CONTRACTIONS + '?')}|\p{{N}}{{1,3}}|{_SIGNS_SLASH}", "bytes"), False): "gpt-4o",
    ((rf"{_cased('')}|\p{{N}}|{_SIGNS_SLASH}", "bytes"), True): "tekken",
}


class Vocabulary(NamedTuple):
    """One entry a row of the embedding; `scores` where merges are chosen by them, `merges` where by their order."""

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
    """The tokenizer in a folder, filled up to the rows of its model; ExportError where llama.cpp has none like it."""
    defined = _definition(folder)
    model = defined["model"]
    if model["type"] != "BPE":
        raise ExportError(
            f"the tokenizer in {folder} is a {model['type']}\n  wanted: a BPE, byte-level or with byte fallback\n"
            f"  do: choose another format"
        )
    spoken = _sentencepiece(folder, defined) if model.get("byte_fallback") else _byte_level(folder, defined)
    tokens, kinds = _rows(folder, defined, rows)
    bos, eos = _frame(folder)
    return Vocabulary(
        spoken.model, spoken.pre, tokens, kinds, spoken.scores(tokens), spoken.merges, bos, eos, spoken.notes
    )


class _Spoken(NamedTuple):
    """What the two kinds of vocabulary do not share."""

    model: str
    pre: str
    ranks: dict[str, int] | None
    merges: list[str] | None
    notes: tuple[str, ...]

    def scores(self, tokens: list[str]) -> list[float] | None:
        """The earlier a token is merged, the higher; what is not made by a merge comes last."""
        ranks = self.ranks
        return None if ranks is None else [-float(ranks.get(token, len(ranks))) for token in tokens]


def _byte_level(folder: Path, defined: dict[str, Any]) -> _Spoken:
    steps, ignore = tuple(_steps(folder, defined["pre_tokenizer"])), bool(defined["model"].get("ignore_merges"))
    name = PRE_TOKENIZERS.get((steps, ignore))
    if name is None:
        known = ", ".join(sorted(PRE_TOKENIZERS.values()))
        raise ExportError(
            f"the pre-tokenizer in {folder} is none that llama.cpp is known to have: {' then '.join(steps)}, "
            f"ignore_merges {ignore}\n  wanted: that of {known}\n"
            f"  do: choose another format, or add its name in llama.cpp to PRE_TOKENIZERS in export/gguf_vocabulary.py"
        )
    notes = _normalised(folder, defined["normalizer"])
    return _Spoken("gpt2", name, None, [" ".join(pair) for pair in _merges(defined)], notes)


def _steps(folder: Path, found: dict[str, Any] | None) -> Iterator[str]:
    """A pre-tokenizer in words of PRE_TOKENIZERS."""
    kind = (found or {}).get("type")
    if found is None or kind not in ("Sequence", "ByteLevel", "Digits", "Split"):
        yield str(kind)
    elif kind == "Sequence":
        for step in found["pretokenizers"]:
            yield from _steps(folder, step)
    elif kind == "ByteLevel":
        prefix = "space, " if found.get("add_prefix_space") else ""
        yield prefix + ("words" if found.get("use_regex", True) else "bytes")
    elif kind == "Digits":
        yield "digits" if found["individual_digits"] else "numbers"
    else:
        # Every character is matched by one of its alternatives: what is isolated, and what is left when the rest is
        # removed, are the same pieces.
        whole = (found["behavior"], found["invert"]) in (("Isolated", False), ("Removed", True))
        yield ("" if whole else f"{found['behavior']} ") + found["pattern"].get("Regex", "a string")


def _normalised(folder: Path, normalizer: dict[str, Any] | None) -> tuple[str, ...]:
    if normalizer is None:
        return ()
    if normalizer["type"] == "NFC":
        return ("llama.cpp does not bring text into Unicode's composed form (NFC), as the target's tokenizer does",)
    raise ExportError(
        f"the tokenizer in {folder} normalises text ({normalizer['type']}), llama.cpp's BPE does not\n"
        f"  do: choose another format"
    )


def _sentencepiece(folder: Path, defined: dict[str, Any]) -> _Spoken:
    """llama.cpp merges the neighbours whose union has the highest score: merges must say the same in their order."""
    _check_spaces(folder, defined)
    vocab, merges = defined["model"]["vocab"], _merges(defined)
    ranks: dict[str, int] = {}
    last = None
    for left, right in merges:
        if left + right != last and left + right in ranks:
            raise _no_sentencepiece(folder, f"merges into {left + right!r} stand apart from each other")
        last = left + right
        ranks.setdefault(last, len(ranks))
    known, special = {tuple(pair) for pair in merges}, {token["content"] for token in defined["added_tokens"]}
    for token in vocab.keys() - special:
        if BYTE.fullmatch(token):
            continue
        splits = ((token[:place], token[place:]) for place in range(1, len(token)))
        if loose := next((s for s in splits if s[0] in vocab and s[1] in vocab and s not in known), None):
            raise _no_sentencepiece(folder, f"{loose[0]!r} and {loose[1]!r} are tokens, {token!r} too, and no merge")
    return _Spoken("llama", "default", ranks, None, ())


def _check_spaces(folder: Path, defined: dict[str, Any]) -> None:
    """A space before each text, and a mark for every space; nothing else."""
    normalizer, pre = defined["normalizer"] or {}, defined["pre_tokenizer"] or {}
    kinds = [step["type"] for step in normalizer.get("normalizers", [normalizer] if normalizer else [])]
    marked = kinds == ["Prepend", "Replace"] and not pre
    meta = not kinds and pre.get("type") == "Metaspace" and not pre.get("split") and pre["prepend_scheme"] != "never"
    if not (marked or meta):
        raise _no_sentencepiece(folder, f"its normalizer is {kinds or None}, its pre-tokenizer {pre.get('type')}")


def _no_sentencepiece(folder: Path, why: str) -> ExportError:
    return ExportError(
        f"the tokenizer in {folder} has byte fallback, and is no sentencepiece BPE: {why}\n"
        f"  wanted: one whose merges follow from the scores of its tokens\n  do: choose another format"
    )


def _rows(folder: Path, defined: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Text and kind of each row; rows without a token get a filler, named as llama.cpp's own converter names it."""
    kind = need("gguf", "llamacpp").TokenType
    texts: dict[int, str] = {number: token for token, number in defined["model"]["vocab"].items()}
    kinds = {number: int(kind.BYTE if BYTE.fullmatch(token) else kind.NORMAL) for number, token in texts.items()}
    unknown = defined["model"].get("unk_token")
    for token in defined["added_tokens"]:
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = int(kind.CONTROL if token["special"] else kind.USER_DEFINED)
        if token["content"] == unknown:
            kinds[token["id"]] = int(kind.UNKNOWN)
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(rows)]
    # llama.cpp ends the whole process where two tokens have one text.
    if len(texts) and (max(texts) >= rows or len(set(tokens)) < rows):
        raise ExportError(
            f"the tokenizer in {folder} has id {max(texts)} and {len(set(tokens))} different texts in {rows} rows\n"
            f"  wanted: a row for each id, and each text once\n  do: fastdraft check TARGET DRAFT"
        )
    return tokens, [kinds.get(number, int(kind.UNUSED)) for number in range(rows)]


def _frame(folder: Path) -> tuple[bool, bool]:
    """Whether the tokenizer sets bos before, and eos after a text by itself."""
    tokenizer = open_tokenizer(folder)
    ids = tokenizer("a").input_ids
    return ids[:1] == [tokenizer.bos_token_id], ids[-1:] == [tokenizer.eos_token_id]


def _merges(defined: dict[str, Any]) -> list[tuple[str, str]]:
    """Older files write a merge as one string."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in defined["model"]["merges"])
    return [(left, right) for left, right in pairs]


def _definition(folder: Path) -> dict[str, Any]:
    """The tokenizer's own file, where it has one: what transformers makes of it may encode differently."""
    file = folder / "tokenizer.json"
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    built: dict[str, Any] = json.loads(
        open_tokenizer(folder).backend_tokenizer.to_str()
    )
    return built
