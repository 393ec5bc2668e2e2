"""An OpenAI-compatible server's answer as a completion: token ids as they were produced, their log-probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from fastdraft.corpus.shards import Tokens
from fastdraft.errors import ServerError
from fastdraft.recipe import ServerPart
from fastdraft.synthesize.completions import Completion, LogProbabilities
from fastdraft.synthesize.write import Decoding, Keyed

AS_ID = "token_id:"
NOT_INVERSE = "text that decoding and encoding do not give back"
NO_LOGP = np.empty(0, np.float32)


class Unusable(Exception):
    """Why no row can be made of an answer."""


def answer_of(
    content: Any,
    row: Keyed,
    part: ServerPart,
    decoding: Decoding,
    tokenizer: PreTrainedTokenizerFast,
    url: str,
) -> Completion:
    """The completion in an answer; Unusable where there is none.

    ServerError where the answer is another model's, or lacks token ids or log-probabilities: all others would too.
    """
    if not isinstance(content, dict) or not isinstance(content.get("choices"), list) or not content["choices"]:
        raise Unusable("an answer without choices")
    if content.get("model") != part.model:
        raise ServerError(
            f"{url} answered as {content.get('model')}, wanted {part.model}\n"
            f"  do: correct synthesize.server.model, or ask the server that serves the target"
        )
    choice = content["choices"][0]
    stopped = choice.get("finish_reason") == "stop"
    if part.text_only:
        tokens, logp = tokens_of_text(str(choice.get("text", "")), tokenizer), NO_LOGP
    else:
        tokens, logp = _tokens(choice, url), _logp(choice, url)
        _refuse_unsound(tokens, logp)
    tokens, logp = _with_end(
        tokens[: decoding.completion_tokens], logp[: decoding.completion_tokens], stopped, decoding
    )
    return Completion(row.key, row.request.prompt, tokens, logp, row.request.law, row.request.index)


def tokens_of_text(text: str, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    """A text's tokens; Unusable where they do not decode to it."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
        raise Unusable(NOT_INVERSE)
    return np.array(ids, np.int64)


def _tokens(choice: dict[str, Any], url: str) -> Tokens:
    """The ids as the engine produced them, wherever this server says them."""
    logprobs = choice.get("logprobs") or {}
    content = logprobs.get("content") or []
    names = logprobs.get("tokens") or []
    if isinstance(choice.get("token_ids"), list):
        ids = choice["token_ids"]
    elif content and all("id" in token for token in content):
        ids = [token["id"] for token in content]
    elif names and all(str(name).startswith(AS_ID) for name in names):
        ids = [str(name).removeprefix(AS_ID) for name in names]
    else:
        raise ServerError(
            f"{url} gives texts without token ids, and a text can be written in several ways\n"
            f"  do: use a server that gives ids (vLLM: return_token_ids), or set synthesize.server.text_only=true"
        )
    try:
        return np.array([int(token) for token in ids], np.int64)
    except (TypeError, ValueError):
        raise Unusable("token ids that are no numbers") from None


def _logp(choice: dict[str, Any], url: str) -> LogProbabilities:
    logprobs = choice.get("logprobs") or {}
    content = logprobs.get("content")
    found = [token.get("logprob") for token in content] if content else logprobs.get("token_logprobs")
    if not found and (choice.get("token_ids") or choice.get("text")):
        raise ServerError(
            f"{url} gives no log-probabilities\n"
            f"  do: start the server with log-probabilities allowed, or set synthesize.server.text_only=true"
        )
    try:
        return np.array(found or [], np.float32)
    except (TypeError, ValueError):
        raise Unusable("log-probabilities that are no numbers") from None


def _refuse_unsound(tokens: Tokens, logp: LogProbabilities) -> None:
    if len(tokens) != len(logp):
        raise Unusable("log-probabilities that are not one for each token")
    if not (np.isfinite(logp) & (logp <= 0)).all():
        raise Unusable("log-probabilities above zero, infinite or NaN")
    if (tokens < 0).any():
        raise Unusable("token ids below zero")


def _with_end(
    tokens: Tokens, logp: LogProbabilities, stopped: bool, decoding: Decoding
) -> tuple[Tokens, LogProbabilities]:
    """With the end-of-text token that many servers leave out; its log-probability is then unknown, and so the row's."""
    ended = len(tokens) > 0 and tokens[-1] in decoding.eos
    if stopped and not ended and len(tokens) < decoding.completion_tokens and decoding.end is not None:
        return np.append(tokens, decoding.end), NO_LOGP
    if not len(tokens):
        raise Unusable("empty answers")
    return tokens, logp
