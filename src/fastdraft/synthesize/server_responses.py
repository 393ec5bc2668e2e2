"""The response of an OpenAI-compatible server as a completion: token ids as they were generated, log-probabilities.

Differences between servers are handled here: vLLM names tokens by ids (`token_id:7`), llama-server gives each an `id`.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from fastdraft.config import ServerPart
from fastdraft.data.shards import Tokens
from fastdraft.synthesize.answer_parsing import (
    NO_LOGP,
    UNKNOWN_IDS,
    parse_logp,
    parse_top_logprobs,
    tokenize_exactly,
)
from fastdraft.synthesize.completions import Completion, LogProbabilities, TopTokens
from fastdraft.synthesize.decoding_params import DecodingParams
from fastdraft.synthesize.engine_interface import KeyedRequest, UnusableAnswer
from fastdraft.system.errors import ServerError

ID_PREFIX = "token_id:"


def prompt_text(prompt: Tokens, tokenizer: PreTrainedTokenizerFast) -> str:
    """A prompt as text; UnusableAnswer if a server that tokenizes the text would read other tokens."""
    text = str(tokenizer.decode(prompt, clean_up_tokenization_spaces=False))
    if tokenizer(text, add_special_tokens=False).input_ids != prompt.tolist():
        raise UnusableAnswer("prompts whose text gives other tokens")
    return text


def parse_completion(
    content: Any,
    row: KeyedRequest,
    part: ServerPart,
    decoding: DecodingParams,
    tokenizer: PreTrainedTokenizerFast,
    url: str,
) -> Completion:
    """The completion in a response's JSON, up to its first end-of-text token; UnusableAnswer if there is none.

    ServerError if the response names another model, or lacks token ids or log-probabilities: all others would too.
    """
    try:
        return _parse_completion(content, row, part, decoding, tokenizer, url)
    except (AttributeError, TypeError, KeyError, IndexError, ValueError, OverflowError):
        raise UnusableAnswer("answers that are not in OpenAI's format") from None


def _parse_completion(
    content: Any,
    row: KeyedRequest,
    part: ServerPart,
    decoding: DecodingParams,
    tokenizer: PreTrainedTokenizerFast,
    url: str,
) -> Completion:
    if not isinstance(content, dict) or not isinstance(content.get("choices"), list) or not content["choices"]:
        raise UnusableAnswer("an answer without choices")
    if content.get("model") != part.model:
        raise ServerError(
            f"{url} answered as {content.get('model')}, wanted {part.model}\n"
            f"  do: correct synthesize.server.model, or use the server of the target"
        )
    choice = content["choices"][0]
    top = None
    if part.text_only:
        tokens, logp = tokenize_exactly(str(choice.get("text", "")), tokenizer), NO_LOGP
    else:
        tokens = _token_ids(choice, url)
        logp = _logp(choice, len(tokens), url)
        top = _top_tokens(choice, tokens, decoding.top_logprobs, url)
        # Ids without an embedding row would stop training.
        largest = max(tokens.max(initial=0), 0 if top is None else int(top.ids.max()))
        if (tokens < 0).any() or (decoding.vocab_rows is not None and largest >= decoding.vocab_rows):
            raise UnusableAnswer(UNKNOWN_IDS)
    # A server may not stop at each of the target's end-of-text ids.
    ends = np.flatnonzero(np.isin(tokens, sorted(decoding.eos)))
    length = min(decoding.max_new_tokens, int(ends[0]) + 1 if len(ends) else len(tokens))
    tokens, logp = tokens[:length], logp[:length]
    top = None if top is None else TopTokens(top.ids[:length], top.logp[:length])
    ended = length > 0 and tokens[-1] in decoding.eos
    stopped = choice.get("finish_reason") == "stop"
    if stopped and not ended and length < decoding.max_new_tokens and decoding.end is not None:
        # Many servers leave out the end-of-text token. Its log-probability is unknown, so the row's are dropped.
        tokens, logp, top = np.append(tokens, decoding.end), NO_LOGP, None
    if not len(tokens):
        raise UnusableAnswer("empty answers")
    return Completion(row.key, row.request.prompt, tokens, logp, row.request.sampling, row.request.index, top)


def _token_ids(choice: dict[str, Any], url: str) -> Tokens:
    """The token ids as they were generated, wherever this server returns them."""
    logprobs = choice.get("logprobs") or {}
    content = logprobs.get("content") or []
    names = logprobs.get("tokens") or []
    if isinstance(choice.get("token_ids"), list):
        ids = choice["token_ids"]
    elif content and all("id" in token for token in content):
        ids = [token["id"] for token in content]
    elif names and all(str(name).startswith(ID_PREFIX) for name in names):
        ids = [str(name).removeprefix(ID_PREFIX) for name in names]
    else:
        raise ServerError(
            f"{url} returns texts without token ids, and a text can be tokenized in several ways\n"
            f"  do: use a server that returns ids (vLLM: return_token_ids), or set synthesize.server.text_only=true"
        )
    try:
        return np.array([_id(token) for token in ids], np.int64)
    except (TypeError, ValueError, OverflowError):
        raise UnusableAnswer("token ids that are not whole numbers") from None


def _id(value: Any) -> int:
    """A token id that is given as a number or as digits; TypeError or ValueError otherwise."""
    if type(value) not in (int, str):
        raise TypeError(f"{value!r} is no token id")
    return int(value)


def _logp(choice: dict[str, Any], tokens: int, url: str) -> LogProbabilities:
    logprobs = choice.get("logprobs") or {}
    content = logprobs.get("content")
    values = [token.get("logprob") for token in content] if content else logprobs.get("token_logprobs")
    if not values and (choice.get("token_ids") or choice.get("text")):
        raise ServerError(
            f"{url} returns no log-probabilities\n"
            f"  do: start the server with log-probabilities enabled, or set synthesize.server.text_only=true"
        )
    return parse_logp(list(values or []), tokens)


def _top_tokens(choice: dict[str, Any], tokens: Tokens, k: int, url: str) -> TopTokens | None:
    """The k most likely tokens of each position; None, with a warning, if the server returns fewer.

    ServerError if the server names tokens by text, which several ids may share.
    """
    if not k or not len(tokens):
        return None
    logprobs = choice.get("logprobs") or {}
    pairs: list[list[tuple[Any, Any]]]
    if content := logprobs.get("content"):
        pairs = [[(top.get("id"), top.get("logprob")) for top in token.get("top_logprobs") or []] for token in content]
    else:
        pairs = [
            [(name.removeprefix(ID_PREFIX) if name.startswith(ID_PREFIX) else None, top[name]) for name in top or {}]
            for top in logprobs.get("top_logprobs") or []
        ]
    if not any(pairs) or any(token_id is None for position in pairs for token_id, _ in position):
        raise ServerError(
            f"{url} returns top_logprobs without token ids, and several ids may share a text\n"
            f"  do: use a server that names ids (vLLM, llama-server), or set synthesize.top_logprobs_from=target"
        )
    try:
        positions = [{_id(token_id): float(logp) for token_id, logp in position} for position in pairs]
    except (TypeError, ValueError, OverflowError):
        raise UnusableAnswer("most likely tokens that are not numbers") from None
    if len(positions) != len(tokens):
        raise UnusableAnswer("most likely tokens that are missing for some tokens")
    top = parse_top_logprobs(positions, k)
    if top is None:
        warnings.warn(
            f"{url} returns fewer than {k} most likely tokens at some positions: the target rescores those rows",
            stacklevel=2,
        )
    return top
