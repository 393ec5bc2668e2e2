"""Batched decoding of the target in this process; finished sequences are replaced by waiting ones.

Dimensions: B sequences being decoded, R all sequences, N tokens of a completion, V vocabulary, K top tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastdraft.data.shards import Tokens
from fastdraft.synthesize.completions import LogProbabilities, SamplingParams, TopTokens
from fastdraft.synthesize.kv_cache import open_batch
from fastdraft.synthesize.token_sampling import next_tokens, top_tokens
from fastdraft.system.errors import TargetError


class Generated(NamedTuple):
    """(n) tokens of a completion, including the end-of-text token, and (n) log p of each under its distribution.

    `top`: the most likely tokens of each position, if they were requested.
    """

    tokens: Tokens
    logp: LogProbabilities
    top: TopTokens | None = None


@torch.inference_mode()
def generate(
    target: PreTrainedModel,
    prompts: Sequence[Tokens],
    sampling: SamplingParams,
    max_new_tokens: int,
    eos: frozenset[int],
    coins_RN: Tensor,
    batch_size: int | None = None,
    top_logprobs: int = 0,
) -> list[Generated]:
    """The completion of each prompt, up to and including its first end-of-text token.

    coins_RN: float64, uniform on [0, 1): the random number of every token; unused in greedy decoding.
    `batch_size`: by default all prompts at once. TargetError if a text exceeds the context or logits are NaN.
    """
    tokens = max(map(len, prompts)) + max_new_tokens
    context: int | None = getattr(target.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and tokens > context:
        raise TargetError(
            f"a prompt and its completion take {tokens} tokens, the target's context holds {context}\n"
            f"  do: lower `max_prompt_tokens` or `max_new_tokens` to a sum of {context} at most"
        )
    sequences = _Sequences(prompts, sampling, max_new_tokens, eos, coins_RN.to(target.device), top_logprobs)
    # Prompts of similar lengths are read together, with less padding; the shortest are popped first.
    waiting = sorted(range(len(prompts)), key=lambda row: len(prompts[row]), reverse=True)
    with open_batch(target, sequences) as batch:
        while waiting or batch.rows:
            free = (batch_size or len(prompts)) - len(batch.rows)
            if free and waiting and (batch.refills or not batch.rows):
                batch.add([waiting.pop() for _ in range(min(free, len(waiting)))])
            batch.remove(sequences.extend(batch.rows, batch.next_logits()))
    return sequences.generated()


class _Sequences:
    """All sequences: their prompts, and what has been generated so far."""

    def __init__(
        self,
        prompts: Sequence[Tokens],
        sampling: SamplingParams,
        max_new_tokens: int,
        eos: frozenset[int],
        coins_RN: Tensor,
        top_logprobs: int,
    ) -> None:
        shape, device = (len(prompts), max_new_tokens), coins_RN.device
        self.prompts, self.max_new_tokens = prompts, max_new_tokens
        self._sampling, self._coins_RN, self._top_logprobs = sampling, coins_RN, top_logprobs
        self._eos = torch.tensor(sorted(eos), dtype=torch.long, device=device)
        self._lengths_R = torch.zeros(len(prompts), dtype=torch.long, device=device)
        self._tokens_RN = torch.zeros(shape, dtype=torch.long, device=device)
        self._logp_RN = torch.zeros(shape, device=device)
        self._top_ids_RNK = torch.zeros(*shape, top_logprobs, dtype=torch.int32, device=device)
        self._top_logp_RNK = torch.zeros(*shape, top_logprobs, dtype=torch.float16, device=device)

    def extend(self, rows: Sequence[int], logits_BV: Tensor) -> list[int]:
        """Add one token to each of these rows; returns the indices, among them, of those that have ended."""
        row_B = torch.tensor(rows, device=logits_BV.device)
        at_B = self._lengths_R[row_B]
        token_B, logp_B = next_tokens(logits_BV, self._sampling, self._coins_RN[row_B, at_B])
        self._tokens_RN[row_B, at_B], self._logp_RN[row_B, at_B] = token_B, logp_B
        if self._top_logprobs:
            ids_BK, logp_BK = top_tokens(logits_BV, self._top_logprobs)
            self._top_ids_RNK[row_B, at_B], self._top_logp_RNK[row_B, at_B] = ids_BK, logp_BK
        self._lengths_R[row_B] += 1
        ended_B = torch.isin(token_B, self._eos) | (at_B + 1 == self.max_new_tokens)
        return [index for index, ended in enumerate(ended_B.tolist()) if ended]

    def last_tokens(self, rows: Sequence[int]) -> Tensor:
        """(B) the last token of each of these rows; of the prompt if nothing has been generated yet."""
        row_B = torch.tensor(rows, device=self._tokens_RN.device)
        of_prompt_B = torch.tensor([int(self.prompts[row][-1]) for row in rows], device=row_B.device)
        at_B = self._lengths_R[row_B]
        return torch.where(at_B > 0, self._tokens_RN[row_B, (at_B - 1).clamp(min=0)], of_prompt_B)

    def generated(self) -> list[Generated]:
        """All completions, once all have ended."""
        tokens_RN, logp_RN = self._tokens_RN.cpu().numpy(), self._logp_RN.cpu().numpy()
        completions = []
        for row, n in enumerate(self._lengths_R.tolist()):
            top = None
            if self._top_logprobs:
                ids_NK = self._top_ids_RNK[row, :n].cpu().numpy().astype(np.uint32)
                top = TopTokens(ids_NK, self._top_logp_RNK[row, :n].cpu().numpy().copy())
            completions.append(Generated(tokens_RN[row, :n].copy(), logp_RN[row, :n].copy(), top))
        return completions
