"""What ids mean: the bytes behind each one, how text is cut into them, and texts on which two tokenizers are tried."""

from __future__ import annotations

import json
import re
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

# What is tried: code, prose, white space of every kind, numbers, other scripts, signs beyond the basic plane, letters
# in composed and decomposed form, bytes that fall apart, text that looks like a special token.
PROBES = (
    "a",
    " a",
    "The quick brown fox jumps over the lazy dog.",
    "I can't, you'll see; we've 'SAID' it's DON'T",
    "def f(x):\n    return [x ** 2 for _ in range(10)]  # why?\n\n\n",
    "\tif (a&&b||!c) { ptr->next = NULL; }\r\n\r\n",
    "<div class='x'>&nbsp;</div>",
    "https://example.org/path?query=1&b=%20#top",
    "   three spaces,  two,\t\ttabs \n \n trailing   ",
    "0 12 345 6789 1234567890 3.14159 1,000,000 0x1F 1e-05",
    "naïve café, Straße, ŒUVRE, ﬁne",
    "e\u0301 n\u0303 (decomposed) é ñ (composed)",
    "Привет, мир! Γειά σου Κόσμε",
    "你好，世界。日本語のテスト 한국어",
    "مرحبا بالعالم שלום עולם",
    "हिन्दी ภาษาไทย தமிழ்",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 ∑∫√ ℝ→ℂ ≠ ½ №",
    "zero\u200bwidth\u00a0space\u3000wide\ufeffmark",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𒀀 \U0010fffd",
    "<s>[INST] hello [/INST]</s> <|im_start|>user\nhi<|im_end|> <0x0A> ▁under",
    "A" * 97 + "!" * 31,
    "\n",
)
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "▁"


def spelled(tokenizer: PreTrainedTokenizerFast) -> dict[int, bytes]:
    """The bytes that each id of a tokenizer stands for, added tokens' too, by the rule of its decoder."""
    steps = {step["type"] for step in _steps(definition(tokenizer)["decoder"])}
    added = tokenizer.added_tokens_decoder
    to_byte = {sign: byte for byte, sign in bytes_to_unicode().items()} if "ByteLevel" in steps else {}
    found: dict[int, bytes] = {}
    for token, number in tokenizer.get_vocab().items():
        if number in added:
            found[number] = token.encode()
        elif to_byte:
            found[number] = b"".join(bytes([to_byte[sign]]) if sign in to_byte else sign.encode() for sign in token)
        elif "ByteFallback" in steps and (byte := BYTE.fullmatch(token)):
            found[number] = bytes([int(byte[1], 16)])
        else:
            found[number] = token.replace(SPACE, " ").encode() if _joins_by_mark(steps) else token.encode()
    return found


def definition(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Normalizer, pre-tokenizer, model, post-processor and decoder; without the ids, which are compared one by one."""
    whole: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    whole["model"].pop("vocab", None)
    return {name: whole[name] for name in ("normalizer", "pre_tokenizer", "model", "post_processor", "decoder")}


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The ids of a text, with whatever the tokenizer sets before and after it."""
    found: list[int] = tokenizer(text).input_ids
    return found


def show(found: bytes | None, longest_bytes: int = 24) -> str:
    """Bytes as a person reads them; `nothing` where an id has none."""
    if found is None:
        return "nothing"
    text = repr(found[:longest_bytes].decode(errors="backslashreplace"))
    return text + ("…" if len(found) > longest_bytes else "")


def _steps(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A definition's steps, those inside of others too."""
    if step is None:
        return []
    return [step, *(each for key in ("decoders",) for inner in step.get(key, []) for each in _steps(inner))]


def _joins_by_mark(steps: set[str]) -> bool:
    """Does the decoder turn the mark of a space into one, as sentencepiece does?"""
    return bool(steps & {"Metaspace", "Replace"})
