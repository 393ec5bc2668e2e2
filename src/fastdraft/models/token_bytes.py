"""The bytes that each token id stands for, a tokenizer's definition, and probe texts that compare two tokenizers."""

from __future__ import annotations

import json
import re
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

# Code, prose, all kinds of white space, numbers, other scripts, characters beyond the basic plane, composed and
# decomposed letters, invalid UTF-8 when cut, text that looks like a special token.
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


def id_bytes(tokenizer: PreTrainedTokenizerFast) -> dict[int, bytes]:
    """The bytes that each id stands for, by the rule of the tokenizer's decoder; added tokens are included."""
    decoders = {step["type"] for step in _steps(definition(tokenizer)["decoder"])}
    added = tokenizer.added_tokens_decoder
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()} if "ByteLevel" in decoders else {}
    # These two turn sentencepiece's mark for a space into one.
    space = " " if decoders & {"Metaspace", "Replace"} else SPACE
    bytes_by_id: dict[int, bytes] = {}
    for token, number in tokenizer.get_vocab().items():
        if number in added:
            bytes_by_id[number] = token.encode()
        elif byte_of:
            bytes_by_id[number] = b"".join(bytes([byte_of[c]]) if c in byte_of else c.encode() for c in token)
        elif "ByteFallback" in decoders and (byte := BYTE.fullmatch(token)):
            bytes_by_id[number] = bytes([int(byte[1], 16)])
        else:
            bytes_by_id[number] = token.replace(SPACE, space).encode()
    return bytes_by_id


def definition(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Normalizer, pre-tokenizer, model, post-processor and decoder, without the vocabulary."""
    whole: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    whole["model"].pop("vocab", None)
    return {name: whole[name] for name in ("normalizer", "pre_tokenizer", "model", "post_processor", "decoder")}


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The ids of a text, with the special tokens that the tokenizer adds."""
    ids: list[int] = tokenizer(text).input_ids
    return ids


def readable(token: bytes | None, longest_bytes: int = 24) -> str:
    """A token's bytes as quoted text, cut to `longest_bytes`; `nothing` if the id has no token."""
    if token is None:
        return "nothing"
    text = repr(token[:longest_bytes].decode(errors="backslashreplace"))
    return text + ("…" if len(token) > longest_bytes else "")


def _steps(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """All steps of a decoder, nested ones included."""
    if step is None:
        return []
    return [step, *(each for inner in step.get("decoders", []) for each in _steps(inner))]
