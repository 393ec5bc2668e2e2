"""An OpenAI-compatible server's answer as a completion: token ids as they were produced, their log-probabilities.

What differs from server to server is read here: vLLM names tokens by ids, llama-server gives each an `id`.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from fastdraft.config import ServerPart
from fastdraft.data.shards import Tokens
from fastdraft.synthesize.completions import Completion, LogProbabilities, Top
from fastdraft.synthesize.top_logprobs import top_logprobs_of
from fastdraft.synthesize.write import Decoding, Keyed, Unusable
from fastdraft.system.errors import ServerError

AS_ID = "token_id:"
NOT_INVERSE = "text that decoding and encoding do not give back"
PROMPT_NOT_INVERSE = "prompts whose text gives other tokens"
NO_LOGP = np.empty(0, np.float32)


def answer_of(
    content: Any,
    row: Keyed,
    part: ServerPart,
    decoding: Decoding,
    tokenizer: PreTrainedTokenizerFast,
    url: str,
) -> Completion:
    """The completion in an answer, up to its first end-of-text token; Unusable where there is none.

    ServerError where the answer is another model's, or lacks token ids or log-probabilities: all others would too.
    """
    try:
        return _answer_of(content, row, part, decoding, tokenizer, url)
    except (AttributeError, TypeError, KeyError):
        raise Unusable("answers that are not of OpenAI's form") from None


def _answer_of(
    content: Any, row: Keyed, part: ServerPart, decoding: Decoding, tokenizer: PreTrainedTokenizerFast, url: str
) -> Completion:
    if not isinstance(content, dict) or not isinstance(content.get("choices"), list) or not content["choices"]:
        raise Unusable("an answer without choices")
    if content.get("model") != part.model:
        raise ServerError(
            f"{url} answered as {content.get('model')}, wanted {part.model}\n"
            f"  do: correct synthesize.server.model, or ask the server that serves the target"
        )
    choice = content["choices"][0]
    stopped = choice.get("finish_reason") == "stop"
    top = None
    if part.text_only:
        tokens, logp = tokens_of_text(str(choice.get("text", "")), tokenizer), NO_LOGP
    else:
        tokens, logp = _tokens(choice, url), _logp(choice, url)
        _refuse_unsound(tokens, logp)
        top = _top(choice, tokens, decoding.top_logprobs, url)
        _refuse_unknown(tokens, top, decoding.vocab_rows)
    wanted = _expected_tokens(tokens, decoding)
    tokens, logp = _with_end(tokens[:wanted], logp[:wanted], stopped, decoding)
    top = _of_first(top, len(tokens))
    return Completion(row.key, row.request.prompt, tokens, logp, row.request.sampling, row.request.index, top)


def tokens_of_text(text: str, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    """A text's tokens; Unusable where they do not decode to it."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
        raise Unusable(NOT_INVERSE)
    return np.array(ids, np.int64)


def text_of_prompt(prompt: Tokens, tokenizer: PreTrainedTokenizerFast) -> str:
    """A prompt as a text; Unusable where a server that tokenises it would read other tokens."""
    text = str(tokenizer.decode(prompt, clean_up_tokenization_spaces=False))
    if tokenizer(text, add_special_tokens=False).input_ids != prompt.tolist():
        raise Unusable(PROMPT_NOT_INVERSE)
    return text


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
    except (TypeError, ValueError, OverflowError):
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


def _top(choice: dict[str, Any], tokens: Tokens, known_tokens: int, url: str) -> Top | None:
    """The most likely tokens at each place, by their ids; None where the server gives too few, which is warned of."""
    if not known_tokens or not len(tokens):
        return None
    places = _alternatives(choice, url)
    if len(places) != len(tokens):
        raise Unusable("most likely tokens that are not there for each token")
    top = top_logprobs_of(places, known_tokens)
    if top is None:
        warnings.warn(
            f"{url} gives fewer than {known_tokens} most likely tokens at some places: the target reads those rows",
            stacklevel=2,
        )
    return top


def _alternatives(choice: dict[str, Any], url: str) -> list[dict[int, float]]:
    """What a server says of each place; ServerError where it names tokens by texts, which several ids may share."""
    logprobs = choice.get("logprobs") or {}
    if content := logprobs.get("content"):
        places = [[(of.get("id"), of.get("logprob")) for of in token.get("top_logprobs") or []] for token in content]
    else:
        places = [[(_id(name), of[name]) for name in of or {}] for of in logprobs.get("top_logprobs") or []]
    if not any(places) or any(name is None for place in places for name, _ in place):
        raise ServerError(
            f"{url} gives no most likely tokens by their ids, and several ids may share a text\n"
            f"  do: use a server that names ids (vLLM, llama-server), or set synthesize.top_logprobs_from=target"
        )
    try:
        return [{int(name): float(logp) for name, logp in place} for place in places]
    except (TypeError, ValueError, OverflowError):
        raise Unusable("most likely tokens that are no numbers") from None


def _id(name: str) -> str | None:
    """What stands behind `token_id:`; None in any other name."""
    return name.removeprefix(AS_ID) if name.startswith(AS_ID) else None


def _of_first(top: Top | None, tokens: int) -> Top | None:
    """Those of the first tokens; None where there are fewer, behind which an end was put."""
    return None if top is None or len(top.ids) < tokens else Top(top.ids[:tokens], top.logp[:tokens])


def _refuse_unsound(tokens: Tokens, logp: LogProbabilities) -> None:
    if len(tokens) != len(logp):
        raise Unusable("log-probabilities that are not one for each token")
    if not (np.isfinite(logp) & (logp <= 0)).all():
        raise Unusable("log-probabilities above zero, infinite or NaN")


def _refuse_unknown(tokens: Tokens, top: Top | None, vocab_rows: int | None) -> None:
    """Ids that no embedding has would stop the training that reads them."""
    highest = max(tokens.max(initial=0), 0 if top is None else int(top.ids.max()))
    if (tokens < 0).any() or (vocab_rows is not None and highest >= vocab_rows):
        raise Unusable("token ids that the target's vocabulary has not")


def _expected_tokens(tokens: Tokens, decoding: Decoding) -> int:
    """Those up to the first end-of-text token, which a server may not take for one, and not too many."""
    ends = np.flatnonzero(np.isin(tokens, sorted(decoding.eos)))
    return min(decoding.max_new_tokens, int(ends[0]) + 1 if len(ends) else len(tokens))


def _with_end(
    tokens: Tokens, logp: LogProbabilities, stopped: bool, decoding: Decoding
) -> tuple[Tokens, LogProbabilities]:
    """With the end-of-text token that many servers leave out; its log-probability is then unknown, and so the row's."""
    ended = len(tokens) > 0 and tokens[-1] in decoding.eos
    if stopped and not ended and len(tokens) < decoding.max_new_tokens and decoding.end is not None:
        return np.append(tokens, decoding.end), NO_LOGP
    if not len(tokens):
        raise Unusable("empty answers")
    return tokens, logp
