"""The tokenizer in a GGUF file, as a tokenizer.json that gives every text the ids that llama.cpp gives it.

llama.cpp has two kinds that FastDraft reads: byte-level BPE (`gpt2`), with merges and a named pre-tokenizer, and
sentencepiece BPE (`llama`), which merges the pair whose union has the highest score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastdraft.models.gguf_pre_tokenizers import PRE_TOKENIZERS, SAME_AS, PreTokenizer, definition_of
from fastdraft.system.errors import TargetError

# In the folder of a GGUF model: the file with its tokenizer's keys, which exports copy.
VOCABULARY = "vocabulary.gguf"
SPACE = "▁"
# `tokenizer.ggml.token_type` (gguf.TokenType).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# llama.cpp ends a text at these tokens too, whatever the file names as end of text.
END_TEXTS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>"),
    *("<EOT>", "_<EOT>", "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>", "<|return|>", "<|call|>"),
)


def tokenizer_json(metadata: Mapping[str, Any], name: str, source: object) -> dict[str, Any]:
    """The content of tokenizer.json.

    metadata: the file's keys that begin with `tokenizer.ggml.`, without that prefix. name: `general.name` of the file.
    source: the file, for error messages.

    TargetError if the file has no tokenizer, or one of a kind that is not known.
    """
    kind, tokens = metadata.get("model"), metadata.get("tokens")
    if not tokens:
        raise TargetError(
            f"{source} has no tokenizer (tokenizer.ggml.tokens)\n"
            f"  do: choose a GGUF file of a whole model, or give the model's folder or hub id"
        )
    if kind not in ("gpt2", "llama"):
        raise TargetError(
            f"the tokenizer in {source} is of kind `{kind}`\n"
            f"  wanted: gpt2 (byte-level BPE) or llama (sentencepiece BPE)\n  do: give the model's folder or hub id"
        )
    types: Sequence[int] = metadata.get("token_type") or [NORMAL] * len(tokens)
    # The converters of llama.cpp pad the vocabulary with unused tokens, which no text has.
    vocab = {token: i for i, token in enumerate(tokens) if types[i] != UNUSED or not token.startswith("[PAD")}
    read = _byte_level(metadata, vocab, source) if kind == "gpt2" else _sentencepiece(metadata, vocab, types)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(name, vocab, types),
        "post_processor": _post_processor(metadata, tokens),
        **read,
    }


def tokenizer_config(metadata: Mapping[str, Any], chat_template: str | None, context_tokens: int) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    tokens = metadata["tokens"]
    names = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
    special = {f"{role}_token": tokens[i] for role, key in names.items() if (i := _id(metadata, key)) is not None}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_tokens,
        **special,
        **({"chat_template": chat_template} if chat_template else {}),
    }


def end_ids(metadata: Mapping[str, Any]) -> list[int]:
    """Every id at which llama.cpp ends a text, the file's end-of-text token first."""
    named = [i for key in ("eos_token_id", "eot_token_id", "eom_token_id") if (i := _id(metadata, key)) is not None]
    by_text = [i for i, token in enumerate(metadata["tokens"]) if token in END_TEXTS]
    return list(dict.fromkeys([*named, *by_text]))


def adds_bos(metadata: Mapping[str, Any]) -> bool:
    """Whether llama.cpp puts the begin-of-text token before a text."""
    pre_tokenizer = _pre_tokenizer_of(metadata)
    default = metadata["model"] == "llama" or (pre_tokenizer is not None and pre_tokenizer.adds_bos)
    return bool(metadata.get("add_bos_token", default)) and _id(metadata, "bos_token_id") is not None


def _pre_tokenizer_of(metadata: Mapping[str, Any]) -> PreTokenizer | None:
    name = str(metadata.get("pre", ""))
    return PRE_TOKENIZERS.get(SAME_AS.get(name, name))


def _id(metadata: Mapping[str, Any], key: str) -> int | None:
    number = metadata.get(key)
    return int(number) if number is not None and 0 <= int(number) < len(metadata["tokens"]) else None


def _byte_level(metadata: Mapping[str, Any], vocab: dict[str, int], source: object) -> dict[str, Any]:
    pre_tokenizer = _pre_tokenizer_of(metadata)
    if pre_tokenizer is None:
        raise TargetError(
            f"the pre-tokenizer in {source} is `{metadata.get('pre') or 'not named'}`\n"
            f"  wanted: one of {', '.join(sorted([*PRE_TOKENIZERS, *SAME_AS]))}\n"
            f"  do: give the model's folder or hub id, or add its patterns to models/gguf_pre_tokenizers.py"
        )
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {
        "normalizer": None,
        "pre_tokenizer": definition_of(pre_tokenizer.steps),
        "decoder": byte_level,
        # A merge is two tokens and a space; the first token can begin with a space itself.
        "model": _bpe(vocab, [_split(merge) for merge in metadata.get("merges", [])], pre_tokenizer.ignore_merges),
    }


def _split(merge: str) -> list[str]:
    place = merge.find(" ", 1)
    return [merge[:place], merge[place + 1 :]]


def _sentencepiece(metadata: Mapping[str, Any], vocab: dict[str, int], types: Sequence[int]) -> dict[str, Any]:
    prefix = bool(metadata.get("add_space_prefix", True))
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    normalizers = [*([{"type": "Prepend", "prepend": SPACE}] if prefix else []), spaces]
    unknown = _id(metadata, "unknown_token_id")
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(vocab, _merges(metadata["scores"], vocab, types))
        | {"byte_fallback": True, "fuse_unk": True}
        | {"unk_token": None if unknown is None else metadata["tokens"][unknown]},
    }


def _merges(scores: Sequence[float], vocab: dict[str, int], types: Sequence[int]) -> list[list[str]]:
    """Every pair of tokens whose union is a token, that of the highest score first."""
    mergeable = [(token, i) for token, i in vocab.items() if types[i] in (NORMAL, USER_DEFINED, UNUSED)]
    mergeable.sort(key=lambda pair: -scores[pair[1]])
    splits = ((token[:place], token[place:]) for token, _ in mergeable for place in range(1, len(token)))
    return [[left, right] for left, right in splits if left in vocab and right in vocab]


def _bpe(vocab: dict[str, int], merges: list[list[str]], ignore_merges: bool = False) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }


def _added_tokens(name: str, vocab: dict[str, int], types: Sequence[int]) -> list[dict[str, Any]]:
    """Tokens that are never split. In Phi-3 files llama.cpp removes the white space after most of them."""
    strips = any(phi in name.lower() for phi in ("phi-3", "phi3"))
    kept = ("<unk>", "<s>", "<|endoftext|>")
    return [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": strips and token not in kept,
            "normalized": False,
            "special": types[i] != USER_DEFINED,
        }
        for token, i in vocab.items()
        if types[i] in (CONTROL, USER_DEFINED, UNKNOWN)
    ]


def _post_processor(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any] | None:
    """Adds the begin-of-text and end-of-text tokens that llama.cpp adds."""
    first = _id(metadata, "bos_token_id") if adds_bos(metadata) else None
    last = _id(metadata, "eos_token_id") if metadata.get("add_eos_token") else None
    if first is None and last is None:
        return None
    begin, end = ([_special(tokens[i])] if i is not None else [] for i in (first, last))
    texts = [{"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B")]
    named = {i: tokens[i] for i in (first, last) if i is not None}
    return {
        "type": "TemplateProcessing",
        "single": [*begin, texts[0], *end],
        "pair": [*begin, texts[0], *end, *begin, texts[1], *end],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for i, token in named.items()},
    }


def _special(token: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": 0}}
