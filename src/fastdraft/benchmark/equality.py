"""Whether greedy text with a draft equals the text without one, up to near ties of the target's logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from fastdraft.benchmark.engine import Arm
from fastdraft.data.shards import Tokens
from fastdraft.results.bench import Difference
from fastdraft.system.errors import UnequalOutput

# In exact settings a block and a single token differ only in the order of sums, which moved logits by up to 7e-5 (7M
# parameters, fp32). This is ten times as much, for larger models.
NEAR_TIE = 1e-3
ENDED = -1  # instead of a token id: the text has ended


def first_difference(
    target: PreTrainedModel, prompt: Tokens, plain: Tokens, tokens: Tokens, *, task: str, number: int, arm: Arm
) -> Difference | None:
    """The first difference of an arm's text from the plain one, None if they are equal; `number`: of the prompt."""
    shared = min(len(plain), len(tokens))
    differs = np.flatnonzero(plain[:shared] != tokens[:shared])
    if not len(differs) and len(plain) == len(tokens):
        return None
    position = int(differs[0]) if len(differs) else shared
    pair = _token_at(plain, position), _token_at(tokens, position)
    gap = float("inf") if ENDED in pair else _gap(target, np.concatenate([prompt, plain[:position]]), pair)
    return Difference(task=task, prompt=number, arm=arm.kind, gamma=arm.gamma, position=position, tokens=pair, gap=gap)


def check_near_ties(setting: str, differences: Sequence[Difference]) -> None:
    """UnequalOutput if a difference is not a near tie: then the engine or the draft's export is wrong."""
    wrong = [difference for difference in differences if not difference.gap < NEAR_TIE]
    if wrong:
        first = wrong[0]
        raise UnequalOutput(
            f"{setting}: greedy text with {first.arm}, gamma {first.gamma}, differs from the text without a draft: "
            f"task {first.task}, prompt {first.prompt}, token {first.position}: {first.tokens[1]} instead of "
            f"{first.tokens[0]}, whose logits are {first.gap:.2g} apart (a near tie is below {NEAR_TIE:g}); "
            f"{len(wrong)} texts differ like this\n"
            f"  do: report it with the versions of the engine: it does not decode as its target does"
        )


def _token_at(text: Tokens, position: int) -> int:
    return int(text[position]) if position < len(text) else ENDED


@torch.inference_mode()
def _gap(target: PreTrainedModel, text: Tokens, tokens: tuple[int, int]) -> float:
    """The difference between the target's logits of two tokens after a text."""
    ids_1T = torch.from_numpy(text)[None].to(target.device)
    last_V = target(input_ids=ids_1T, use_cache=False, logits_to_keep=1).logits[0, -1].float()
    return abs(float(last_V[tokens[0]] - last_V[tokens[1]]))
