"""The pre-tokenizers of llama.cpp, which have names, and how each splits a text before byte-level BPE.

From `llm_tokenizer_bpe` and `llama_vocab::impl::load` in src/llama-vocab.cpp, read in December 2026. llama.cpp applies
a list of patterns one after another; each splits the pieces that the one before has left.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FIRST = r"[^\r\n\p{L}\p{N}]?"
_SIGNS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class PreTokenizer(NamedTuple):
    """How a text is split.

    steps: patterns; or `words` (the pattern of GPT-2), `digits` (each digit alone) or `bytes` (no further split).
    ignore_merges: a whole word that is a token needs no merges.
    adds_bos: the default of `tokenizer.ggml.add_bos_token`.
    """

    steps: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False


def _cased(end: str) -> str:
    """Words whose upper-case letters, if any, come first."""
    return rf"{_FIRST}{_UPPER}*{_LOWER}+{end}|{_FIRST}{_UPPER}+{_LOWER}*{end}"


PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(("words",)),
    "smollm": PreTokenizer(("digits", "words")),
    "qwen2": PreTokenizer((rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_SIGNS}", "bytes")),
    "llama-bpe": PreTokenizer((rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}", "bytes"), True, True),
    "dbrx": PreTokenizer((rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}", "bytes")),
    "gpt-4o": PreTokenizer((rf"{_cased(_CONTRACTIONS + '?')}|\p{{N}}{{1,3}}|{_SIGNS_SLASH}", "bytes")),
    "tekken": PreTokenizer((rf"{_cased('')}|\p{{N}}|{_SIGNS_SLASH}", "bytes"), True, True),
}

# Other names under which llama.cpp has the same pre-tokenizer.
SAME_AS = {
    **dict.fromkeys(("phi-2", "gigachat", "a.x-4.0", "mellum", "exaone4", "mpt", "olmo", "jais", "trillion"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), "smollm"),
    **dict.fromkeys(("deepseek-r1-qwen", "kormo", "stablelm2", "megrez", "hunyuan", "solar-open"), "qwen2"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), "llama-bpe"),
    **dict.fromkeys(("smaug-bpe", "glm4", "chatglm-bpe"), "dbrx"),
    **dict.fromkeys(("llama4", "kanana2"), "gpt-4o"),
}


def name_of(steps: tuple[str, ...], ignore_merges: bool) -> str | None:
    """llama.cpp's name of a pre-tokenizer with these steps; None if it has none."""
    wanted = (steps, ignore_merges)
    return next((name for name, known in PRE_TOKENIZERS.items() if (known.steps, known.ignore_merges) == wanted), None)


def steps_of(definition: dict[str, Any] | None) -> Iterator[str]:
    """The steps of a pre-tokenizer in tokenizer.json. A step that llama.cpp cannot have is described."""
    kind = (definition or {}).get("type")
    if definition is None or kind not in ("Sequence", "ByteLevel", "Digits", "Split"):
        yield str(kind)
    elif kind == "Sequence":
        for inner in definition["pretokenizers"]:
            yield from steps_of(inner)
    elif kind == "ByteLevel":
        prefix = "space, " if definition.get("add_prefix_space") else ""
        yield prefix + ("words" if definition.get("use_regex", True) else "bytes")
    elif kind == "Digits":
        yield "digits" if definition["individual_digits"] else "numbers"
    else:
        # These patterns match every character, so isolating the matches and removing the rest give the same pieces.
        whole = (definition["behavior"], definition["invert"]) in (("Isolated", False), ("Removed", True))
        yield ("" if whole else f"{definition['behavior']} ") + definition["pattern"].get("Regex", "a string")


def definition_of(steps: tuple[str, ...]) -> dict[str, Any]:
    """The pre-tokenizer of tokenizer.json with these steps: the inverse of `steps_of`."""
    return {"type": "Sequence", "pretokenizers": [_definition(step) for step in steps]}


def _definition(step: str) -> dict[str, Any]:
    if step == "digits":
        return {"type": "Digits", "individual_digits": True}
    if step in ("words", "bytes"):
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": step == "words"}
    return {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False}
