"""Batched decoding of a target in this process: a place in the cache for each row, filled anew when a row ends.

Dimensions: B rows in hand, R rows in all, N tokens of a completion, V vocabulary, K most likely tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastdraft.data.shards import Tokens
from fastdraft.synthesize.completions import LogProbabilities, SamplingParams, Top
from fastdraft.synthesize.kv_cache import reader_of
from fastdraft.synthesize.token_sampling import choose, likeliest
from fastdraft.system.errors import TargetError


class Written(NamedTuple):
    """(n) tokens of a completion, the end-of-text token included, and (n) log p of each under its distribution.

    `top`: the most likely tokens of each place, where they were asked for.
    """

    tokens: Tokens
    logp: LogProbabilities
    top: Top | None = None


@torch.inference_mode()
def generate(
    target: PreTrainedModel,
    prompts: Sequence[Tokens],
    sampling: SamplingParams,
    max_new_tokens: int,
    eos: frozenset[int],
    coins_RN: Tensor,
    rows_at_once: int | None = None,
    top_logprobs: int = 0,
) -> list[Written]:
    """What the target writes after each prompt, up to and including its first end-of-text token.

    coins_RN: uniform on [0, 1), float64, one for every token of every row; not looked at where the distribution is
    greedy.
    `rows_at_once`: otherwise all. TargetError where a text exceeds the context, or where logits are NaN.
    """
    _refuse_too_long(target, max(map(len, prompts)) + max_new_tokens)
    texts = _Texts(prompts, sampling, max_new_tokens, eos, coins_RN.to(target.device), top_logprobs)
    # Rows of similar lengths are read together: less padding.
    waiting = sorted(range(len(prompts)), key=lambda row: len(prompts[row]), reverse=True)
    with reader_of(target, texts) as reader:
        while waiting or reader.rows:
            room = (rows_at_once or len(prompts)) - len(reader.rows)
            fresh = [waiting.pop() for _ in range(min(room, len(waiting)))]
            if fresh and (len(reader.rows) == 0 or reader.refills):
                reader.open(fresh)
            else:
                waiting += reversed(fresh)
            reader.close(texts.extend(reader.rows, reader.next_logits()))
    return texts.written()


class _Texts:
    """The completions so far of all rows."""

    def __init__(
        self,
        prompts: Sequence[Tokens],
        sampling: SamplingParams,
        max_new_tokens: int,
        eos: frozenset[int],
        coins_RN: Tensor,
        top_logprobs: int,
    ) -> None:
        rows, device = len(prompts), coins_RN.device
        self.prompts, self.max_new_tokens = prompts, max_new_tokens
        self._sampling, self._coins_RN = sampling, coins_RN
        self._ends_V = torch.tensor(sorted(eos), dtype=torch.long, device=device)
        self._tokens_RN = torch.zeros(rows, max_new_tokens, dtype=torch.long, device=device)
        self._logp_RN = torch.zeros(rows, max_new_tokens, device=device)
        self._lengths_R = torch.zeros(rows, dtype=torch.long, device=device)
        places = rows, max_new_tokens, top_logprobs
        self._top_ids_RNK = torch.zeros(places, dtype=torch.int32, device=device)
        self._top_logp_RNK = torch.zeros(places, dtype=torch.float16, device=device)

    def extend(self, rows: Sequence[int], logits_BV: Tensor) -> list[int]:
        """One more token for each of these rows; the places, among them, of those that have ended."""
        row_B = torch.tensor(rows, device=logits_BV.device)
        at_B = self._lengths_R[row_B]
        token_B, logp_B = choose(logits_BV, self._sampling, self._coins_RN[row_B, at_B])
        self._tokens_RN[row_B, at_B], self._logp_RN[row_B, at_B] = token_B, logp_B
        if known_tokens := self._top_ids_RNK.shape[-1]:
            ids_BK, logp_BK = likeliest(logits_BV, known_tokens)
            self._top_ids_RNK[row_B, at_B], self._top_logp_RNK[row_B, at_B] = ids_BK, logp_BK
        self._lengths_R[row_B] += 1
        ended_B = torch.isin(token_B, self._ends_V) | (at_B + 1 == self.max_new_tokens)
        return [place for place, ended in enumerate(ended_B.tolist()) if ended]

    def last(self, rows: Sequence[int]) -> Tensor:
        """(B) the newest token of each of these rows: of the prompt, where nothing has been written yet."""
        row_B = torch.tensor(rows, device=self._tokens_RN.device)
        of_prompt_B = torch.tensor([int(self.prompts[row][-1]) for row in rows], device=row_B.device)
        at_B = self._lengths_R[row_B]
        return torch.where(at_B > 0, self._tokens_RN[row_B, (at_B - 1).clamp(min=0)], of_prompt_B)

    def written(self) -> list[Written]:
        """All completions; each has ended."""
        tokens_RN, logp_RN = self._tokens_RN.cpu().numpy(), self._logp_RN.cpu().numpy()
        return [
            Written(tokens_RN[row, :n].copy(), logp_RN[row, :n].copy(), self._top(row, n))
            for row, n in enumerate(self._lengths_R.tolist())
        ]

    def _top(self, row: int, tokens: int) -> Top | None:
        if not self._top_ids_RNK.shape[-1]:
            return None
        ids_NK, logp_NK = self._top_ids_RNK[row, :tokens], self._top_logp_RNK[row, :tokens]
        return Top(ids_NK.cpu().numpy().astype(np.uint32), logp_NK.cpu().numpy().copy())


def _refuse_too_long(target: PreTrainedModel, tokens: int) -> None:
    context: int | None = getattr(target.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and tokens > context:
        raise TargetError(
            f"a prompt and its completion take {tokens} tokens, the target's context holds {context}\n"
            f"  do: lower `max_prompt_tokens` or `max_new_tokens` to a sum of {context} at most"
        )
